"""What holds for every form that learns."""

import copy

import pytest
import torch
from models.checkpoints import make_checkpoint
from twists.forms import FORMS, PROMPT_LENGTH, base_values, random_texts, stepped, stir

import tsmc_widgets as tw
from tsmc_widgets.errors import UnsupportedModelError
from tsmc_widgets.models import HuggingFaceLM
from tsmc_widgets.smc.proposals import TwistInduced
from tsmc_widgets.testing import check_proposal, check_twist

STEPS = 9


@pytest.fixture(params=FORMS)
def make(request):
    return FORMS[request.param]


def run(lm, **settings):
    """A run whose particles differ and are resampled; with the texts and their prompts."""
    favoured = tw.TokenFunction(lambda tokens: 0.4 * (tokens % 3 == 0).sum(-1).double())
    target = tw.Target(lm, favoured, prompt="once upon a", num_steps=STEPS)
    trace = tw.run_smc(target, num_particles=12, num_runs=2, seed=3, **settings)
    texts = trace.tokens.reshape(24, STEPS)
    return trace, torch.cat([target.prompt_tokens.expand(24, -1), texts], dim=1)


def test_contract(make, lm):
    check_twist(stir(make(lm)), lm, batch=3, num_steps=6)


def test_contract_of_a_new_twist_and_of_a_sigmoid(make, gpt2):
    check_twist(make(gpt2), gpt2, prompt_length=1, batch=2)
    check_twist(stir(make(gpt2, link="sigmoid")), gpt2, batch=2)


def test_a_new_twist_is_psi_1_and_its_proposal_p0(make, gpt2):
    tokens, lm = random_texts(gpt2), gpt2
    twist = make(lm)
    assert not bool(twist.log_psi_next(tokens, PROMPT_LENGTH).any())
    lm_step = lm.prefill(tokens)
    step = twist.prefill(tokens, lm_step)
    assert not bool(step.log_psi_next.any())
    log_q = TwistInduced().prefill(tokens, lm_step, step).log_q_next
    torch.testing.assert_close(log_q, lm_step.log_probs, rtol=0, atol=1e-6)
    check_proposal(TwistInduced(), lm, twist)


def test_a_new_sigmoid_twist_is_psi_one_half(make, gpt2):
    log_psi = make(gpt2, link="sigmoid").log_psi(random_texts(gpt2), PROMPT_LENGTH)
    assert torch.equal(log_psi, torch.full_like(log_psi, 0.5).log())


@pytest.mark.parametrize("link", ["log", "sigmoid"])
def test_a_new_twist_may_start_at_another_constant(make, gpt2, link):
    twist, tokens = make(gpt2, link=link), random_texts(gpt2)
    assert twist.is_fresh
    twist.start_at(-4.5)
    log_psi = twist.log_psi_next(tokens, PROMPT_LENGTH)
    torch.testing.assert_close(log_psi, torch.full_like(log_psi, -4.5), rtol=0, atol=1e-5)
    lm_step = gpt2.prefill(tokens)
    log_q = TwistInduced().prefill(tokens, lm_step, twist.prefill(tokens, lm_step)).log_q_next
    torch.testing.assert_close(log_q, lm_step.log_probs, rtol=0, atol=1e-5)
    assert not stir(make(gpt2, link=link)).is_fresh


def test_the_sigmoid_has_a_bound_however_far_from_its_level(make, gpt2):
    """At any level psi is near exp(raw) far below the bound, and stays below it."""
    tokens = random_texts(gpt2)
    raw = stir(make(gpt2)).log_psi_next(tokens, PROMPT_LENGTH).double()
    twist = stir(make(gpt2, link="sigmoid"))
    twist.start_at(-1e4, 7.0)
    found = twist.log_psi_next(tokens, PROMPT_LENGTH)
    torch.testing.assert_close(found, raw - 1e4, rtol=0, atol=1e-11)
    twist.start_at(6.9, 7.0)
    assert bool((twist.log_psi_next(tokens, PROMPT_LENGTH) < 7.0).all())


def test_a_sigmoid_can_not_start_at_1(make, gpt2):
    with pytest.raises(ValueError, match=r"must be < 0\.0; got 0\.0"):
        make(gpt2, link="sigmoid").start_at(0.0)


def test_sigmoid_is_the_log_sigmoid_of_the_same_values(make, gpt2):
    tokens = random_texts(gpt2)
    raw = stir(make(gpt2)).log_psi_next(tokens, PROMPT_LENGTH)
    log_psi = stir(make(gpt2, link="sigmoid")).log_psi_next(tokens, PROMPT_LENGTH)
    assert torch.equal(log_psi, torch.nn.functional.logsigmoid(raw))
    assert bool((log_psi < 0).all())


def test_a_run_records_what_teacher_forcing_gives(make, lm):
    twist = stir(make(lm))
    trace, tokens = run(lm, twist=twist, proposal=TwistInduced(), ess_threshold=0.95)
    assert bool(trace.columns.resampled.any())
    recorded = trace.paths("log_psi").reshape(24, STEPS).float()[:, :-1]
    with torch.no_grad():
        forced = twist.log_psi(tokens, PROMPT_LENGTH)[:, :-1]
    assert float(forced.std()) > 0.1
    torch.testing.assert_close(recorded, forced, rtol=0, atol=1e-4)
    # Neither disturbs what the other keeps.
    recorded = trace.paths("log_p").reshape(24, STEPS).float()
    torch.testing.assert_close(recorded, lm.log_prob(tokens, PROMPT_LENGTH), rtol=0, atol=1e-4)


def test_all_next_values_equal_those_of_stepping(make, gpt2):
    lm = gpt2
    tokens, twist = random_texts(lm), stir(make(lm))
    with torch.no_grad():
        forced = twist.log_psi_next(tokens, PROMPT_LENGTH)
    assert forced.dtype == torch.float32
    expected = stepped(twist, lm, tokens, PROMPT_LENGTH)
    torch.testing.assert_close(forced, expected, rtol=0, atol=1e-4)
    chosen = tokens[:, PROMPT_LENGTH:].unsqueeze(-1)
    log_psi = twist.log_psi(tokens, PROMPT_LENGTH)
    assert torch.equal(log_psi, forced.gather(-1, chosen).squeeze(-1))


def test_states_that_the_caller_has_are_used(make, gpt2, monkeypatch):
    tokens, twist = random_texts(gpt2), stir(make(gpt2))
    alone = twist.log_psi_next(tokens, PROMPT_LENGTH)
    with torch.no_grad():
        base = gpt2.teacher_force(tokens, PROMPT_LENGTH)
    monkeypatch.setattr(gpt2, "teacher_force", None)
    assert torch.equal(twist.log_psi_next(tokens, PROMPT_LENGTH, base), alone)
    chosen = twist.log_psi(tokens, PROMPT_LENGTH, base)
    assert torch.equal(chosen, twist.log_psi(tokens, PROMPT_LENGTH, base=base))


def test_only_the_twist_learns(make, gpt2):
    lm = gpt2
    tokens, twist = random_texts(lm), stir(make(lm))
    before, log_p = base_values(lm), lm.log_prob(tokens, 1)
    optimizer = torch.optim.Adam(twist.parameters(), lr=0.01)
    twist.train()
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = (twist.log_psi(tokens, PROMPT_LENGTH) - 1.0).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[2] < losses[0]
    assert all(p.grad is not None and bool(p.grad.any()) for p in twist.parameters())
    assert all(p.grad is None and p.requires_grad for p in lm.model.parameters())
    assert all(map(torch.equal, base_values(lm), before))
    assert torch.equal(lm.log_prob(tokens, 1), log_p)
    assert not lm.model.training


def test_training_mode_changes_no_value(make, tmp_path):
    """With dropout in the checkpoint's config, too."""
    lm = HuggingFaceLM.from_pretrained(
        make_checkpoint("gpt2", tmp_path, resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)
    )
    tokens, twist = random_texts(lm), stir(make(lm))
    expected = twist.log_psi(tokens, PROMPT_LENGTH)
    twist.train()
    assert torch.equal(twist.log_psi(tokens, PROMPT_LENGTH), expected)
    first = stepped(twist, lm, tokens, PROMPT_LENGTH)
    assert torch.equal(stepped(twist, lm, tokens, PROMPT_LENGTH), first)
    twist.eval()
    assert not twist.training


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_base_models_of_any_dtype(make, dtype, checkpoint):
    lm = HuggingFaceLM.from_pretrained(checkpoint("llama"), dtype=dtype)
    twist = make(lm)
    check_twist(twist, lm)
    tokens = random_texts(lm)
    log_psi = stir(twist).log_psi_next(tokens, PROMPT_LENGTH)
    assert log_psi.dtype == torch.float32
    assert {p.dtype for p in twist.head.parameters()} == {torch.float32}
    if dtype == torch.float64:
        # Heads round at 1e-7; what they read is exact.
        expected = stepped(twist, lm, tokens, PROMPT_LENGTH)
        torch.testing.assert_close(log_psi, expected, rtol=0, atol=1e-5)


def test_copies_share_the_base_model_and_nothing_else(make, gpt2):
    tokens, twist = random_texts(gpt2), stir(make(gpt2))
    expected = twist.log_psi(tokens, PROMPT_LENGTH)
    twist.method = "ctl"
    twin = copy.deepcopy(twist)
    assert twin.lm is twist.lm
    assert twin.method == "ctl"
    assert torch.equal(twin.log_psi(tokens, PROMPT_LENGTH), expected)
    both = [stepped(each, gpt2, tokens, PROMPT_LENGTH) for each in (twist, twin)]
    assert torch.equal(*both)
    stir(twin, seed=5)
    assert not torch.equal(twin.log_psi(tokens, PROMPT_LENGTH), expected)
    assert torch.equal(twist.log_psi(tokens, PROMPT_LENGTH), expected)


def test_what_a_new_twist_holds_is_not_up_to_the_global_seed(make, gpt2):
    torch.manual_seed(1)
    first = make(gpt2)
    torch.manual_seed(2)
    second = make(gpt2)
    pairs = zip(first.state_dict().items(), second.state_dict().items(), strict=True)
    assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def test_protocol(make, gpt2):
    twist = make(gpt2)
    assert isinstance(twist, tw.TrainableTwist)
    assert isinstance(twist, torch.nn.Module)
    assert not hasattr(twist, "condition")
    assert (twist.link, twist.method, twist.proposal_only) == ("log", None, False)
    with pytest.raises(ValueError, match="does not depend on an observation"):
        twist.log_psi_next(random_texts(gpt2), 1, observed=torch.zeros(5, dtype=torch.int64))
    with pytest.raises(ValueError, match="link must be one of log, sigmoid; got 'logit'"):
        make(gpt2, link="logit")


@pytest.mark.parametrize("make", [tw.LinearHeadTwist, tw.MLPHeadTwist], ids=["linear", "mlp"])
def test_heads_need_a_hidden_state(make):
    with pytest.raises(ValueError, match="TabularLM has no hidden state for a head to read"):
        make(tw.TabularLM.random(2, 3, seed=0))


@pytest.mark.parametrize("make", [tw.BodyTwist, tw.LoRATwist], ids=["body", "lora"])
def test_bodies_need_a_transformer(make):
    with pytest.raises(UnsupportedModelError, match="TabularLM has no transformer body"):
        make(tw.TabularLM.random(2, 3, seed=0))


def test_a_linear_head_is_w_h_plus_b_of_the_state_before_the_token(gpt2):
    tokens = torch.tensor([[5, 6, 7, 4], [8, 9, 3, 3]])
    twist = stir(tw.LinearHeadTwist(gpt2), head=1.0)
    assert set(twist.state_dict()) == {"head.weight", "head.bias", "constants"}
    hidden = gpt2.prefill(tokens[:, :2]).hidden
    expected = hidden @ twist.head.weight.T + twist.head.bias
    found = twist.log_psi(tokens, 2)[:, 0]
    torch.testing.assert_close(found, expected[[0, 1], tokens[:, 2]], rtol=0, atol=1e-4)
    twist.log_psi(torch.tensor([[5, 6, 7]]), 1).sum().backward()
    assert twist.head.bias.grad.nonzero().squeeze(1).tolist() == [6, 7]
