"""Exact samples of a target: by rejection from p0, or by drawing text and observation together."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, SupportsIndex

import numpy as np
import torch
from jaxtyping import Float64, Int
from torch import Tensor

from tsmc_widgets.errors import BudgetError, PotentialError, check_flag, check_integer
from tsmc_widgets.numerics import logmeanexp, normalise
from tsmc_widgets.targets.checked import check_bound
from tsmc_widgets.targets.context import Context, powered_samples

DEFAULT_BUDGET = 1_000_000
SMALLEST_BATCH, LARGEST_BATCH = 64, 4096


@dataclass(frozen=True, slots=True)
class ExactSamples:
    """Independent samples of sigma from rejection, and what the rejected draws tell about Z.

    Attributes:
        tokens: the samples.
        log_phi: log phi of each, in nats.
        proposed: draws from p0 that were examined.
        accepted: how many of them were accepted, surplus ones of the last batch included.
        log_z: log of the mean of phi (of p0**power phi / q) over all draws: an estimate of log Z;
            -inf if all are 0.
        log_z_standard_error: its standard error, to first order.

    Drawing stops with the batch in which the n-th sample is found, which favours lucky runs: on
    average ``acceptance_rate`` is too high by a factor of up to 1 + 1 / (n - 1), for n = 1 by one
    that grows as the rate falls, like log(1 / rate). ``log_z`` is too high by up to about
    0.5 / n + 1 / (12 n**2) nats where few draws are accepted, and by up to 0.64 / n where the
    first batch of 64 about suffices; standard errors are about 1 / sqrt(n). Where ``budget`` ends
    the search (ask for n = budget + 1), the rate and the mean are unbiased.
    """

    tokens: Int[Tensor, "n steps"]
    log_phi: Float64[Tensor, " n"]
    proposed: int
    accepted: int
    log_z: float
    log_z_standard_error: float

    @property
    def acceptance_rate(self) -> float:
        """Share of draws that were accepted; estimates Z / phi_max, a little high (see above)."""
        return self.accepted / self.proposed if self.proposed else math.nan

    @property
    def acceptance_rate_standard_error(self) -> float:
        """Standard error of the acceptance rate."""
        rate = self.acceptance_rate
        return math.sqrt(rate * (1 - rate) / self.proposed) if self.proposed else math.nan


@dataclass(frozen=True, slots=True)
class JointSamples:
    """Texts from p0, each an exact sample of the target under its own observation.

    Attributes:
        tokens: the texts.
        observed: what was observed with each: the tokens that follow, or the class index.
    """

    tokens: Int[Tensor, "n steps"]
    observed: Int[Tensor, "n width"]


def rejection_samples(
    target: Any,
    n: int,
    *,
    seed: SupportsIndex,
    budget: int = DEFAULT_BUDGET,
    progress: bool = True,
) -> ExactSamples:
    """Draw from p0 and accept with probability phi / phi_max until ``n`` samples are found.

    Where p0 has a power, q is p0 with that power at each token and p0**power / q part of phi.

    Args:
        target: a ``Target``; its potential must know an upper bound ``log_phi_max``.
        n: how many samples.
        seed: the same seed gives the same samples, with or without a progress bar.
        budget: draws from p0 at most.
        progress: whether to show a progress bar.

    Raises:
        BudgetError: the budget ended first; ``.samples`` holds what was found.
        PotentialError: no bound is known, or a text exceeds it.
        KeyboardInterrupt: its ``.samples`` holds what was found.
    """
    samples = _found(target, n, seed=seed, budget=budget, progress=progress)
    if len(samples.tokens) < n:
        raise BudgetError(_too_few(samples, n, budget), samples)
    return samples


def _found(
    target: Any, n: int, *, seed: SupportsIndex, budget: int, progress: bool
) -> ExactSamples:
    """As many of ``n`` exact samples as the budget gives; see ``rejection_samples``."""
    _check_request(n, seed, budget)
    if target.potential.is_conditional:
        raise PotentialError(
            f"{target.potential.describe()} waits for an observation: call condition(observed) "
            "first, or use joint_samples."
        )
    bound, context = target.potential.log_phi_max, target.context
    if bound is None:
        raise PotentialError(
            f"Exact samples by rejection need an upper bound on log phi, and none is known for "
            f"{target.potential.describe()}: give log_phi_max (or reward_max) to the part that has "
            "none."
        )
    check_bound(f"log_phi_max of {target.potential.describe()}", bound)
    # A power's sum over V tokens is at most 1 from a power of 1 on, and V**(1 - power) below it.
    spread = context.num_steps * math.log(context.lm.vocab_size)
    bound += max(0.0, (1 - target.power) * spread)
    search = _Search(
        target, bound, torch.Generator(target.context.lm.device).manual_seed(int(seed))
    )
    try:
        with _bar(n, progress) as bar:
            while search.accepted < n and search.proposed < budget:
                search.extend(min(search.batch_size(n), budget - search.proposed))
                bar.update(min(search.accepted, n) - bar.n)
                bar.set_postfix_str(f"{search.accepted} of {search.proposed} draws", refresh=False)
    except BaseException as error:
        error.samples = search.samples(n)  # type: ignore[attr-defined]
        raise
    return search.samples(n)


def joint_samples(
    target: Any,
    n: int,
    *,
    seed: SupportsIndex,
    budget: int = DEFAULT_BUDGET,
    progress: bool = True,
) -> JointSamples:
    """Draw texts from p0 and an observation for each: exact samples for their own observations.

    Arguments are those of ``rejection_samples``, but the potential must be p(o | s) itself, and as
    every draw is a sample no more than ``n`` are made.

    Raises:
        BudgetError: the budget is less than ``n``; ``.samples`` holds as many as it allows.
        PotentialError: the potential has no joint draw.
        KeyboardInterrupt: its ``.samples`` holds what was drawn.
    """
    _check_request(n, seed, budget)
    potential = target.potential
    if potential.draw_joint is None:
        raise PotentialError(
            f"Joint draws need a potential that is p(o | s) itself, such as Infilling or "
            f"ClassConditional; {potential.describe()} is not. Powers and products of p(o | s) "
            "have no joint draw: condition on one observation and use rejection."
        )
    generator = torch.Generator(target.context.lm.device).manual_seed(int(seed))
    most = min(n, budget)
    batches = []
    try:
        with _bar(n, progress) as bar:
            for start in range(0, most, LARGEST_BATCH):
                size = min(LARGEST_BATCH, most - start)
                batches.append(potential.draw_joint(size, generator))
                bar.update(size)
    except BaseException as error:
        error.samples = _joined(batches, target.context)  # type: ignore[attr-defined]
        raise
    samples = _joined(batches, target.context)
    if most < n:
        raise BudgetError(
            f"{n:,} exact samples by joint draw take as many draws, and the budget is {budget:,}: "
            "raise budget= or ask for fewer samples. What was drawn is in this error's .samples.",
            samples,
        )
    return samples


def _joined(batches: list[tuple[Tensor, Tensor]], context: Context) -> JointSamples:
    if not batches:
        none = context.prompt_tokens.new_empty((0, context.num_steps))
        return JointSamples(none, none.new_empty((0, 0)))
    return JointSamples(*(torch.cat(parts) for parts in zip(*batches, strict=True)))


def _check_request(n: int, seed: SupportsIndex, budget: int) -> None:
    check_integer("n", n)
    check_integer("budget", budget)
    check_integer("seed", seed, at_least=0)


@dataclass(slots=True)
class _Search:
    """Accepted draws so far and the running sums over all draws."""

    target: Any
    bound: float
    generator: torch.Generator
    proposed: int = 0
    accepted: int = 0
    log_sum: float = -math.inf
    log_sum_squares: float = -math.inf
    batches: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def batch_size(self, n: int) -> int:
        """As many draws as the acceptance rate so far asks for."""
        rate = (self.accepted + 1) / (self.proposed + 2)
        wanted = math.ceil((n - self.accepted) / rate) if self.proposed else n
        return max(SMALLEST_BATCH, min(LARGEST_BATCH, wanted))

    def extend(self, size: int) -> None:
        """Draw and judge one batch; all or nothing of it is kept."""
        context = self.target.context
        tokens, log_ratio = powered_samples(self.target, size, generator=self.generator)
        own = self.target.log_phi(tokens)
        log_phi = own + log_ratio
        worst = int(log_phi.argmax())
        if log_phi[worst] > self.bound + 1e-6 * max(1.0, abs(self.bound)):
            raise PotentialError(
                f"{self.target.potential.describe()} says log_phi_max = {self.bound:g}, and log "
                f"phi = {float(log_phi[worst]):g} for {context.show_row(tokens[worst])}: raise the "
                "bound, as exact samples depend on it."
            )
        uniforms = torch.rand(
            size, dtype=torch.float64, device=tokens.device, generator=self.generator
        )
        accepted = uniforms.log() < log_phi - self.bound
        self.batches.append((tokens[accepted], own[accepted]))
        self.log_sum = _log_add(self.log_sum, log_phi)
        self.log_sum_squares = _log_add(self.log_sum_squares, 2 * log_phi)
        self.proposed += size
        self.accepted += int(accepted.sum())

    def samples(self, n: int) -> ExactSamples:
        """The first ``n`` accepted draws, or as many as there are."""
        context = self.target.context
        none = context.prompt_tokens.new_empty((0, context.num_steps))
        tokens = torch.cat([none, *(tokens for tokens, _ in self.batches)])
        log_phi = torch.cat([none.new_empty(0).double(), *(values for _, values in self.batches)])
        log_z, error = -math.inf, math.nan
        if self.log_sum > -math.inf:
            log_z = self.log_sum - math.log(self.proposed)
            # Relative variance of phi: mean of squares over squared mean, less 1.
            ratio = self.log_sum_squares - math.log(self.proposed) - 2 * log_z
            error = math.sqrt(max(0.0, math.expm1(ratio)) / self.proposed)
        return ExactSamples(
            tokens=tokens[:n],
            log_phi=log_phi[:n],
            proposed=self.proposed,
            accepted=self.accepted,
            log_z=log_z,
            log_z_standard_error=error,
        )


def _log_add(total: float, values: Float64[Tensor, " n"]) -> float:
    return float(torch.logsumexp(torch.cat([values, values.new_tensor([total])]), 0))


def _too_few(samples: ExactSamples, n: int, budget: int) -> str:
    from scipy.stats import binomtest

    found, proposed = samples.accepted, samples.proposed
    interval = binomtest(found, proposed).proportion_ci(0.95, method="exact")
    rate = (
        f"The acceptance rate is {samples.acceptance_rate:.2g} "
        f"(95 % interval {interval.low:.2g} to {interval.high:.2g})"
    )
    if found:
        need = f"about {math.ceil(n / samples.acceptance_rate):,} draws are needed"
    else:
        need = f"more than {math.floor(n / interval.high):,} draws are needed"
    return (
        f"The budget of {budget:,} draws ended with {found} of {n} exact samples found. {rate}, "
        f"so {need}: raise budget=, ask for fewer samples or soften the potential. What was found "
        "is in this error's .samples."
    )


def _bar(total: int, progress: bool) -> Any:
    check_flag("progress", progress)
    from tqdm.auto import tqdm

    kind = "exact samples"
    return tqdm(total=total, desc=kind, unit="sample", leave=False, disable=not progress)


@dataclass(slots=True)
class ExactDraws:
    """Exact samples of sigma found so far, with what all draws from p0 say of log Z.

    Attributes:
        target: a ``Target`` whose phi has a known bound.
        seed: the same seed gives the same blocks.
        block: draws from p0 in each block.
        blocks: what each block found.
    """

    target: Any
    seed: int
    block: int = 512
    blocks: list[ExactSamples] = field(default_factory=list)

    def __len__(self) -> int:
        """Samples found."""
        return sum(len(block.tokens) for block in self.blocks)

    @property
    def proposed(self) -> int:
        """Draws from p0 so far."""
        return sum(block.proposed for block in self.blocks)

    @property
    def tokens(self) -> Int[Tensor, "n steps"]:
        """The samples, in the order in which they were found."""
        steps = self.target.num_steps
        none = self.target.prompt_tokens.new_empty((0, steps))
        return torch.cat([none, *(block.tokens for block in self.blocks)])

    @property
    def log_phi(self) -> Float64[Tensor, " n"]:
        """Log phi of each, in nats."""
        none = torch.empty(0, dtype=torch.float64, device=self.target.prompt_tokens.device)
        return torch.cat([none, *(block.log_phi for block in self.blocks)])

    @property
    def log_z(self) -> tuple[float, float]:
        """Log of the mean of phi over all draws, and its standard error, in nats."""
        log_means = torch.tensor([block.log_z for block in self.blocks], dtype=torch.float64)
        if not (log_means > -math.inf).any():
            return -math.inf, math.nan
        shares = normalise(log_means)
        errors = np.nan_to_num([block.log_z_standard_error for block in self.blocks])
        return float(logmeanexp(log_means)), float(np.linalg.norm(shares.numpy() * errors))

    def extend(self) -> None:
        """Look at one more block of texts of p0.

        Raises:
            PotentialError: no bound on phi is known.
        """
        seed = self.seed * 10_007 + len(self.blocks)
        # More than can be found, so that every draw is looked at and none is cut off.
        found = _found(self.target, self.block + 1, seed=seed, budget=self.block, progress=False)
        self.blocks.append(found)
