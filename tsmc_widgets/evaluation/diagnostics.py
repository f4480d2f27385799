"""What runs tell of a twist: weights, survivors and divergences, step by step."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from tsmc_widgets import numerics
from tsmc_widgets.errors import check_integer, import_extra
from tsmc_widgets.evaluation.intervals import MeanOverRuns, PooledOverRuns, t_interval, welch
from tsmc_widgets.evaluation.log_z import LogZ
from tsmc_widgets.evaluation.prefixes import (
    families,
    log_psi_path,
    normalised_log,
    rollout_log_phi,
)
from tsmc_widgets.smc import genealogy
from tsmc_widgets.smc.api import run_smc
from tsmc_widgets.smc.exact import EnumeratedOracle
from tsmc_widgets.smc.trace import SMCTrace
from tsmc_widgets.targets.target import Target

if TYPE_CHECKING:
    import pandas as pd


def increment_variance(trace: SMCTrace) -> pd.DataFrame:
    """How uneven each step makes the weights, as a mean over runs with its 95 % t-interval.

    Columns: t; variance, that of the log increment among living particles, weighted as they stood
    before the step (nats squared), with standard_error, low and high; relative_variance, that of
    the increment itself over its squared mean, which is what the step costs (0 is free); and
    num_runs. Runs in which all particles died before a step are left out of it.
    """
    columns, records = trace.columns, []
    for t in range(trace.steps_done):
        before = columns.log_weights[:, t - 1] if t else torch.zeros_like(columns.log_p[:, 0])
        before = torch.where(columns.resampled[:, t].unsqueeze(1), 0.0, before)
        weights = numerics.normalise(before)
        alive = weights.sum(1) > 0
        spread, relative = _spread(weights[alive], columns.log_increment[:, t][alive])
        mean = MeanOverRuns.of(spread) if len(spread) else MeanOverRuns(math.nan, math.nan, 0)
        low, high = mean.interval()
        records.append(
            {
                "t": t + 1,
                "variance": mean.mean,
                "standard_error": mean.standard_error,
                "low": low,
                "high": high,
                "relative_variance": float(relative.mean()) if len(relative) else math.nan,
                "num_runs": len(spread),
            }
        )
    return _frame(records)


def profiles(trace: SMCTrace) -> pd.DataFrame:
    """ESS and surviving ancestors as shares of K, step by step, with 95 % t-intervals over runs.

    Columns: t, quantity ("ESS" or "surviving ancestors"), mean, low, high, num_runs,
    num_particles. An ancestor survives if a particle of the last step descends from it.
    """
    survivors = genealogy.surviving_ancestors(trace.columns.ancestors).double()
    records = []
    for quantity, values in (("ESS", trace.columns.ess), ("surviving ancestors", survivors)):
        for t in range(trace.steps_done):
            mean = MeanOverRuns.of(values[:, t].double() / trace.num_particles)
            low, high = mean.interval()
            records.append(
                {
                    "t": t + 1,
                    "quantity": quantity,
                    "mean": mean.mean,
                    "low": low if mean.num_runs > 1 else math.nan,
                    "high": high if mean.num_runs > 1 else math.nan,
                    "num_runs": mean.num_runs,
                    "num_particles": trace.num_particles,
                }
            )
    return _frame(records)


def run_diagnostics(trace: SMCTrace, *, lag: int | None = None) -> pd.DataFrame:
    """What each run alone says of its own quality, one row a run.

    Columns: run; log_z in nats; single_run_variance, the run's own estimate of the variance of its
    log Z_hat (``SMCTrace.log_z_variance``; may be negative); k_hat, the Pareto shape of the last
    weights (averages cannot be trusted above about 0.7); ess and survivors, the last ESS and the
    first step's surviving ancestors, as shares of K. The true variance over runs is that of log_z.
    """
    variance = torch.as_tensor(trace.log_z_variance(lag=lag), dtype=torch.float64).reshape(-1)
    k_hat = torch.as_tensor(trace.k_hat(), dtype=torch.float64).reshape(-1)
    survivors = genealogy.surviving_ancestors(trace.columns.ancestors)[:, 0]
    columns = {
        "run": torch.arange(trace.num_runs),
        "log_z": trace.columns.log_z[:, -1],
        "single_run_variance": variance,
        "k_hat": k_hat,
        "ess": trace.columns.ess[:, -1] / trace.num_particles,
        "survivors": survivors / trace.num_particles,
    }
    return import_extra("pandas", "lab", "a table of diagnostics").DataFrame(
        {name: values.numpy() for name, values in columns.items()}
    )


@torch.no_grad()
def step_divergences(target: Target, twist: Any, oracle: EnumeratedOracle) -> pd.DataFrame:
    """KL(sigma_t || pi_t) of every step by enumeration, in nats: columns t, value, low, high, kind.

    sigma_t is the marginal of sigma over s_{1:t}, pi_t is proportional to p0 psi_t; at T they are
    equal. An optimal twist has 0 at every step.

    Args:
        target: sigma.
        twist: psi.
        oracle: ``EnumeratedOracle(target)``.
    """
    log_psi = log_psi_path(target, twist, oracle.tokens)
    records = []
    for t in range(1, target.num_steps + 1):
        family = families(oracle.tokens, t).cpu()
        first = torch.full((int(family.max()) + 1,), len(family)).scatter_reduce(
            0, family, torch.arange(len(family)), "amin"
        )
        log_sigma = numerics.group_logsumexp(oracle.log_sigma, family)
        log_pi = normalised_log(
            numerics.group_logsumexp(oracle.log_p, family) + log_psi[first, t - 1]
        )
        terms = log_sigma.exp() * (log_sigma - log_pi)
        value = float(torch.where(log_sigma == -math.inf, 0.0, terms).sum())
        records.append({"t": t, "value": value, "low": value, "high": value, "kind": "exact"})
    return _frame(records)


@torch.no_grad()
def estimate_step_divergences(
    target: Target,
    twist: Any,
    exact_samples: Any,
    *,
    log_z: Any,
    num_particles: int = 64,
    num_runs: int = 40,
    rollouts: int = 32,
    seed: int = 0,
) -> pd.DataFrame:
    """KL(sigma_t || pi_t) = E_sigma[log psi*_t - log psi_t] + log Z_t - log Z, estimated.

    log Z_t comes from sweeps with the twist. log psi* of each sample's prefix comes from rollouts
    of p0: their log mean is too low on average, and with the sample's own ending among them too
    high, so the truth is between both (up to the sampling error that ``low`` and ``high`` carry).

    Args:
        target: sigma.
        twist: psi; one that can weigh.
        exact_samples: exact samples of sigma.
        log_z: log Z, as ``LogZ.of`` reads it.
        num_particles: K of the sweeps.
        num_runs: sweeps.
        rollouts: texts for each sample and step.
        seed: of sweeps and rollouts.

    Returns:
        Columns t, value (the middle, or the upper side where a rollout's mean is 0), low, high,
        kind ("estimate", "upper estimate"), for t = 1..T-1.
    """
    check_integer("rollouts", rollouts, at_least=2)
    tokens = torch.as_tensor(getattr(exact_samples, "tokens", exact_samples))
    known = LogZ.of(log_z)
    log_psi, log_phi = log_psi_path(target, twist, tokens), target.log_phi(tokens).cpu()
    sweeps = run_smc(
        target, num_particles=num_particles, num_runs=num_runs, twist=twist, seed=seed,
        dead_runs="keep",
    )  # fmt: skip
    records = []
    for t in range(1, target.num_steps):
        lower, upper = _rolled(target, tokens, log_phi, t, rollouts, seed)
        norm = PooledOverRuns.of(sweeps.columns.log_z[:, t - 1])
        ends = []
        for log_star in (lower, upper):
            mean = MeanOverRuns.of(log_star - log_psi[:, t - 1])
            error, freedom = welch(
                (mean.standard_error, mean.num_runs - 1),
                (norm.standard_error, norm.effective_runs - 1),
                (known.standard_error, known.freedom),
            )
            value = mean.mean + norm.value - known.value
            low, high = t_interval(value, error, freedom)
            ends.append((value, low - known.slack, high + known.slack))
        sure = math.isfinite(ends[0][0])
        records.append(
            {
                "t": t,
                "value": (ends[0][0] + ends[1][0]) / 2 if sure else ends[1][0],
                "low": ends[0][1],
                "high": ends[1][2],
                "kind": "estimate" if sure else "upper estimate",
            }
        )
    return _frame(records)


def _rolled(
    target: Target,
    tokens: Int[Tensor, "n steps"],
    log_phi: Float64[Tensor, " n"],
    t: int,
    rollouts: int,
    seed: int,
) -> tuple[Float64[Tensor, " n"], Float64[Tensor, " n"]]:
    """Log psi*_t of each sample's prefix, too low and too high on average."""
    generator = torch.Generator(target.lm.device).manual_seed(seed * 10_007 + 7_001 + t)
    rolled = torch.stack([rollout_log_phi(target, row[:t], rollouts, generator) for row in tokens])
    own = torch.cat([rolled[:, 1:], log_phi.unsqueeze(1)], dim=1)
    return numerics.logmeanexp(rolled), numerics.logmeanexp(own)


def _spread(
    weights: Float64[Tensor, "runs particles"], increments: Float64[Tensor, "runs particles"]
) -> tuple[Float64[Tensor, " runs"], Float64[Tensor, " runs"]]:
    """Weighted variance of log increments that are finite, and relative variance of all."""
    alive = torch.isfinite(increments) & (weights > 0)
    living = torch.where(alive, weights, 0.0)
    living = living / living.sum(1, keepdim=True).clamp(min=1e-300)
    logs = torch.where(alive, increments, 0.0)
    mean = (living * logs).sum(1, keepdim=True)
    variance = (living * (logs - mean) ** 2).sum(1)
    peak = torch.where(alive, increments, -math.inf).amax(1, keepdim=True)
    ratio = torch.where(alive, (increments - torch.where(alive.any(1, True), peak, 0.0)).exp(), 0.0)
    first, second = (weights * ratio).sum(1), (weights * ratio**2).sum(1)
    return variance, second / (first**2).clamp(min=1e-300) - 1


def _frame(records: list[dict[str, Any]]) -> pd.DataFrame:
    return import_extra("pandas", "lab", "a table of diagnostics").DataFrame(records)
