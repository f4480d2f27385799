"""Where the next token is drawn from."""

import pytest
import torch

from tsmc_widgets.models.tabular import TabularLM
from tsmc_widgets.smc.proposals import Base, ModelProposal, TwistInduced, tilt
from tsmc_widgets.testing import check_proposal
from tsmc_widgets.twists import TableTwist, TwistStep

LM = TabularLM.random(3, 7, seed=0)
TWIST = TableTwist.random(3, 4, seed=1, prompt_length=3)
OTHER_TWIST = TableTwist.random(3, 4, seed=2, prompt_length=3)
PROMPT = torch.tensor([2, 0])

PROPOSALS = {
    "base": Base(),
    "own twist": TwistInduced(),
    "other twist": TwistInduced(OTHER_TWIST),
    "model": ModelProposal(TabularLM.random(3, 7, seed=3)),
    "model with a prompt": ModelProposal(TabularLM.random(3, 6, seed=3), PROMPT, 3),
    "model with an empty prompt": ModelProposal(TabularLM.random(3, 4, seed=3), PROMPT[:0], 3),
}


def forbidding_twist():
    """A twist that rules out a third of all prefixes."""
    generator = torch.Generator().manual_seed(5)
    tables = [torch.randn(*(3,) * t, generator=generator) for t in range(1, 5)]
    tables = [table.masked_fill(table < -0.4, -torch.inf) for table in tables]
    return TableTwist(tables, prompt_length=3)


@pytest.mark.parametrize("twist", [None, TWIST, forbidding_twist()], ids=["none", "own", "zeros"])
@pytest.mark.parametrize("name", PROPOSALS)
def test_contract(name, twist):
    for seed in range(2):
        check_proposal(PROPOSALS[name], LM, twist, seed=seed, tolerance=1e-12)


def test_base_is_p0():
    tokens = torch.tensor([[0, 1], [2, 2]])
    lm_step = LM.prefill(tokens)
    assert Base().prefill(tokens, lm_step, None).log_q_next is lm_step.log_probs


@pytest.mark.parametrize("other", [None, OTHER_TWIST], ids=["own", "other"])
def test_twist_induced_is_p0_psi_normalised(other):
    tokens = torch.tensor([[0, 1, 2, 0], [2, 2, 1, 1]])
    lm_step = LM.prefill(tokens)
    twist_step = TWIST.prefill(tokens, lm_step)
    followed = twist_step if other is None else other.prefill(tokens, lm_step)
    expected = lm_step.log_probs.exp() * followed.log_psi_next.exp()
    expected = expected / expected.sum(1, keepdim=True)
    log_q = TwistInduced(other).prefill(tokens, lm_step, twist_step).log_q_next
    torch.testing.assert_close(log_q.exp(), expected, rtol=0, atol=1e-14)


def test_twist_induced_without_a_twist_is_p0():
    tokens = torch.tensor([[0, 1]])
    lm_step = LM.prefill(tokens)
    assert torch.equal(TwistInduced().prefill(tokens, lm_step, None).log_q_next, lm_step.log_probs)


def test_a_constant_factor_of_psi_changes_nothing():
    generator = torch.Generator().manual_seed(0)
    log_probs = torch.log_softmax(torch.randn(4, 9, generator=generator).double(), dim=1)
    log_psi = torch.randn(4, 9, generator=generator).double()
    shift = torch.tensor([[-800.0], [0.0], [5.0], [800.0]]).double()
    torch.testing.assert_close(
        tilt(log_probs, log_psi + shift), tilt(log_probs, log_psi), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("shift", [0.0, 1e4, -3e4])
def test_a_large_psi_leaves_its_digits_to_a_model_in_float32(shift):
    generator = torch.Generator().manual_seed(0)
    log_probs, log_psi = torch.randn(2, 40, 7, generator=generator, dtype=torch.float64)
    log_probs = log_probs.log_softmax(-1)
    expected, large = (log_probs + log_psi).log_softmax(-1), log_psi + shift
    assert float((tilt(log_probs.float(), large) - expected).abs().max()) < 2e-6
    if shift:
        rounded = (log_probs.float() + large.float()).log_softmax(-1)
        assert float((rounded - expected).abs().max()) > 1e-4


def test_rows_that_psi_forbids_whole_fall_back_to_p0():
    log_probs = torch.tensor([[0.2, 0.8], [0.5, 0.5], [0.0, 1.0]]).log()
    forbidden = -torch.inf
    log_psi = torch.tensor([[forbidden, forbidden], [0.0, forbidden], [1.0, forbidden]])
    expected = torch.tensor([[0.2, 0.8], [1.0, 0.0], [0.0, 1.0]])
    torch.testing.assert_close(tilt(log_probs, log_psi).exp(), expected, rtol=0, atol=1e-7)
    lm_step = LM.prefill(torch.tensor([[0]]))
    dead = TwistStep(torch.full((1, 3), forbidden), None)
    step = TwistInduced().advance(torch.tensor([0]), None, lm_step, dead)
    assert torch.equal(step.log_q_next, lm_step.log_probs)


def test_another_prompt_stands_in_the_place_of_the_targets():
    model = TabularLM.random(3, 6, seed=3)
    proposal = ModelProposal(model, PROMPT, prompt_length=3)
    tokens = torch.tensor([[1, 1, 1, 0, 2], [0, 0, 1, 2, 2]])
    found = proposal.prefill(tokens, LM.prefill(tokens), None).log_q_next
    expected = model.prefill(torch.tensor([[2, 0, 0, 2], [2, 0, 2, 2]])).log_probs
    assert torch.equal(found, expected)


def test_a_prompt_without_the_length_of_the_targets_is_refused():
    with pytest.raises(ValueError, match=r"go together: give both.* got prompt_length=None"):
        ModelProposal(LM, PROMPT)
    with pytest.raises(ValueError, match=r"go together: give both.* got prompt_length=3"):
        ModelProposal(LM, prompt_length=3)


def test_another_vocabulary_is_refused():
    tokens = torch.tensor([[0, 1]])
    proposal = ModelProposal(TabularLM.random(2, 4, seed=0))
    with pytest.raises(ValueError, match="model has 2 tokens and the base model 3"):
        proposal.prefill(tokens, LM.prefill(tokens), None)


def test_descriptions():
    described = [proposal.describe() for proposal in PROPOSALS.values()]
    assert described[:4] == [
        "base model",
        "twist-induced",
        "induced by another twist",
        "another model (TabularLM)",
    ]
