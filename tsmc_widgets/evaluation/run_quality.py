"""Quality of runs: ESS, survivors and variances step by step, a verdict, and what factors do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from tsmc_widgets import numerics
from tsmc_widgets.evaluation.estimates import frame_of, mean_within, pareto_shape
from tsmc_widgets.smc import genealogy
from tsmc_widgets.smc.trace import SMCTrace, check_trace
from tsmc_widgets.targets.checked import as_numbers
from tsmc_widgets.targets.context import part_log_phi
from tsmc_widgets.targets.protocol import Potential
from tsmc_widgets.targets.target import Target

if TYPE_CHECKING:
    import pandas as pd


def increment_variance(trace: SMCTrace) -> pd.DataFrame:
    """How uneven each step makes the weights, as a mean over runs with its 95 % interval.

    Columns: t; variance, that of the log increment among living particles, weighted as they stood
    before the step (nats squared), with low and high, as of ``mean_within``; relative_variance,
    that of the increment itself over its squared mean, which is what the step costs (0 is free);
    and num_runs. Runs in which all particles died before a step are left out of it.
    """
    columns, records = trace.columns, []
    for t in range(trace.steps_done):
        before = columns.log_weights[:, t - 1] if t else torch.zeros_like(columns.log_p[:, 0])
        before = torch.where(columns.resampled[:, t].unsqueeze(1), 0.0, before)
        weights = numerics.normalise(before)
        alive = weights.sum(1) > 0
        spread, relative = _spread(weights[alive], columns.log_increment[:, t][alive])
        mean = dict(zip(("variance", "low", "high"), mean_within(spread), strict=True))
        more = {"relative_variance": float(relative.mean()), "num_runs": len(spread)}
        records.append({"t": t + 1} | mean | more)
    return frame_of(records)


def shares_of_particles(traces: Sequence[SMCTrace]) -> dict[str, Float64[Tensor, "runs steps"]]:
    """ESS and surviving ancestors of all runs of some traces, as shares of K.

    An ancestor survives if a particle of the last step descends from it.
    """
    survivors = [genealogy.surviving_ancestors(trace.columns.ancestors) for trace in traces]
    columns = {
        "ESS": [trace.columns.ess for trace in traces],
        "surviving ancestors": survivors,
    }
    size = traces[0].num_particles
    return {name: torch.cat(parts).double() / size for name, parts in columns.items()}


def profiles(trace: SMCTrace) -> pd.DataFrame:
    """ESS and surviving ancestors as shares of K, step by step, with 95 % intervals over runs.

    Columns: t, quantity ("ESS" or "surviving ancestors"), mean, low and high, as of
    ``mean_within``, num_runs, num_particles. At T all survive, by definition.
    """
    records = []
    for quantity, shares in shares_of_particles([trace]).items():
        for t, share in enumerate(shares.T.contiguous(), start=1):
            row = dict(zip(("mean", "low", "high"), mean_within(share, 1.0), strict=True))
            if quantity == "surviving ancestors" and t == trace.steps_done and len(share) > 1:
                row |= {"low": 1.0, "high": 1.0}
            counts = {"num_runs": len(share), "num_particles": trace.num_particles}
            records.append({"t": t, "quantity": quantity} | row | counts)
    return frame_of(records)


def run_diagnostics(trace: SMCTrace, *, lag: int | None = None) -> pd.DataFrame:
    """What each run alone says of its own quality, one row a run.

    Columns: run; log_z in nats; single_run_variance, the run's own estimate of the variance of its
    log Z_hat (``SMCTrace.log_z_variance``; may be negative; NaN where one run cannot tell, as under
    systematic resampling); k_hat, the Pareto shape of the last
    weights (averages cannot be trusted above about 0.7); ess and survivors, the last ESS and the
    first step's surviving ancestors, as shares of K. The true variance over runs is that of log_z.
    """
    variance = torch.full((trace.num_runs,), math.nan, dtype=torch.float64)
    if trace.tells_variance:
        variance[:] = torch.as_tensor(trace.log_z_variance(lag=lag))
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
    return frame_of({name: values.numpy() for name, values in columns.items()})


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
    reasons.append(
        f"{left} of {size} first tokens have descendants of positive weight (effective number "
        f"{families:.1f})"
    )
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


@dataclass(frozen=True, slots=True)
class FactorShare:
    """One factor phi_i of phi, on the final sequences of one run.

    Attributes:
        name: the factor in words.
        mean_log_phi: mean of log phi_i under the final weights, which estimates its mean under
            sigma, in nats; NaN where all weights are 0.
        killed: share of the weight that texts have as they end (at T, or t < T at an absorbing
            EOS), before phi enters, of texts with phi_i = 0. Without a twist it estimates p0's mass
            of such texts; with one their mass under p0 psi_{t-1}. NaN where no weight reaches an
            end.
        killed_alone: the same, of texts that no other factor rules out.
    """

    name: str
    mean_log_phi: float
    killed: float
    killed_alone: float


def factor_breakdown(trace: SMCTrace, target: Target, *, run: int = 0) -> list[FactorShare]:
    """What each factor of the target's potential does in one finished run.

    Args:
        trace: of a run that has reached T.
        target: the one that was sampled.
        run: which of the trace's runs.

    Returns:
        One entry for each factor of a product, in its order; one in all for any other potential.

    Raises:
        ValueError: the run is not finished, or it is not of this target.
        PotentialError: a factor raised or misbehaved on a sequence.
    """
    check_trace(trace)
    if not trace.done:
        raise ValueError(
            f"the run stands at step {trace.steps_done} of {trace.num_steps}: log phi is known of "
            "whole texts only, so let it reach its end."
        )
    trace.check_target(target)
    one = trace.run(run)
    final = genealogy.paths(one.columns.ancestors, one.columns.tokens)[0]
    ended, arriving = arrivals(one, target)
    tokens = torch.cat([final, ended])
    factors = target.potential.factors()
    log_phi = torch.stack([_log_phi(factor, tokens, target, one) for factor in factors], dim=1)
    log_weights, size = one.columns.log_weights[0, -1], len(final)
    return break_down(
        [factor.describe() for factor in factors],
        log_phi,
        torch.nn.functional.pad(log_weights, (0, len(ended)), value=-math.inf),
        torch.nn.functional.pad(arriving, (size, 0), value=-math.inf),
    )


def break_down(
    names: list[str],
    log_phi: Float64[Tensor, "particles factors"],
    log_weights: Float64[Tensor, " particles"],
    arriving: Float64[Tensor, " particles"],
) -> list[FactorShare]:
    """Means under the final log weights, and shares of the log weights before phi."""
    weights, before = numerics.normalise(log_weights), numerics.normalise(arriving)
    alive = weights > 0
    zero = torch.isneginf(log_phi)
    shares = []
    for i, name in enumerate(names):
        alone = zero[:, i] & (zero.sum(1) == 1)
        mean = float((weights[alive] * log_phi[alive, i]).sum()) if alive.any() else math.nan
        reached = float(before.sum()) > 0
        killed, by_it = (float(before[each].sum()) for each in (zero[:, i], alone))
        shares.append(
            FactorShare(name, mean, killed if reached else math.nan, by_it if reached else math.nan)
        )
    return shares


def arrivals(
    trace: SMCTrace, target: Target
) -> tuple[Int[Tensor, "ends steps"], Float64[Tensor, " ends"]]:
    """Texts of one run at the steps at which they end, and their log weights before phi enters.

    The weights of those that end at step t estimate p0 psi_{t-1}. For psi_0 the mean of psi_1 over
    texts that go on is put, which is 1 without a twist, so that all weights move with the scale of
    psi. Phi may rule a text out at its end, and the next resampling drops it, so those that end
    before T are no longer there at T.
    """
    columns, size = trace.columns, trace.num_particles
    drawn = columns.log_p[0, 0] - columns.log_q[0, 0]
    going = drawn.isfinite()
    if target.absorbs_eos:
        going &= columns.tokens[0, 0] != target.eos_token_id
    level = 0.0
    if trace.num_steps > 1 and bool(going.any()):
        ahead = (drawn + columns.log_psi[0, 0])[going]
        level = float(numerics.logsumexp(ahead) - numerics.logsumexp(drawn[going]))
    log_weights = torch.full((size,), level - math.log(size), dtype=torch.float64)
    texts, arriving = [], []
    for t in range(1 if target.absorbs_eos else trace.num_steps, trace.num_steps + 1):
        if t > 1:
            log_weights = numerics.normalise(columns.log_weights[0, t - 2]).log()
            log_weights = log_weights + columns.log_z[0, t - 2]
        if bool(columns.resampled[0, t - 1]):
            log_weights = (columns.log_z[0, t - 2] - math.log(size)).expand(size)
        tokens = genealogy.paths(columns.ancestors[:, :t], columns.tokens[:, :t])[0]
        ends = torch.full((size,), t == trace.num_steps)
        if target.ending is not None:
            ends |= target.ending.over(tokens)[:, -1]
            ends &= ~target.ending.after(tokens)[:, -1]
        texts.append(target.whole(tokens[ends]))
        arriving.append((log_weights + columns.log_p[0, t - 1] - columns.log_q[0, t - 1])[ends])
    return torch.cat(texts), torch.cat(arriving)


def _log_phi(
    factor: Potential, tokens: Int[Tensor, "particles steps"], target: Target, trace: SMCTrace
) -> Float64[Tensor, " particles"]:
    distinct, rows = torch.unique(tokens, dim=0, return_inverse=True)
    on_device = distinct.to(target.prompt_tokens.device)
    if target.is_conditional:
        observed = torch.tensor(trace.info.observed, device=on_device.device)
        given = factor.log_phi_given(on_device, observed.expand(len(distinct), -1))
        return as_numbers(given).double().cpu()[rows]
    return part_log_phi(factor, on_device, target.context).double().cpu()[rows]
