"""Targets with observations: one set of o for F, G and log Z, compared within each o."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from tsmc_widgets.errors import check_integer
from tsmc_widgets.evaluation.bounds import CONDITIONAL_RUNS, follows_proposal_only, runs_at_once
from tsmc_widgets.evaluation.bounds_table import LogZBounds
from tsmc_widgets.evaluation.intervals import MeanOverRuns
from tsmc_widgets.evaluation.kl_estimate import (
    BOTH,
    Q_BASE,
    Q_SIGMA,
    SIGMA_Q,
    Divergences,
    of_mean,
)
from tsmc_widgets.evaluation.log_z import LogZ
from tsmc_widgets.evaluation.scoring import Drawn, Sampler, draw_from, score_texts
from tsmc_widgets.smc.api import run_conditional_smc, run_smc
from tsmc_widgets.smc.resampling import ResampleRule, resolve_rule
from tsmc_widgets.targets.exact_samples import JointSamples
from tsmc_widgets.targets.target import Target


@dataclass(frozen=True, slots=True)
class LogZGiven:
    """Bounds on log Z(o) for the o of each sample: one forward and one conditional run for each.

    Attributes:
        lower: log Z_hat of a forward run under each sample's o.
        upper: conditional log Z_hat with the sample itself.
        num_particles: K of both.
        rule: when they resampled, in words.
    """

    lower: Float64[Tensor, " n"]
    upper: Float64[Tensor, " n"]
    num_particles: int
    rule: str

    @property
    def gap(self) -> float:
        """Mean of upper minus lower over o, in nats: training may stop on it."""
        return float((self.upper - self.lower).mean())

    @property
    def gap_standard_error(self) -> float:
        """Standard error of the gap; what differs between the o is taken away first."""
        return MeanOverRuns.of(self.upper - self.lower).standard_error

    @property
    def bounds(self) -> LogZBounds:
        """Bounds on the mean of log Z(o) over o; pooling over different o would bound nothing."""
        return LogZBounds(
            lower=MeanOverRuns.of(self.lower),
            upper=MeanOverRuns.of(self.upper),
            num_particles=self.num_particles,
            upper_kind="bound",
            rule=self.rule,
            lower_log_z=self.lower,
            upper_log_z=self.upper,
        )


@torch.no_grad()
def log_z_bounds_given(
    target: Target,
    samples: JointSamples,
    *,
    num_particles: int,
    twist: Any = None,
    proposal: Any = None,
    rule: str | ResampleRule | None = None,
    ess_threshold: float | None = None,
    seed: int = 0,
    first_run: int = 0,
    max_rows: int | None = None,
) -> LogZGiven:
    """Bound log Z(o) for the o of each joint sample, from both sides.

    Args:
        target: its potential waits for an observation.
        samples: ``target.exact_samples(n, ...)``.
        num_particles: K.
        twist: a twist, told each run's o if it is conditional.
        proposal: as for ``run_smc``; a conditional twist in it is told too.
        rule: as for ``run_smc``.
        ess_threshold: as for ``run_smc``.
        seed: as for ``run_smc``.
        first_run: address of the first sample's runs.
        max_rows: particles in a batch at most, as for ``log_z_bounds``.
    """
    check_joint(target, samples)
    check_integer("num_particles", num_particles)
    if rule is None and ess_threshold is None and follows_proposal_only(proposal):
        rule = "never"
    chosen = resolve_rule(rule, ess_threshold)
    how = {
        "num_particles": num_particles,
        "twist": twist,
        "proposal": proposal,
        "rule": chosen,
        "seed": seed,
    }
    chunk = runs_at_once(target, num_particles, max_rows)
    lower, upper = [], []
    for at in range(0, len(samples.tokens), chunk):
        own = JointSamples(samples.tokens[at : at + chunk], samples.observed[at : at + chunk])
        forward = run_smc(
            target, observed=own.observed, first_run=first_run + at, dead_runs="keep", **how
        )
        backward = run_conditional_smc(
            target, retained=own, first_run=CONDITIONAL_RUNS + first_run + at, **how
        )
        lower.append(forward.columns.log_z[:, -1])
        upper.append(backward.columns.log_z[:, -1])
    return LogZGiven(torch.cat(lower), torch.cat(upper), num_particles, chosen.describe())


def divergences_given(
    target: Target,
    sampler: Sampler,
    samples: Any,
    *,
    log_z: Any,
    seed: int,
    first_run: int,
    max_rows: int | None,
) -> Divergences:
    """The conditional part of ``kl_divergences``."""
    check_joint(target, samples)
    count = len(samples.tokens)
    middle, known = _log_z_of_each(log_z, count)
    size = runs_at_once(target, 1, max_rows)
    draws, weights = [], []
    for at in range(0, count, size):
        tokens, observed = samples.tokens[at : at + size], samples.observed[at : at + size]
        draws.append(draw_from(target, sampler, None, seed, first_run + at, observed=observed))
        scores = score_texts(target, tokens, sampler, observed=observed)
        scores.require_possible(target, tokens)
        weights.append(scores.log_weight)
    drawn, g = Drawn.joined(draws), torch.cat(weights)
    f = drawn.log_weight
    dead_q, dead_sigma = int(torch.isinf(f).sum()), int(torch.isinf(g).sum())
    within = ", within each observation"
    q_sigma = sigma_q = None
    if middle is not None:
        q_sigma = of_mean(
            Q_SIGMA, middle - f, estimator=f"log Z − F_q{within}", num_dead=dead_q, log_z=known
        )
        sigma_q = of_mean(
            SIGMA_Q, g - middle, estimator=f"G_q − log Z{within}", num_dead=dead_sigma, log_z=known
        )
    return Divergences(
        q_sigma=q_sigma,
        sigma_q=sigma_q,
        symmetrised=of_mean(
            BOTH, g - f, estimator=f"G_q − F_q{within}", num_dead=dead_q + dead_sigma
        ),
        q_base=of_mean(Q_BASE, drawn.log_q - drawn.log_p, estimator="mean of log q − log p0"),
        f=MeanOverRuns.of(f),
        g=MeanOverRuns.of(g),
        log_phi=MeanOverRuns.of(drawn.log_phi),
        log_z=known,
        proposal=sampler.describe(),
        num_observations=len(torch.unique(samples.observed, dim=0)),
    )


def check_joint(target: Target, samples: Any) -> None:
    """Raise unless the samples pair texts of the target with observations."""
    if not target.is_conditional:
        raise ValueError(
            f"{target.potential.describe()} waits for no observation: call log_z_bounds."
        )
    if not hasattr(samples, "observed"):
        raise ValueError(
            f"{target.potential.describe()} waits for an observation: give joint samples, "
            f"target.exact_samples(n, seed=...); got {type(samples).__name__}."
        )
    check_integer("number of exact samples", len(samples.tokens), at_least=2)


def _log_z_of_each(log_z: Any, count: int) -> tuple[Float64[Tensor, " n"] | None, LogZ | None]:
    if log_z is None:
        return None, None
    if isinstance(log_z, LogZGiven):
        middle = (log_z.lower + log_z.upper) / 2
        summary = LogZ.of(log_z.bounds)
        source = f"mean over observations of the {summary.source}"
        return middle, replace(summary, source=source)
    values = torch.as_tensor(log_z, dtype=torch.float64).reshape(-1)
    if len(values) != count:
        raise ValueError(
            f"log_z must hold one value for each of the {count} samples, that of its own "
            f"observation, or be log_z_bounds_given(...); got {len(values)}."
        )
    mean = MeanOverRuns.of(values)
    source = "exact for each observation, mean over them"
    return values, LogZ(mean.mean, source, mean.standard_error, max(1, count - 1))
