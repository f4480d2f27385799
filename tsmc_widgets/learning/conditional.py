"""Batches under many observations o: joint draws, and a group of texts for each o."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from tsmc_widgets.errors import check_integer
from tsmc_widgets.learning.objectives import draws_from_base, reads_positives
from tsmc_widgets.learning.positives import (
    PlainBatches,
    Positives,
    ReplayedPositives,
    WeightedPositives,
)
from tsmc_widgets.learning.samples import Samples, draw_samples, read
from tsmc_widgets.models.protocol import TeacherForced
from tsmc_widgets.smc.api import run_conditional_smc
from tsmc_widgets.smc.proposals import TwistInduced, following
from tsmc_widgets.targets.exact_samples import JointSamples
from tsmc_widgets.targets.protocol import ConditionalPotential, Constant
from tsmc_widgets.targets.target import Target
from tsmc_widgets.twists.protocol import as_twist

BLOCK = 1024
# Far from the seeds that people choose, so that no held-out draw is ever trained on.
SEEDS = 2**52


class JointStream:
    """Endless sequence of joint draws (s, o); the i-th depends on the seed alone.

    They are drawn in blocks, as many small batches would take far longer.
    """

    def __init__(self, target: Target, seed: int) -> None:
        """Take a target whose potential is p(o | s) itself."""
        self.target, self.seed = target, seed
        self._blocks: dict[int, JointSamples] = {}

    def take(self, first: int, n: int) -> JointSamples:
        """Draws ``first`` to ``first + n - 1``."""
        wanted = range(first // BLOCK, (first + n - 1) // BLOCK + 1)
        self._blocks = {index: self._block(index) for index in wanted}
        blocks, start = list(self._blocks.values()), first - wanted[0] * BLOCK
        parts = (
            torch.cat([getattr(block, name) for block in blocks])[start : start + n]
            for name in ("tokens", "observed")
        )
        return JointSamples(*parts)

    def _block(self, index: int) -> Any:
        if index in self._blocks:
            return self._blocks[index]
        seed = SEEDS + (self.seed * 1_000_003 + index) % SEEDS
        return self.target.exact_samples(BLOCK, seed=seed, progress=False)


# Address of the first conditional run, apart from those of the forward ones.
CONDITIONAL_RUNS = 2**40
# Losses whose weights of the batch are normalised within each group.
SELF_NORMALISED = ("ctl", "nvi")
# Losses that read no phi where samples of sigma are exact or weighted already.
NO_PHI = ("ctl", "sixo", "dpg")
# Observations whose sequences are weighted for the record where no loss asks for it.
RECORDED = 4


@runtime_checkable
class ConditionalPositives(Protocol):
    """A source of samples of sigma(. | o) for the observations of an update.

    Their log phi may be NaN where it would have to be computed for nothing else: it is filled in
    where a loss reads it.
    """

    def draw_given(
        self, target: Target, twist: Any, joint: JointSamples, *, seed: int, run: int
    ) -> Samples:
        """Samples for each observation, the i-th of which is group i.

        Args:
            target: conditional.
            twist: conditional too.
            joint: the observations, each with the text that it was drawn with.
            seed: of the noise.
            run: address of the first observation's noise.
        """
        ...

    def describe(self) -> str:
        """The source in a few words."""
        ...


@dataclass(frozen=True, slots=True)
class JointPositives:
    """One exact sample for each o: the text that it was drawn with."""

    def draw_given(
        self, target: Target, twist: Any, joint: JointSamples, *, seed: int, run: int
    ) -> Samples:
        """The texts of the joint draws."""
        group = torch.arange(len(joint.tokens), device=joint.tokens.device)
        unknown = torch.full_like(group, math.nan, dtype=torch.float64)
        return Samples.equal(joint.tokens, unknown, group=group, observed=joint.observed)

    def describe(self) -> str:
        """The source in a few words."""
        return "joint draws"


@dataclass(frozen=True, slots=True)
class RetainedPositives:
    """Conditional SMC with the exact sample retained: several weighted samples for each o.

    Where the retained text is exact, the weighted particles have sigma's expectations without
    bias (Andrieu et al. 2010), at any number of particles; more of them leave less noise.

    Attributes:
        num_particles: for each observation, the retained text included.
    """

    num_particles: int = 4

    def __post_init__(self) -> None:
        check_integer("num_particles", self.num_particles, at_least=2)

    def draw_given(
        self, target: Target, twist: Any, joint: JointSamples, *, seed: int, run: int
    ) -> Samples:
        """Final particles, weighted for sigma within each run."""
        trace = run_conditional_smc(
            target,
            retained=joint,
            num_particles=self.num_particles,
            seed=seed,
            first_run=CONDITIONAL_RUNS + run,
            **following(twist),
        )
        return Samples.of_paths(trace).to(joint.tokens.device)

    def describe(self) -> str:
        """The source in a few words."""
        return f"conditional SMC, {self.num_particles} particles"


@dataclass(kw_only=True)
class ManyObservations(PlainBatches):
    """What an update of a conditional twist learns from: many o, a group of texts for each.

    The potential is p(o | s) itself. With ``from_base`` each text of the batch is one that was
    drawn with another o, so that one draw serves many observations (the many-rollout form).

    Attributes:
        reads_phi: whether the loss reads log phi. Where it does not, phi is computed for the first
            observations alone, for the record, and is NaN elsewhere.
    """

    reads_phi: bool = True

    def __post_init__(self) -> None:
        target = self.target
        self._stream = JointStream(target, self.seed)
        self._unweighed = target.with_potential(Unweighed())

    @property
    def particles(self) -> int:
        """Texts of the batch for each observation."""
        return self.num_texts // self.observations

    def draw(self, address: int) -> tuple[Samples, Samples | None]:
        """The batch and the samples of sigma of the update with this address."""
        run = address * self.observations
        joint = self._stream.take(run, self.observations)
        if self.from_base:
            batch = rolled_out(self.target, joint, self.particles)
        else:
            batch = draw_samples(
                self._unweighed,
                num_particles=self.particles,
                proposal=TwistInduced(self.twist),
                seed=self.seed,
                run=run,
                observed=joint.observed,
            )
        weighted = self.observations if self.reads_phi else RECORDED
        batch = with_phi(self.target, batch, weighted)
        if self.positives is None:
            return batch, None
        if isinstance(self.positives, WeightedPositives):
            return batch, batch
        at_sigma = self.positives.draw_given(
            self.target, self.twist, joint, seed=self.seed, run=run
        )
        if self.reads_phi and bool(at_sigma.log_phi.isnan().any()):
            log_phi = self.target.log_phi_given(at_sigma.tokens, at_sigma.observed)
            at_sigma = replace(at_sigma, log_phi=log_phi)
        return batch, at_sigma


class Unweighed(ConditionalPotential):
    """Phi = 1 for every o: texts are drawn from a proposal before anything weighs them."""

    def condition(self, observed: Any) -> Constant:
        """Phi = 1."""
        return Constant()

    def log_phi_given(
        self, tokens: Int[Tensor, "batch steps"], observed: Int[Tensor, "batch width"]
    ) -> Float64[Tensor, " batch"]:
        """Zeros."""
        return torch.zeros(len(tokens), dtype=torch.float64, device=tokens.device)


def with_phi(target: Target, samples: Samples, groups: int) -> Samples:
    """Unweighed samples weighted by phi in the first groups, and by NaN in the others."""
    rows = samples.group < groups
    pairs = torch.cat([samples.observed, samples.tokens], dim=1)[rows]
    distinct, places = torch.unique(pairs, dim=0, return_inverse=True)
    width = samples.observed.shape[1]
    log_phi = torch.full_like(samples.log_weights, math.nan)
    log_phi[rows] = target.log_phi_given(distinct[:, width:], distinct[:, :width])[places]
    return replace(samples, log_phi=log_phi, log_weights=samples.log_weights + log_phi)


def rolled_out(target: Target, joint: JointSamples, texts: int) -> Samples:
    """Unweighed texts of p0 for each o, from among those drawn with other observations.

    Args:
        target: conditional.
        joint: n observations, each with its text.
        texts: for each observation, at most n - 1.
    """
    count = len(joint.tokens)
    base = read(target, joint.tokens)
    own = torch.arange(count, device=joint.tokens.device)
    shifts = torch.arange(1, texts + 1, device=joint.tokens.device)
    rows = ((own.unsqueeze(1) + shifts) % count).reshape(-1)
    tokens, observed = joint.tokens[rows], joint.observed.repeat_interleave(texts, dim=0)
    log_q = base.chosen(joint.tokens).double()[rows]
    if target.ending is not None:
        log_q = torch.where(target.ending.after(tokens), 0.0, log_q)
    hidden = None if base.hidden is None else base.hidden[rows]
    return Samples(
        tokens=tokens,
        log_q=log_q,
        log_weights=torch.zeros_like(log_q[:, 0]),
        log_phi=torch.zeros_like(log_q[:, 0]),
        group=own.repeat_interleave(texts),
        observed=observed,
        base=TeacherForced(base.log_probs[rows], hidden),
    )


def make_batches(
    target: Target,
    twist: Any,
    *,
    weights: Mapping[str, float],
    batch_size: int,
    observations: int | None,
    positives: Positives | ConditionalPositives | None,
    seed: int,
    stride: int,
    others: int = 0,
) -> PlainBatches:
    """How updates are drawn: under many observations where the target waits for them.

    Args:
        target: what the twist is for.
        twist: the twist.
        weights: of losses by name.
        batch_size: texts of an update.
        observations: how many share them; None gives each ``PARTICLES``, or a few more.
        positives: where samples of sigma come from; None is ``JointPositives`` for many
            observations, else ``ReplayedPositives``.
        seed: of all noise.
        stride: addresses from one update to the next, for sources that count updates.
        others: tokens of q at each prefix for later steps on the same batch.

    Raises:
        TypeError: a twist or positives of the wrong kind.
        ValueError: numbers that do not fit each other or the method.
    """
    what, from_base = target.potential.describe(), draws_from_base(weights)
    batches = {"target": target, "twist": twist, "num_texts": batch_size, "from_base": from_base}
    batches |= {"seed": seed, "stride": stride, "others": others}
    if not target.is_conditional:
        _check_plain(what, twist, observations, positives)
        source = ReplayedPositives(target, seed) if positives is None else positives
        return PlainBatches(positives=source if reads_positives(weights) else None, **batches)
    if not as_twist(twist).is_conditional:
        raise TypeError(
            f"{what} waits for an observation, and {type(twist).__name__} takes none: use "
            "ConditionalHeadTwist or ConditionalBodyTwist, or train for one observation with "
            "target.condition(observed)."
        )
    if target.potential.draw_joint is None:
        raise ValueError(
            f"{what} has no joint draw: only p(o | s) itself, such as Infilling or "
            "ClassConditional, gives observations to train on. Condition on one observation."
        )
    if positives is not None and not isinstance(
        positives, ConditionalPositives | WeightedPositives
    ):
        raise TypeError(
            f"positives for many observations must be JointPositives(), RetainedPositives() or "
            f"WeightedPositives(); got {type(positives).__name__}."
        )
    if observations is None:
        few = range(max(1, batch_size // PARTICLES), 0, -1)
        observations = next(each for each in few if batch_size % each == 0)
    _check_numbers(weights, batch_size, observations, positives, from_base)
    source = JointPositives() if positives is None else positives
    return ManyObservations(
        positives=source if reads_positives(weights) else None,
        observations=observations,
        reads_phi=isinstance(source, WeightedPositives) or not {*weights} <= {*NO_PHI},
        **batches,
    )


# Texts for each observation, or a few more, where their number is not given.
PARTICLES = 2


def _check_plain(what: str, twist: Any, observations: int | None, positives: Any) -> None:
    if as_twist(twist).is_conditional:
        raise TypeError(
            f"{type(twist).__name__} depends on an observation and {what} has none: use "
            "MLPHeadTwist or BodyTwist."
        )
    if positives is not None and not isinstance(positives, Positives | ConditionalPositives):
        raise TypeError(
            "positives must be a source such as ReplayedPositives(target), ExactPool(tokens, "
            f"log_phi) or WeightedPositives(); got {type(positives).__name__}."
        )
    if observations is not None:
        raise ValueError(
            f"observations={observations} needs a target that waits for observations; {what} "
            "does not."
        )
    if isinstance(positives, ConditionalPositives) and not isinstance(positives, Positives):
        raise TypeError(
            f"{type(positives).__name__} gives samples for many observations, and {what} waits "
            "for none: use ExactPool or WeightedPositives."
        )


def _check_numbers(
    weights: Mapping[str, float],
    batch_size: int,
    observations: int,
    positives: Any,
    from_base: bool,
) -> None:
    check_integer("observations", observations)
    particles, rest = divmod(batch_size, observations)
    if rest or not particles:
        raise ValueError(
            f"batch_size must be a multiple of observations, so that each has as many texts; got "
            f"batch_size={batch_size} and observations={observations}."
        )
    normalised = [name for name in weights if name in SELF_NORMALISED]
    if isinstance(positives, WeightedPositives):
        normalised.append("WeightedPositives")
    if normalised and particles < 2:
        raise ValueError(
            f"{normalised[0]} normalises weights among the texts of one observation, which takes "
            f"at least 2 of them; got batch_size={batch_size} for observations={observations}: "
            "raise batch_size or lower observations."
        )
    if from_base and particles >= observations:
        raise ValueError(
            f"{next(iter(weights))} reads each text under observations that were drawn with other "
            f"texts, so observations must exceed the {particles} texts that each gets of "
            f"batch_size={batch_size}; got {observations}: raise observations."
        )
