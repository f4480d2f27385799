"""The contract checks fail on each planted bug of a proposal or a resampler."""

from dataclasses import replace

import pytest
import torch

from tsmc_widgets.models.tabular import TabularLM
from tsmc_widgets.numerics import normalise
from tsmc_widgets.smc.proposals import Base, ModelProposal, ProposalStep, TwistInduced
from tsmc_widgets.smc.resampling import (
    invert_cdf,
    multinomial,
    residual,
    stratified,
    systematic,
)
from tsmc_widgets.testing import check_proposal, check_resampler
from tsmc_widgets.twists import TableTwist

LM = TabularLM.random(3, 7, seed=0)
TWIST = TableTwist.random(3, 4, seed=1, prompt_length=3)
MODEL = TabularLM.random(3, 7, seed=3)


class Unnormalised(TwistInduced):
    def _propose(self, lm_step, twist_step):
        return ProposalStep(lm_step.log_probs + twist_step.log_psi_next, None)


class NoFallback(TwistInduced):
    def _propose(self, lm_step, twist_step):
        joint = lm_step.log_probs + twist_step.log_psi_next
        return ProposalStep(torch.log_softmax(joint, dim=1), None)


class TopTwo(TwistInduced):
    """The least likely token is never drawn."""

    def _propose(self, lm_step, twist_step):
        log_q = TwistInduced._propose(self, lm_step, twist_step).log_q_next
        floor = log_q.topk(2, dim=1).values[:, -1:]
        return ProposalStep(torch.log_softmax(log_q.where(log_q >= floor, -torch.inf), 1), None)


class Half(Base):
    def prefill(self, tokens, lm_step, twist_step):
        return ProposalStep(lm_step.log_probs.half(), None)


class Narrow(Base):
    def prefill(self, tokens, lm_step, twist_step):
        return ProposalStep(torch.log_softmax(lm_step.log_probs[:, :2], 1), None)


class Bare(Base):
    def prefill(self, tokens, lm_step, twist_step):
        return lm_step.log_probs


class Scribbling(Base):
    def advance(self, tokens, carry, lm_step, twist_step):
        lm_step.log_probs.copy_(torch.log_softmax(2 * lm_step.log_probs, 1))
        return ProposalStep(lm_step.log_probs, None)


class ScribblingOnTwist(Base):
    def advance(self, tokens, carry, lm_step, twist_step):
        twist_step.log_psi_next.zero_()
        return ProposalStep(lm_step.log_probs, None)


class Silent(Base):
    def describe(self):
        return ""


class PromptOnly(ModelProposal):
    """A prefix read at once is taken for the prompt."""

    def prefill(self, tokens, lm_step, twist_step):
        return ModelProposal.prefill(self, tokens[:, :3], lm_step, twist_step)


class InPlace(ModelProposal):
    def advance(self, tokens, carry, lm_step, twist_step):
        step = ModelProposal.advance(self, tokens, carry, lm_step, twist_step)
        object.__setattr__(carry, "index", step.carry.index)
        object.__setattr__(carry, "length", step.carry.length)
        return step


class LastRow(ModelProposal):
    """A row whose carry was repeated answers as another."""

    def advance(self, tokens, carry, lm_step, twist_step):
        carry = replace(carry, index=carry.index.sort().values)
        return ModelProposal.advance(self, tokens, carry, lm_step, twist_step)


class Social(Base):
    def prefill(self, tokens, lm_step, twist_step):
        mixed = lm_step.log_probs + lm_step.log_probs.mean(0)
        return ProposalStep(torch.log_softmax(mixed, 1), None)

    def advance(self, tokens, carry, lm_step, twist_step):
        return self.prefill(tokens, lm_step, twist_step)


PROPOSAL_BUGS = [
    (Unnormalised(), "must sum to 1"),
    (NoFallback(), "where a row of log_psi_next is -inf"),
    (TopTwo(), "q must be above 0 wherever p0 psi is"),
    (Half(), "float32 or float64; got torch.float16"),
    (Narrow(), r"must have shape \(4, 3\); got \(4, 2\)"),
    (Bare(), "must give a ProposalStep; got Tensor"),
    (Scribbling(), "wrote into the base model's log_probs"),
    (ScribblingOnTwist(), "wrote into the twist's log_psi_next"),
    (Silent(), "one line of text; got ''"),
    (PromptOnly(MODEL), "advance and prefill of 4 tokens must agree"),
    (InPlace(MODEL), "older carry"),
    (LastRow(MODEL), "must agree"),
    (Social(), "read alone"),
    (object(), "lacks a method of the Proposal protocol"),
]


@pytest.mark.parametrize(
    ("proposal", "message"), PROPOSAL_BUGS, ids=[type(bug).__name__ for bug, _ in PROPOSAL_BUGS]
)
def test_each_planted_bug_of_a_proposal_is_caught(proposal, message):
    with pytest.raises(AssertionError, match=message):
        check_proposal(proposal, LM, TWIST)


def test_a_proposal_that_misses_texts_of_p0_needs_a_twist_that_forbids_them():
    tables = [
        torch.zeros((3,) * t).index_fill(-1, torch.tensor([1]), -torch.inf) for t in (1, 2, 3, 4)
    ]
    twist = TableTwist(tables, prompt_length=3)
    check_proposal(TwistInduced(twist), LM, twist)
    with pytest.raises(
        AssertionError, match=r"it is 0 on 4 of 12 next tokens, such as token \[1\]"
    ):
        check_proposal(TwistInduced(twist), LM)


def flattened(weights, uniforms):
    """Weights are tempered a little: 1 % more even."""
    return multinomial(0.99 * weights + 0.01 * (weights > 0) / weights.shape[1], uniforms)


def no_replacement_of_the_first(weights, uniforms):
    ancestors = multinomial(weights, uniforms)
    ancestors[:, 0] = 0
    return ancestors


def left_search(weights, uniforms):
    """A uniform of 0 picks the first particle, alive or not."""
    return torch.searchsorted(weights.cumsum(1), uniforms).clamp(max=weights.shape[1] - 1)


def unclamped(weights, uniforms):
    """Rounding may leave the last cumulative weight below a uniform."""
    return torch.searchsorted(weights.cumsum(1), uniforms, right=True)


def strata_without_noise(weights, uniforms):
    return stratified(weights, torch.full_like(uniforms, 0.5))


def residual_by_rounding(weights, uniforms):
    size = weights.shape[1]
    copies = torch.round(weights * size)
    sure = torch.searchsorted(
        copies.cumsum(1), torch.arange(size).double().expand_as(weights).contiguous(), right=True
    )
    return torch.where(sure < size, sure, multinomial(weights, uniforms)).where(
        weights.gather(1, sure.clamp(max=size - 1)) > 0, multinomial(weights, uniforms)
    )


def residual_from_whole_weights(weights, uniforms):
    """What is left over is drawn from all weights, not from the fractions."""
    size = weights.shape[1]
    ends = torch.floor(weights * size + 1e-12).cumsum(1)
    slots = torch.arange(size).double().expand_as(weights).contiguous()
    sure = torch.searchsorted(ends, slots, right=True).clamp(max=size - 1)
    return torch.where(slots < ends[:, -1:], sure, multinomial(weights, uniforms))


def shared_between_runs(weights, uniforms):
    """All runs follow the uniforms of the first."""
    return systematic(weights, uniforms[:1].expand_as(uniforms))


def pooled(weights, uniforms):
    return invert_cdf(weights.mean(0, keepdim=True).expand_as(weights), uniforms)


def in_place(weights, uniforms):
    return multinomial(
        weights.cumsum_(1).diff(dim=1, prepend=torch.zeros(len(weights), 1)), uniforms
    )


def int32(weights, uniforms):
    return multinomial(weights, uniforms).int()


def one_short(weights, uniforms):
    return multinomial(weights, uniforms)[:, 1:]


def one_too_far(weights, uniforms):
    return multinomial(weights, uniforms) + 1


def equal_weights(weights, uniforms):
    return multinomial((weights > 0).double(), uniforms)


RESAMPLER_BUGS = [
    (flattened, r"expected number of copies must be K w"),
    (no_replacement_of_the_first, "weight zero|expected number"),
    (left_search, "weight zero"),
    (unclamped, r"must lie in \[0"),
    (strata_without_noise, "expected number"),
    (residual_by_rounding, "expected number|weight zero"),
    (residual_from_whole_weights, "expected number"),
    (shared_between_runs, "order of the runs"),
    (pooled, "weight zero"),
    (in_place, "wrote into the weights"),
    (int32, "must be int64; got torch.int32"),
    (one_short, r"must have shape \(8, 1\); got \(8, 0\)"),
    (one_too_far, r"must lie in \[0, 1\); they lie in \[1, 1\]"),
    (equal_weights, "expected number"),
]


@pytest.mark.parametrize(
    ("scheme", "message"), RESAMPLER_BUGS, ids=[bug.__name__ for bug, _ in RESAMPLER_BUGS]
)
def test_each_planted_bug_of_a_resampler_is_caught(scheme, message):
    with pytest.raises(AssertionError, match=message):
        check_resampler(scheme)


@pytest.mark.parametrize("options", [{"num_particles": 1}, {"num_rows": 99}], ids=str)
def test_sizes_that_check_nothing_are_refused(options):
    with pytest.raises(ValueError, match="must be an integer of at least"):
        check_resampler(residual, **options)


def test_a_bias_of_a_hundredth_is_seen():
    weights = normalise(torch.tensor([[0.0, 1.0, 2.0]]))
    gap = (0.99 * weights + 0.01 / 3) - weights
    assert float(gap.abs().max()) < 0.004
    with pytest.raises(AssertionError, match="expected number"):
        check_resampler(flattened, num_particles=3)
