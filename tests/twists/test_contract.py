"""The contract check fails on each planted bug of a twist."""

import pickle
from dataclasses import replace

import pytest
import torch
from smc.toys import table_target
from torch import nn

import tsmc_widgets as tw
from tsmc_widgets.models.tabular import TabularCarry, TabularLM
from tsmc_widgets.smc.proposals import as_proposal
from tsmc_widgets.testing import check_twist
from tsmc_widgets.twists import LinearHeadTwist, TableTwist, TwistStep
from tsmc_widgets.twists.protocol import as_twist


class Shifted(TableTwist):
    """Position i of the forced pass gives log psi_i, not log psi_{i+1}."""

    def log_psi(self, tokens, prompt_length):
        return super().log_psi(tokens, prompt_length).roll(1, dims=1)


class OtherToken(TableTwist):
    def log_psi(self, tokens, prompt_length):
        return super().log_psi(tokens.roll(1, dims=0), prompt_length)


class WithPrompt(TableTwist):
    def log_psi(self, tokens, prompt_length):
        forced = super().log_psi(tokens, prompt_length)
        return torch.cat([torch.zeros(len(tokens), prompt_length), forced], dim=1)


class InPlace(TableTwist):
    """The carry is moved where it stands."""

    def advance(self, tokens, carry, lm_step):
        step = super().advance(tokens, carry, lm_step)
        object.__setattr__(carry, "index", step.carry.index)
        object.__setattr__(carry, "length", step.carry.length)
        return step


class OverwrittenIndex(TableTwist):
    def advance(self, tokens, carry, lm_step):
        step = super().advance(tokens, carry, lm_step)
        carry.index.fill_(0)
        return step


class SharedAnswer(TableTwist):
    """Every answer is written into the same tensor."""

    def __init__(self, log_tables, *, prompt_length):
        super().__init__(log_tables, prompt_length=prompt_length)
        self.buffer = {}

    def _step(self, carry):
        step = super()._step(carry)
        kept = self.buffer.setdefault(step.log_psi_next.shape, step.log_psi_next.clone())
        return replace(step, log_psi_next=kept.copy_(step.log_psi_next))


class SortedCarry(TabularCarry):
    def select(self, rows):
        return SortedCarry(self.index[rows.sort().values], self.length)


class Sorting(TableTwist):
    """A selection gives the right rows in another order."""

    def _step(self, carry):
        return replace(super()._step(carry), carry=SortedCarry(carry.index, carry.length))


class WholeCarry(TabularCarry):
    def select(self, rows):
        return WholeCarry(self.index[torch.arange(len(rows)) % len(self.index)], self.length)


class Forgetful(TableTwist):
    """A selection is not followed."""

    def _step(self, carry):
        return replace(super()._step(carry), carry=WholeCarry(carry.index, carry.length))


class LateStart(TableTwist):
    """A prefix read at once is taken for a prompt."""

    def prefill(self, tokens, lm_step):
        return super().prefill(tokens[:, : self.prompt_length + 1], lm_step)


class Social(TableTwist):
    def _step(self, carry):
        step = super()._step(carry)
        shift = step.log_psi_next.mean(0) if len(step.log_psi_next) > 1 else 0.0
        return replace(step, log_psi_next=step.log_psi_next + shift)


class ByPlace(TableTwist):
    def _step(self, carry):
        step = super()._step(carry)
        places = torch.arange(len(step.log_psi_next)).unsqueeze(1)
        return replace(step, log_psi_next=step.log_psi_next + places)


class Restless(TableTwist):
    calls = 0

    def _step(self, carry):
        self.calls += 1
        step = super()._step(carry)
        return replace(step, log_psi_next=step.log_psi_next + self.calls)


class Scribbling(TableTwist):
    def prefill(self, tokens, lm_step):
        step = super().prefill(tokens, lm_step)
        lm_step.log_probs.add_(step.log_psi_next)
        return step


class ScribblingOnTokens(TableTwist):
    def advance(self, tokens, carry, lm_step):
        step = super().advance(tokens.clone(), carry, lm_step)
        tokens.zero_()
        return step


class NotANumber(TableTwist):
    def _step(self, carry):
        step = super()._step(carry)
        return replace(step, log_psi_next=step.log_psi_next + (torch.nan if carry.length else 0.0))


class Infinite(TableTwist):
    def _step(self, carry):
        return replace(super()._step(carry), log_psi_next=-super()._step(carry).log_psi_next.log())


class Narrow(TableTwist):
    def _step(self, carry):
        step = super()._step(carry)
        return replace(step, log_psi_next=step.log_psi_next[:, 1:])


class Half(TableTwist):
    def _step(self, carry):
        step = super()._step(carry)
        return replace(step, log_psi_next=step.log_psi_next.half())


class Elsewhere(TableTwist):
    def prefill(self, tokens, lm_step):
        step = super().prefill(tokens, lm_step)
        return replace(step, log_psi_next=step.log_psi_next.to("meta"))


class ForcedElsewhere(TableTwist):
    def log_psi(self, tokens, prompt_length):
        return super().log_psi(tokens, prompt_length).to("meta")


class ForcedNaN(TableTwist):
    def log_psi(self, tokens, prompt_length):
        return super().log_psi(tokens, prompt_length) + torch.nan


class Bare(TableTwist):
    def prefill(self, tokens, lm_step):
        return super().prefill(tokens, lm_step).log_psi_next


TABLE_BUGS = [
    (Shifted, "log_psi and log_psi_next must agree on token 1"),
    (OtherToken, "log_psi and log_psi_next must agree"),
    (WithPrompt, r"log_psi must have shape \(4, 4\).*got \(4, 6\)"),
    (InPlace, "older carry"),
    (OverwrittenIndex, "older carry"),
    (SharedAnswer, "later calls wrote into an answer"),
    (Sorting, "select"),
    (Forgetful, "select"),
    (LateStart, "advance and prefill of 4 tokens must agree"),
    (Social, "row read alone"),
    (ByPlace, "in reverse order"),
    (Restless, "advance and prefill"),
    (Scribbling, "wrote into the base model's log_probs"),
    (ScribblingOnTokens, "wrote into the tokens"),
    (NotANumber, "advance to 3 tokens: log_psi_next must not be NaN"),
    (Infinite, r"below \+inf"),
    (Narrow, r"log_psi_next must have shape \(4, 3\); got \(4, 2\)"),
    (Half, "must be float32 or float64; got torch.float16"),
    (Elsewhere, "must lie on the base model's device cpu; it lies on meta"),
    (ForcedElsewhere, "log_psi must lie on the base model's device cpu; it lies on meta"),
    (ForcedNaN, "log_psi must not be NaN"),
    (Bare, "must give a TwistStep; got Tensor"),
]


def table_case(kind):
    """A twist of some kind with a few psi of exactly 1, and its base model."""
    lm = TabularLM.random(3, 6, seed=0)
    generator = torch.Generator().manual_seed(1)
    tables = [2 * torch.rand(*(3,) * t, generator=generator) for t in range(1, 5)]
    return kind([table.masked_fill(table < 0.4, 0.0) for table in tables], prompt_length=2), lm


@pytest.mark.parametrize(
    ("kind", "message"), TABLE_BUGS, ids=[kind.__name__ for kind, _ in TABLE_BUGS]
)
def test_each_planted_bug_is_caught(kind, message):
    check_twist(*table_case(TableTwist), prompt_length=2)
    with pytest.raises(AssertionError, match=message):
        check_twist(*table_case(kind), prompt_length=2)


def test_something_else_is_no_twist():
    with pytest.raises(AssertionError, match="object lacks a method of the Twist protocol"):
        check_twist(object(), TabularLM.random(2, 9, seed=0))


@pytest.mark.parametrize("options", [{"num_steps": 3}, {"batch": 1}], ids=str)
def test_sizes_that_check_nothing_are_refused(options):
    twist, lm = table_case(TableTwist)
    with pytest.raises(ValueError, match="must be an integer of at least"):
        check_twist(twist, lm, prompt_length=2, **options)


class Detached(LinearHeadTwist):
    def log_psi(self, tokens, prompt_length):
        return super().log_psi(tokens, prompt_length).detach()


class Disconnected(LinearHeadTwist):
    """The gradient is there and always zero."""

    def log_psi(self, tokens, prompt_length):
        return super().log_psi(tokens, prompt_length) * 0.0


class Thawed(LinearHeadTwist):
    """The gradient flows on into the body."""

    def log_psi(self, tokens, prompt_length):
        hidden = self.lm.teacher_force(tokens, prompt_length).hidden
        chosen = tokens[:, prompt_length:].unsqueeze(-1)
        return self.head(hidden).gather(-1, chosen).squeeze(-1)


class Owning(LinearHeadTwist):
    """The body stands among the parameters that an optimiser is given."""

    def __init__(self, lm):
        super().__init__(lm)
        self.body = lm.model


class Exploding(LinearHeadTwist):
    def log_psi(self, tokens, prompt_length):
        return super().log_psi(tokens, prompt_length).abs().sqrt()


class Training(LinearHeadTwist):
    """Dropout is on while the sampler runs."""

    def __init__(self, lm):
        super().__init__(lm)
        self.head = nn.Sequential(nn.Dropout(0.5), self.head)

    def _step(self, lm_step):
        return TwistStep(self.head(lm_step.hidden), None)

    def log_psi(self, tokens, prompt_length):
        hidden = self.lm.teacher_force(tokens, prompt_length).hidden.detach()
        return self.head(hidden).gather(-1, tokens[:, prompt_length:].unsqueeze(-1)).squeeze(-1)


TRAINED_BUGS = [
    (Detached, "must keep gradients .* keeps none"),
    (Disconnected, "must keep gradients .* all of them are zero"),
    (Thawed, "reaches the base model"),
    (Owning, "are the base model's own"),
    (Exploding, "NaN or infinite"),
    (Training, "must agree"),
]


@pytest.mark.parametrize(
    ("kind", "message"), TRAINED_BUGS, ids=[kind.__name__ for kind, _ in TRAINED_BUGS]
)
def test_each_planted_bug_of_a_trained_twist_is_caught(kind, message, gpt2):
    twist = kind(gpt2)
    with torch.no_grad():
        head = twist.head[-1] if isinstance(twist.head, nn.Sequential) else twist.head
        head.weight.fill_(0.0 if kind is Exploding else 0.1)
    with pytest.raises(AssertionError, match=message):
        check_twist(twist, gpt2, tolerance=1e-3)


class Plain:
    """A user's twist: the three methods, and no base class."""

    def __init__(self, twist):
        self.prefill, self.advance, self.log_psi = twist.prefill, twist.advance, twist.log_psi


class PlainProposal:
    """A user's proposal that follows the sampler's twist, with no base class."""

    follows_twist = True

    def __init__(self):
        induced = tw.TwistInduced()
        self.prefill, self.advance = induced.prefill, induced.advance

    def describe(self):
        return "plain"


@pytest.mark.parametrize("proposal", [tw.Base, tw.TwistInduced, PlainProposal])
def test_any_object_with_the_methods_is_a_twist_or_a_proposal(proposal):
    target = table_target(3, 3, seed=1)
    twist = TableTwist.random(3, 3, seed=2)
    settings = {"num_particles": 5, "num_runs": 2, "seed": 3, "rule": "always"}
    known = tw.TwistInduced() if proposal is PlainProposal else proposal()
    expected = tw.run_smc(target, twist=twist, proposal=known, **settings)
    found = tw.run_smc(target, twist=Plain(twist), proposal=proposal(), **settings)
    assert torch.equal(found.columns.log_weights, expected.columns.log_weights)
    assert found.info.twist == "Plain"


def test_a_users_flags_are_read_when_they_are_needed():
    user = Plain(TableTwist.random(3, 3, seed=2))
    adapted = as_twist(user)
    assert (adapted.method, adapted.link, adapted.proposal_only) == (None, "log", False)
    assert not adapted.is_conditional
    user.proposal_only, user.method = True, "dpg"
    assert (adapted.method, adapted.proposal_only) == ("dpg", True)
    assert as_proposal(tw.TwistInduced(user)).proposal_only
    assert pickle.loads(pickle.dumps(as_proposal(tw.Base()))) == tw.Base()
    with pytest.raises(ValueError, match="learned by dpg"):
        tw.SMCConfig(num_particles=4, twist=user)
