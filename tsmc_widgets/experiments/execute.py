"""One spec, from names and numbers to tidy rows: what a worker process does."""

from __future__ import annotations

import math
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tsmc_widgets.evaluation.baselines import BaselineRun, run_baseline
from tsmc_widgets.evaluation.bounds import log_z_bounds, runs_at_once
from tsmc_widgets.evaluation.divergences import kl_divergences, log_z_bounds_given
from tsmc_widgets.evaluation.estimates import (
    Divergences,
    LogZ,
    LogZBounds,
    MeanOverRuns,
    PooledOverRuns,
)
from tsmc_widgets.experiments.artifacts import HeldOut, dumps, fresh_target, held_out, twist_of
from tsmc_widgets.experiments.spec import TEXT_METHODS, RunSpec
from tsmc_widgets.smc import genealogy
from tsmc_widgets.smc.api import run_smc, start_smc
from tsmc_widgets.smc.noise import AddressedNoise, SliceNoise
from tsmc_widgets.smc.proposals import Base, Proposal, TwistInduced
from tsmc_widgets.smc.replay import Recording, ReplaySession
from tsmc_widgets.smc.resampling import ESSBelow, Never, ResampleRule, resolve_rule
from tsmc_widgets.smc.trace import SMCTrace
from tsmc_widgets.targets.description import observation_of
from tsmc_widgets.targets.target import Target


@dataclass(frozen=True, slots=True)
class Way:
    """How to sample: a twist that weighs, a proposal, and when to resample.

    Attributes:
        twist: None where psi = 1, or where the twist can only propose.
        proposal: q.
        rules: when to resample.
    """

    twist: Any
    proposal: Proposal
    rules: tuple[ResampleRule, ...]

    @classmethod
    def of(cls, spec: RunSpec, twist: Any) -> Way:
        """The spec's way with a twist."""
        rules = tuple(
            ESSBelow(spec.ess_threshold) if rule == "ess" else resolve_rule(rule, None)
            for rule in spec.rule
        )
        proposes = twist is not None and spec.proposal != "base"
        if getattr(twist, "proposal_only", False):
            # Its psi is known up to a function of the prefix, so that it can not weigh.
            proposal = TwistInduced(twist) if proposes else Base()
            return cls(None, proposal, (resolve_rule("never", None),))
        return cls(twist, TwistInduced() if proposes else Base(), rules)


_NAMES = {"best-of-n": "best of n", "beam": "beam search", "rejection": "rejection"}


def text_rows(spec: RunSpec, target: Target, way: Way) -> list[dict[str, Any]]:
    """Rows of mean log phi, ESS, log Z and tokens read, for each K and way of the spec.

    Raises:
        ValueError: the target waits for an observation.
    """
    if target.is_conditional:
        raise ValueError(
            f"{target.potential.describe()} waits for an observation: 'texts' are measured of "
            "targets that wait for none."
        )
    rows = []
    for size in spec.num_particles:
        for name, rule, options in _runs(spec, way):
            found = run_baseline(name, target, num_samples=size, seed=spec.seed, **options)
            about = {"rule": rule, "num_particles": size, "num_runs": _count(found)}
            rows += [about | row for row in _numbers(found)]
    return rows


def _runs(spec: RunSpec, way: Way) -> Iterator[tuple[str, str | None, dict[str, Any]]]:
    if spec.method in _NAMES:
        limit = {"max_draws": spec.max_draws} if spec.method == "rejection" else {}
        yield _NAMES[spec.method], None, limit
        return
    options = {"num_runs": spec.num_runs}
    if way.twist is None and isinstance(way.proposal, Base):
        yield "p0, SIS", Never().describe(), options
        return
    twist = way.twist if way.twist is not None else way.proposal.twist
    for rule in way.rules:
        never = isinstance(rule, Never)
        if isinstance(way.proposal, Base):
            yield "p0, SMC", rule.describe(), options | {"twist": twist, "rule": rule}
        else:
            name = "twist, SIS" if never else "twist, SMC"
            more = {} if never else {"rule": rule}
            yield name, rule.describe(), options | {"twist": twist, **more}


def _numbers(found: BaselineRun) -> Iterator[dict[str, Any]]:
    remark = found.note
    yield {"quantity": "mean log φ of texts", "kind": "estimate", "value": found.mean_log_phi,
           "source": found.samples_from, "remark": remark}  # fmt: skip
    yield {"quantity": "ESS of texts", "value": found.ess, "remark": remark}
    yield {
        "quantity": "log Z by texts",
        "kind": found.log_z_kind,
        "value": math.nan if found.log_z is None else found.log_z,
        "standard_error": found.log_z_standard_error,
        "remark": remark,
    }
    yield {"quantity": "forward tokens", "kind": "count", "value": float(found.forward_tokens)}


def _count(found: BaselineRun) -> int:
    return int(found.group.max()) + 1 if len(found.group) else 0


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


_THREADS = threading.Lock()
_INSIDE: dict[str, int] = {"count": 0, "before": 1}


def execute(spec: RunSpec, *, shared: str | Path | None = None) -> list[Row]:
    """Run a spec and measure what it asks for.

    Depends on the spec alone: models are loaded once for each process, exact samples and trained
    twists too, and none of it changes a number. PyTorch works on one thread meanwhile, since sums
    split over threads differ in their last bits: use processes to use several cores.

    Args:
        spec: what to do.
        shared: folder in which exact samples and trained twists are kept, for other specs and
            other workers; None keeps them in memory.

    Returns:
        One row for each number measured, with the columns of ``evaluation.measure``.
    """
    folder = None if shared is None else Path(shared)
    with one_thread():
        target = fresh_target(spec)
        held = held_out(spec, spec.num_exact, spec.seed, folder)
        twist = twist_of(spec, target, folder)
        return measure(spec, target, twist, held)


def work(spec_json: str, shared: str | None) -> dict[str, Any]:
    """What a worker of any kind runs: texts in, plain numbers and texts out, errors as texts."""
    start = time.perf_counter()
    answer: dict[str, Any] = {}
    try:
        rows = execute(RunSpec.from_json(spec_json), shared=shared)
        answer["rows"] = dumps(rows)
    except Exception as error:  # noqa: BLE001 - one bad spec must not end the others
        answer["error"] = {
            "type": type(error).__name__,
            "message": str(error),
            "traceback": traceback.format_exc(),
        }
    return answer | {"seconds": time.perf_counter() - start}


@contextmanager
def one_thread() -> Iterator[None]:
    """Let PyTorch use one thread; the last to leave puts back what was."""
    with _THREADS:
        if not _INSIDE["count"]:
            _INSIDE["before"] = torch.get_num_threads()
        _INSIDE["count"] += 1
        torch.set_num_threads(1)
    try:
        yield
    finally:
        with _THREADS:
            _INSIDE["count"] -= 1
            if not _INSIDE["count"]:
                torch.set_num_threads(_INSIDE["before"])


_MOST_TWISTS = 4
_DEAF = ("saved", "shipped")
"""Methods whose twist is what it is whatever phi: it can serve one run after another."""


@dataclass(slots=True)
class Shelf:
    """Twists that do not depend on phi, kept for the runs to come."""

    _twists: dict[tuple, Any] = field(default_factory=dict)

    def twist(self, spec: RunSpec, target: Target) -> Any:
        """The spec's twist: the very object of an earlier run where it would be equal."""
        if spec.method not in _DEAF:
            return twist_of(spec, target, None)
        key = (spec.method, spec.twist, spec.twist_sha256, spec.twist_power, id(target.lm),
               str(observation_of(spec.problem, target.lm)))  # fmt: skip
        if key not in self._twists:
            while len(self._twists) >= _MOST_TWISTS:
                self._twists.pop(next(iter(self._twists)))
            self._twists[key] = twist_of(spec, target, None)
        return self._twists[key]


def start_spec(
    spec: RunSpec,
    *,
    top_k: int = 0,
    shelf: Shelf | None = None,
    recording: Recording | None = None,
) -> ReplaySession:
    """Prepare the runs of a spec, all in one batch, with its first K and its first rule.

    Dead runs are kept: their log Z_hat is -inf.

    Args:
        spec: what to sample and how; its twist is loaded or computed, not trained.
        top_k: next tokens to record.
        shelf: where twists are kept between runs.
        recording: the run before, which is weighed anew where that gives the same trace.

    Raises:
        ValueError: the spec has no single run: its method learns, or gives texts alone.
    """
    if spec.learns or spec.method in TEXT_METHODS:
        raise ValueError(
            f"method {spec.method!r} is no single run with weights: train its twist first and "
            "take method 'saved', or measure the spec with tw.execute."
        )
    target = fresh_target(spec)
    if target.is_conditional:
        raise ValueError(
            f"{target.potential.describe()} waits for an observation: give the problem in place, "
            'with "observed" beside the kind of its potential.'
        )
    way = Way.of(spec, (shelf or Shelf()).twist(spec, target))
    session = start_smc(
        target,
        num_particles=spec.num_particles[0],
        num_runs=spec.num_runs,
        twist=way.twist,
        proposal=way.proposal,
        resampler=spec.resampler,
        rule=way.rules[0],
        seed=spec.seed,
        top_k=top_k,
        dead_runs="keep",
    )
    return ReplaySession(target, session.config, recording)
