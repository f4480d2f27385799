"""Bounds on log Z from both sides, with intervals over runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from tsmc_widgets.errors import check_integer
from tsmc_widgets.evaluation.estimates import BoundsTable, LogZBounds, MeanOverRuns, PooledOverRuns
from tsmc_widgets.smc.api import run_conditional_smc, run_smc
from tsmc_widgets.smc.resampling import ResampleRule, resolve_rule
from tsmc_widgets.targets.target import Target

__all__ = ["BoundsTable", "LogZBounds", "MeanOverRuns", "PooledOverRuns", "log_z_bounds"]

RULES = ("always", "ess", "never")
"""What a table compares where no rule is given; never is IWAE."""

MOST_CELLS = 2**24
"""Particles of a batch times (vocabulary + numbers recorded) are kept below about so many."""

CONDITIONAL_RUNS = 2**40
"""Address of the first conditional run: both sides draw their noise apart, so are independent."""


@torch.no_grad()
def log_z_bounds(
    target: Target,
    *,
    num_particles: int | Sequence[int],
    num_runs: int,
    exact_samples: Any = None,
    approximate_samples: Any = None,
    twist: Any = None,
    proposal: Any = None,
    rule: str | ResampleRule | Sequence[str | ResampleRule] | None = None,
    ess_threshold: float | None = None,
    resampler: str = "systematic",
    seed: int = 0,
    exact_log_z: float | int | None = None,
    first_run: int = 0,
    max_rows: int | None = None,
) -> LogZBounds | BoundsTable:
    """Bound log Z from below by forward runs and from above by conditional ones.

    Args:
        target: whose Z.
        num_particles: K of both sides; several K give a table.
        num_runs: forward runs.
        exact_samples: exact samples of sigma, each used for one conditional run.
        approximate_samples: samples of something near sigma in their place: what comes of them is
            no bound and is called an estimate.
        twist: as for ``run_smc``; None is psi = 1.
        proposal: as for ``run_smc``.
        rule: as for ``run_smc``; several rules give a table. In a table None stands for all of
            always, ess and never (IWAE), or for never alone where the proposal's twist can only
            propose.
        ess_threshold: as for ``run_smc``.
        resampler: of the forward runs; conditional ones are multinomial.
        seed: as for ``run_smc``; all K and rules share their noise, so their rows are not
            independent of each other, and differences between them are the better seen.
        exact_log_z: log Z where it is known; it is put beside the bounds.
        first_run: address of the first forward run and of the first sample's, so that parts of a
            job make what the whole would have made.
        max_rows: particles in a batch at most; None keeps the process near 2 GB (V = 653). The
            result is the same to the byte for models whose answer for a row does not depend on its
            companions (tables), and to their rounding for others.

    Returns:
        A ``LogZBounds``, or for several K or rules a ``BoundsTable`` of them.

    Raises:
        ValueError: both kinds of samples, or samples of the wrong shape, or with phi = 0.
    """
    check_integer("num_runs", num_runs)
    samples, kind = read_samples(exact_samples, approximate_samples)
    several = _is_several(num_particles), _is_several(rule)
    sizes = list(num_particles) if several[0] else [num_particles]
    for size in sizes:
        check_integer("num_particles", size)
    rules = _rules(rule, ess_threshold, proposal, tabulated=any(several))
    settings = {"twist": twist, "proposal": proposal, "seed": seed}
    rows = []
    for size in sizes:
        for one in rules:
            how = settings | {"num_particles": size, "rule": one}
            chunk = runs_at_once(target, size, max_rows)
            ahead = how | {"resampler": resampler}
            forward = _forward(target, num_runs, chunk, first_run, ahead)
            backward = None
            if samples is not None:
                backward = _backward(target, samples, chunk, first_run, how)
            rows.append(
                LogZBounds.of(
                    forward,
                    backward,
                    num_particles=int(size),
                    upper_kind=kind,
                    rule=one.describe(),
                    exact=exact_log_z,
                )
            )
    return BoundsTable(tuple(rows)) if any(several) else rows[0]


def _forward(
    target: Target, num_runs: int, chunk: int, first_run: int, how: dict[str, Any]
) -> Float64[Tensor, " runs"]:
    parts = []
    for start in range(0, num_runs, chunk):
        trace = run_smc(
            target,
            num_runs=min(chunk, num_runs - start),
            first_run=first_run + start,
            dead_runs="keep",
            **how,
        )
        parts.append(trace.columns.log_z[:, -1])
    return torch.cat(parts)


def _backward(
    target: Target,
    samples: Int[Tensor, "samples steps"],
    chunk: int,
    first_run: int,
    how: dict[str, Any],
) -> Float64[Tensor, " samples"]:
    parts = []
    for start in range(0, len(samples), chunk):
        trace = run_conditional_smc(
            target,
            retained=samples[start : start + chunk],
            first_run=CONDITIONAL_RUNS + first_run + start,
            **how,
        )
        parts.append(trace.columns.log_z[:, -1])
    return torch.cat(parts)


def runs_at_once(target: Target, num_particles: int, max_rows: int | None) -> int:
    """How many runs one batch holds, so that memory stays bounded however many there are."""
    if max_rows is None:
        # Distinct prefixes hold V numbers each; the record holds about ten a particle and step.
        max_rows = MOST_CELLS // (target.lm.vocab_size + 10 * target.num_steps)
    else:
        check_integer("max_rows", max_rows)
    return max(1, max_rows // num_particles)


def _rules(
    rule: Any, ess_threshold: float | None, proposal: Any, *, tabulated: bool
) -> list[ResampleRule]:
    if rule is None and ess_threshold is None and follows_proposal_only(proposal):
        return [resolve_rule("never", None)]
    if _is_several(rule):
        return [resolve_rule(one, None) for one in rule]
    if rule is None and tabulated:
        return [
            resolve_rule(None, ess_threshold) if one == "ess" else resolve_rule(one, None)
            for one in RULES
        ]
    return [resolve_rule(rule, ess_threshold)]


def follows_proposal_only(proposal: Any) -> bool:
    """Whether a proposal follows a twist of its own that must not weigh, so never resample."""
    return getattr(getattr(proposal, "twist", None), "proposal_only", False)


def read_samples(exact_samples: Any, approximate_samples: Any) -> tuple[Any, str]:
    """Tokens of either kind, None if neither was given, and whether they bound or estimate."""
    if exact_samples is not None and approximate_samples is not None:
        raise ValueError(
            "give exact_samples for an upper bound or approximate_samples for an estimate, not "
            "both: they would be averaged into something that is neither."
        )
    kind = "bound" if approximate_samples is None else "estimate"
    given = exact_samples if approximate_samples is None else approximate_samples
    if hasattr(given, "observed"):
        raise ValueError(
            "these samples belong to many observations o, each with a log Z of its own: call "
            "log_z_bounds_given, or bound one target.condition(o) at a time."
        )
    given = getattr(given, "tokens", given)
    return (None if given is None else torch.as_tensor(given)), kind


def _is_several(value: Any) -> bool:
    return isinstance(value, Sequence | Tensor) and not isinstance(value, str)
