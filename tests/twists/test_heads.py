"""Heads on the base model's hidden state."""

import pytest
import torch

from tsmc_widgets.models.tabular import TabularLM
from tsmc_widgets.smc.proposals import TwistInduced
from tsmc_widgets.testing import check_proposal, check_twist
from tsmc_widgets.twists import LinearHeadTwist


def random_head(lm):
    twist = LinearHeadTwist(lm)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in twist.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return twist


def test_contract(gpt2):
    check_twist(LinearHeadTwist(gpt2), gpt2)
    check_twist(random_head(gpt2), gpt2, tolerance=1e-3)
    check_twist(random_head(gpt2), gpt2, prompt_length=1, num_steps=8, batch=3, tolerance=1e-3)


def test_a_new_head_is_psi_1_and_its_proposal_p0_exactly(gpt2):
    tokens = torch.tensor([[5, 6, 7], [8, 9, 3]])
    lm_step = gpt2.prefill(tokens)
    twist = LinearHeadTwist(gpt2)
    step = twist.prefill(tokens, lm_step)
    assert torch.equal(step.log_psi_next, torch.zeros(2, gpt2.vocab_size))
    assert torch.equal(twist.log_psi(tokens, 1), torch.zeros(2, 2))
    log_q = TwistInduced().prefill(tokens, lm_step, step).log_q_next
    torch.testing.assert_close(log_q, lm_step.log_probs, rtol=0, atol=1e-6)
    check_proposal(TwistInduced(), gpt2, twist)


def test_the_value_is_w_h_plus_b_of_the_state_before_the_token(gpt2):
    tokens = torch.tensor([[5, 6, 7, 4], [8, 9, 3, 3]])
    twist = random_head(gpt2)
    hidden = gpt2.prefill(tokens[:, :2]).hidden
    expected = hidden @ twist.head.weight.T + twist.head.bias
    found = twist.log_psi(tokens, 2)[:, 0]
    torch.testing.assert_close(found, expected[[0, 1], tokens[:, 2]], rtol=0, atol=1e-4)


def test_the_base_model_is_no_part_of_the_head(gpt2):
    twist = LinearHeadTwist(gpt2)
    assert set(twist.state_dict()) == {"head.weight", "head.bias"}
    assert sum(p.numel() for p in twist.parameters()) == gpt2.vocab_size * (32 + 1)


def test_only_the_head_receives_a_gradient(gpt2):
    twist = random_head(gpt2)
    twist.log_psi(torch.tensor([[5, 6, 7]]), 1).sum().backward()
    assert twist.head.bias.grad.nonzero().squeeze(1).tolist() == [6, 7]
    assert all(parameter.grad is None for parameter in gpt2.model.parameters())


def test_a_model_without_hidden_state_is_refused():
    with pytest.raises(ValueError, match="TabularLM has no hidden state for a head to read"):
        LinearHeadTwist(TabularLM.random(2, 3, seed=0))
