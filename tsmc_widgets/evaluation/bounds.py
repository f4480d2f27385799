"""Bounds on log Z from both sides, with intervals over runs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float64, Int
from scipy import stats
from torch import Tensor

from tsmc_widgets.errors import check_integer
from tsmc_widgets.smc.api import run_conditional_smc, run_smc
from tsmc_widgets.targets.target import Target


@dataclass(frozen=True, slots=True)
class MeanOverRuns:
    """A mean over independent runs.

    Attributes:
        mean: in nats; -inf where a run died.
        standard_error: of the mean; NaN for one run or where a run died.
        num_runs: how many.
    """

    mean: float
    standard_error: float
    num_runs: int

    @classmethod
    def of(cls, values: Float64[Tensor, " runs"]) -> MeanOverRuns:
        """Mean of one value for each run."""
        count = len(values)
        mean = float(values.mean())
        if count < 2 or not math.isfinite(mean):
            return cls(mean, math.nan, count)
        return cls(mean, float(values.std()) / math.sqrt(count), count)

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Student's t interval for the mean."""
        if math.isnan(self.standard_error):
            return (-math.inf, math.inf)
        reach = stats.t.ppf((1 + confidence) / 2, self.num_runs - 1) * self.standard_error
        return (self.mean - reach, self.mean + reach)


@dataclass(frozen=True, slots=True)
class LogZBounds:
    """Log Z between two means (paper, section 5): E[lower] <= log Z <= E[upper].

    Attributes:
        lower: mean of log Z_hat over forward runs.
        upper: mean of conditional log Z_hat over exact samples; None where there were none.
        num_particles: K of both.
    """

    lower: MeanOverRuns
    upper: MeanOverRuns | None
    num_particles: int

    @property
    def gap(self) -> float:
        """Upper minus lower, in nats: bounds the symmetrised KL of one SMC draw and sigma."""
        return math.nan if self.upper is None else self.upper.mean - self.lower.mean

    @property
    def gap_standard_error(self) -> float:
        """Standard error of the gap; both sides are independent."""
        if self.upper is None:
            return math.nan
        return math.hypot(self.lower.standard_error, self.upper.standard_error)


@torch.no_grad()
def log_z_bounds(
    target: Target,
    *,
    num_particles: int,
    num_runs: int,
    exact_samples: Int[Tensor, "runs steps"] | None = None,
    twist: Any = None,
    proposal: Any = None,
    rule: Any = None,
    ess_threshold: float | None = None,
    seed: int = 0,
) -> LogZBounds:
    """Bound log Z from below by forward runs and from above by conditional ones.

    Args:
        target: whose Z.
        num_particles: K, of both sides.
        num_runs: forward runs.
        exact_samples: exact samples of sigma, each used for one conditional run; approximate
            samples give no bound.
        twist: as for ``run_smc``; None is psi = 1.
        proposal: as for ``run_smc``.
        rule: as for ``run_smc``.
        ess_threshold: as for ``run_smc``.
        seed: as for ``run_smc``.
    """
    check_integer("num_runs", num_runs)
    settings = {
        "num_particles": num_particles,
        "twist": twist,
        "proposal": proposal,
        "rule": rule,
        "ess_threshold": ess_threshold,
        "seed": seed,
    }
    forward = run_smc(target, num_runs=num_runs, dead_runs="keep", **settings)
    upper = None
    if exact_samples is not None:
        backward = run_conditional_smc(target, retained=exact_samples, **settings)
        upper = MeanOverRuns.of(backward.columns.log_z[:, -1])
    return LogZBounds(MeanOverRuns.of(forward.columns.log_z[:, -1]), upper, num_particles)
