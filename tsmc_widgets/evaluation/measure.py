"""What a spec asks to be measured, as tidy rows of plain numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch

from tsmc_widgets.evaluation.bounds import log_z_bounds, runs_at_once
from tsmc_widgets.evaluation.bounds_table import LogZBounds
from tsmc_widgets.evaluation.divergences import kl_divergences
from tsmc_widgets.evaluation.given import log_z_bounds_given
from tsmc_widgets.evaluation.intervals import MeanOverRuns, PooledOverRuns
from tsmc_widgets.evaluation.kl_estimate import Divergences
from tsmc_widgets.evaluation.log_z import LogZ
from tsmc_widgets.evaluation.resources import HeldOut
from tsmc_widgets.evaluation.spec import RunSpec
from tsmc_widgets.evaluation.texts import text_rows
from tsmc_widgets.evaluation.ways import Way
from tsmc_widgets.smc import genealogy
from tsmc_widgets.smc.api import run_smc
from tsmc_widgets.smc.noise import AddressedNoise, SliceNoise
from tsmc_widgets.smc.resampling import ResampleRule
from tsmc_widgets.smc.trace import SMCTrace
from tsmc_widgets.targets.target import Target

Row = dict[str, Any]

COLUMNS = (
    "quantity", "side", "kind", "rule", "num_particles", "step", "run", "value", "standard_error",
    "low", "high", "num_runs", "exact", "source", "remark",
)  # fmt: skip


@torch.no_grad()
def measure(spec: RunSpec, target: Target, twist: Any, held: HeldOut) -> list[Row]:
    """Rows of everything that the spec asks for.

    Raises:
        ValueError: what is asked for does not fit the problem.
    """
    way = Way.of(spec, twist)
    rows: list[Row] = []
    if "bounds" in spec.measures:
        rows += _bounds(spec, target, way, held)
    if "kl" in spec.measures:
        rows += _divergences(spec, target, way, held)
    if "profiles" in spec.measures:
        rows += _profiles(spec, target, way, held)
    if "runs" in spec.measures:
        rows += _single_runs(spec, target, way, held)
    if "texts" in spec.measures:
        rows += text_rows(spec, target, way)
    return [{name: row.get(name) for name in COLUMNS} for row in rows]


def _bounds(spec: RunSpec, target: Target, way: Way, held: HeldOut) -> list[Row]:
    exact_log_z = None if held.oracle is None else held.oracle.log_z
    rows = []
    for size in spec.num_particles:
        for rule in way.rules:
            how = {"twist": way.twist, "proposal": way.proposal, "rule": rule, "seed": spec.seed}
            if target.is_conditional:
                samples = _joint(target, held)
                bounds = log_z_bounds_given(target, samples, num_particles=size, **how).bounds
            else:
                bounds = log_z_bounds(
                    target,
                    num_particles=size,
                    num_runs=spec.num_runs,
                    exact_samples=held.tokens,
                    exact_log_z=exact_log_z,
                    resampler=spec.resampler,
                    **how,
                )
            rows += [_bound(row, bounds) for row in _sides(bounds)]
    return rows + _by_rejection(held)


def _by_rejection(held: HeldOut) -> list[Row]:
    """What the draws of rejection say of log Z, where there were any."""
    error = getattr(held.samples, "log_z_standard_error", 0.0)
    if not error > 0:
        return []
    found = LogZ.of(held.samples)
    low, high = found.interval()
    about = {"quantity": "log Z by rejection", "kind": "estimate", "source": found.source}
    return [about | {"value": found.value, "standard_error": error, "low": low, "high": high,
                     "num_runs": held.samples.proposed}]  # fmt: skip


def _sides(bounds: LogZBounds) -> Iterator[tuple[str, str, MeanOverRuns | PooledOverRuns | None]]:
    yield "log Z", "lower", bounds.lower
    yield "log Z", "upper", bounds.upper
    yield "log Z, pooled", "lower", bounds.pooled_lower
    yield "log Z, pooled", "upper", bounds.pooled_upper
    yield "gap", "", None


def _bound(side: tuple[str, str, Any], bounds: LogZBounds) -> Row:
    quantity, which, value = side
    row: Row = {
        "quantity": quantity,
        "side": which,
        "kind": "bound" if which == "lower" else bounds.upper_kind,
        "rule": bounds.rule,
        "num_particles": bounds.num_particles,
        "exact": bounds.exact,
    }
    if quantity == "gap":
        low, high = bounds.gap_interval()
        error = bounds.gap_standard_error
        return row | {"value": bounds.gap, "standard_error": error, "low": low, "high": high,
                      "exact": None, "num_runs": bounds.lower.num_runs}  # fmt: skip
    if value is None:
        return row | {"value": math.nan}
    low, high = value.interval()
    middle = value.mean if isinstance(value, MeanOverRuns) else value.value
    return row | {
        "value": middle,
        "standard_error": value.standard_error,
        "low": low,
        "high": high,
        "num_runs": value.num_runs,
    }


def _divergences(spec: RunSpec, target: Target, way: Way, held: HeldOut) -> list[Row]:
    how = {"twist": way.twist, "proposal": way.proposal, "seed": spec.seed}
    if target.is_conditional:
        samples, size = _joint(target, held), max(spec.num_particles)
        log_z = log_z_bounds_given(target, samples, num_particles=size, rule=way.rules[0], **how)
    else:
        samples = held.samples
        log_z = None if held.oracle is None else LogZ.of(held.oracle)
    found = kl_divergences(
        target, num_samples=spec.num_samples, exact_samples=samples, log_z=log_z, **how
    )
    return [*_kl_rows(found), *_reward_rows(found)]


def _kl_rows(found: Divergences) -> Iterator[Row]:
    for kl in (found.q_sigma, found.sigma_q, found.symmetrised, found.q_base):
        if kl is not None:
            low, high = kl.interval()
            yield {
                "quantity": kl.divergence,
                "kind": "estimate",
                "value": kl.value,
                "standard_error": kl.standard_error,
                "low": low,
                "high": high,
                "num_runs": kl.num_samples,
                "source": "log Z cancels" if kl.log_z is None else kl.log_z.source,
                "remark": kl.remark,
            }


def _reward_rows(found: Divergences) -> Iterator[Row]:
    low, high = found.log_phi.interval()
    yield {
        "quantity": "E_q[log φ]",
        "kind": "estimate",
        "value": found.log_phi.mean,
        "standard_error": found.log_phi.standard_error,
        "low": low,
        "high": high,
        "num_runs": found.log_phi.num_runs,
    }


def _profiles(spec: RunSpec, target: Target, way: Way, held: HeldOut) -> list[Row]:
    rows = []
    for size in spec.num_particles:
        for rule in way.rules:
            traces = list(_traces(spec, target, way, held, size, rule))
            columns = {
                "ESS / K": torch.cat([trace.columns.ess for trace in traces]),
                "surviving ancestors / K": torch.cat([_survivors(trace) for trace in traces]),
            }
            for quantity, values in columns.items():
                for step, column in enumerate(values.double().T / size, start=1):
                    mean = MeanOverRuns.of(column)
                    low, high = mean.interval()
                    rows.append(
                        {
                            "quantity": quantity,
                            "rule": rule.describe(),
                            "num_particles": size,
                            "step": step,
                            "value": mean.mean,
                            "standard_error": mean.standard_error,
                            "low": low,
                            "high": high,
                            "num_runs": mean.num_runs,
                        }
                    )
    return rows


def _single_runs(spec: RunSpec, target: Target, way: Way, held: HeldOut) -> list[Row]:
    rows = []
    for size in spec.num_particles:
        for rule in way.rules:
            traces = list(_traces(spec, target, way, held, size, rule))
            log_z = torch.cat([trace.columns.log_z[:, -1] for trace in traces])
            about = {"quantity": "log Z of a run", "rule": rule.describe(), "num_particles": size}
            rows += [about | {"run": run, "value": v} for run, v in enumerate(log_z.tolist())]
    return rows


def _traces(
    spec: RunSpec, target: Target, way: Way, held: HeldOut, size: int, rule: ResampleRule
) -> Iterator[SMCTrace]:
    """Runs in batches that fit the memory, under the samples' observations where phi needs one."""
    part, parts = spec.island or (0, 1)
    own = size // parts
    how = {"num_particles": own, "twist": way.twist, "proposal": way.proposal, "rule": rule,
           "resampler": spec.resampler, "dead_runs": "keep"}  # fmt: skip
    observed = _joint(target, held).observed if target.is_conditional else None
    total = spec.num_runs if observed is None else len(observed)
    chunk = runs_at_once(target, own, None)
    for at in range(0, total, chunk):
        count = min(chunk, total - at)
        noise = AddressedNoise(spec.seed, count, at)
        some = {"noise": SliceNoise(noise, part * own) if part else noise}
        if observed is not None:
            some["observed"] = observed[at : at + chunk]
        yield run_smc(target, num_runs=count, **some, **how)


def _survivors(trace: SMCTrace) -> torch.Tensor:
    return genealogy.surviving_ancestors(trace.columns.ancestors)


def _joint(target: Target, held: HeldOut) -> Any:
    if held.samples is None or not hasattr(held.samples, "observed"):
        raise ValueError(
            f"{target.potential.describe()} waits for an observation: num_exact must be at least "
            f"2, for each exact sample comes with its own (here: {held.source})."
        )
    return held.samples
