"""What one run is worth, from several signals."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from tsmc_widgets import numerics
from tsmc_widgets.evaluation.estimates import pareto_shape
from tsmc_widgets.smc import genealogy


@dataclass(frozen=True, slots=True)
class RunVerdict:
    """What one finished run is worth, and why.

    Attributes:
        level: "good", "fair", "poor", or "open" while no other run tells how far log Z_hat varies.
        reasons: in words, what decides it first.
        families: effective number of independent ancestors, 1 / sum of squared shares of the final
            weight that descend from one first token; the ESS of a run that never resampled.
        fresh_at: the step at whose start weights were made equal, where that is among the last
            tenth of the steps: the last ESS then says nothing of the run. None otherwise.
    """

    level: str
    reasons: tuple[str, ...]
    families: float
    fresh_at: int | None


FEW, SOME = 4.0, 10.0
"""Effective families below which a run is poor, and from which on it can be good."""
WIDE, NARROW = 1.0, 0.5
"""Nats of standard deviation of log Z_hat above which a run is poor, and up to which good."""


def judge_run(trace: Any, *, spread: float = math.nan, run: int = 0) -> RunVerdict:
    """Several signals in place of the last ESS, which resampling resets.

    Args:
        trace: an ``SMCTrace``, finished.
        spread: standard deviation of log Z_hat over runs that differ in noise alone, in nats; NaN
            where there are none.
        run: which of the trace's runs.
    """
    columns, steps, size = trace.columns, trace.num_steps, trace.num_particles
    # A run that a page kept has numpy's columns.
    log_weights = torch.as_tensor(columns.log_weights[run, -1]).double()
    ancestors = torch.as_tensor(columns.ancestors[run : run + 1]).long()
    weights = numerics.normalise(log_weights)
    if not bool(weights.sum() > 0):
        return RunVerdict("poor", ("all weights are 0",), 0.0, None)
    slots = genealogy.lineages(ancestors)[0, 0]
    shares = torch.zeros(size, dtype=torch.float64).index_add_(0, slots, weights)
    families, left = float(1 / (shares**2).sum()), int((shares > 0).sum())
    recent = max(1, steps // 10)
    fresh = [t + 1 for t in range(steps - recent, steps) if t and bool(columns.resampled[run, t])]
    reasons = []
    if math.isfinite(spread):
        reasons.append(f"log Ẑ varies by {spread:.2f} nats from run to run")
    else:
        reasons.append("no other run tells how far log Ẑ varies")
    reasons.append(f"weight from {families:.1f} of {size} first tokens ({left} have descendants)")
    if fresh:
        reasons.append(
            f"the ESS of {float(columns.ess[run, -1]):.0f} is fresh from resampling at step "
            f"{fresh[-1]} and says nothing of the run"
        )
    k_hat = pareto_shape(log_weights)
    trusted = min(1 - 1 / math.log10(max(2, size)), 0.7)
    if k_hat > trusted:
        reasons.append(f"a few weights decide the averages (k̂ = {k_hat:.2f}, above {trusted:.2f})")
    few, some = min(FEW, size / 2), min(SOME, 0.7 * size)
    if spread > WIDE or families < few:
        level = "poor"
    elif not math.isfinite(spread):
        level = "open"
    else:
        level = "good" if spread <= NARROW and families >= some and not k_hat > trusted else "fair"
    return RunVerdict(level, tuple(reasons), families, fresh[-1] if fresh else None)
