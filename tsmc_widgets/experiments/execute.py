"""One spec, from names and numbers to tidy rows: what a worker process does."""

from __future__ import annotations

import math
import pickle
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tsmc_widgets.errors import check_kind, check_path, message_of, quoted
from tsmc_widgets.evaluation.baselines import run_baseline
from tsmc_widgets.evaluation.bounds import log_z_bounds, runs_at_once
from tsmc_widgets.evaluation.divergences import kl_divergences
from tsmc_widgets.evaluation.estimates import LogZ, LogZBounds, MeanOverRuns
from tsmc_widgets.evaluation.run_quality import shares_of_particles
from tsmc_widgets.experiments.artifacts import HeldOut, dumps, fresh_target, held_out, twist_of
from tsmc_widgets.experiments.spec import MEASURES, TEXT_METHODS, RunSpec
from tsmc_widgets.smc.api import run_smc, start_smc
from tsmc_widgets.smc.memory import allow_memory
from tsmc_widgets.smc.noise import AddressedNoise, SliceNoise
from tsmc_widgets.smc.proposals import Base, Proposal, TwistInduced
from tsmc_widgets.smc.replay import Recording, ReplaySession
from tsmc_widgets.smc.resampling import ESSBelow, Never, ResampleRule, resolve_rule
from tsmc_widgets.smc.trace import SMCTrace
from tsmc_widgets.targets.description import observation_of
from tsmc_widgets.targets.exact_samples import ExactSamples, JointSamples
from tsmc_widgets.targets.functions import register_function
from tsmc_widgets.targets.target import Target, require_unconditional

Row = dict[str, Any]

COLUMNS = (
    "quantity", "side", "kind", "rule", "num_particles", "step", "run", "value", "standard_error",
    "low", "high", "num_runs", "exact", "source", "remark",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class SamplerSetup:
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
    def of(cls, spec: RunSpec, twist: Any) -> SamplerSetup:
        """The spec's setup with a twist."""
        rules = tuple(
            ESSBelow(spec.ess_threshold) if rule == "ess" else resolve_rule(rule, None)
            for rule in spec.rule
        )
        proposes = twist is not None and spec.proposal != "base"
        if twist is not None and twist.proposal_only:
            # Its psi is known up to a function of the prefix, so that it cannot weight.
            proposal = TwistInduced(twist) if proposes else Base()
            return cls(None, proposal, (resolve_rule("never", None),))
        return cls(twist, TwistInduced() if proposes else Base(), rules)


@torch.no_grad()
def measure(spec: RunSpec, target: Target, twist: Any, held: HeldOut) -> list[Row]:
    """Rows of everything that the spec asks for.

    Raises:
        ValueError: what is asked for does not fit the problem.
    """
    job = _Job(spec, target, SamplerSetup.of(spec, twist), held)
    acts = (job.bounds, job.divergences, job.profiles, job.single_runs, job.texts)
    rows = []
    for name, act in zip(MEASURES, acts, strict=True):
        rows += act() if name in spec.measures else ()
    return [{name: row.get(name) for name in COLUMNS} for row in rows]


@dataclass(frozen=True, slots=True)
class _Job:
    """What is measured, one method for each of ``MEASURES``."""

    spec: RunSpec
    target: Target
    setup: SamplerSetup
    held: HeldOut

    @property
    def how(self) -> dict[str, Any]:
        """Arguments that every estimator takes."""
        setup = self.setup
        return {"twist": setup.twist, "proposal": setup.proposal, "seed": self.spec.seed}

    def cells(self) -> Iterator[tuple[int, ResampleRule, Row]]:
        """Each K and rule, and what its rows begin with."""
        for size in self.spec.num_particles:
            for rule in self.setup.rules:
                yield size, rule, {"rule": rule.describe(), "num_particles": size}

    def joint(self) -> JointSamples:
        """The exact samples of a conditional target."""
        if not isinstance(self.held.samples, JointSamples):
            require_unconditional(
                self.target,
                "num_exact must be at least 2, for each exact sample comes with its own (here: "
                f"{self.held.source}).",
            )
        return self.held.samples

    def bounds(self) -> Iterator[Row]:
        """Bounds on log Z and their gap, and what rejection's draws say of log Z."""
        spec, held, conditional = self.spec, self.held, self.target.is_conditional
        for size, rule, _ in self.cells():
            given = {"exact_samples": self.joint() if conditional else held.tokens}
            if not conditional:
                given |= {"num_runs": spec.num_runs}
                given |= {"exact_log_z": None if held.oracle is None else held.oracle.log_z}
            given |= {"rule": rule, "resampler": spec.resampler}
            found = log_z_bounds(self.target, num_particles=size, **given, **self.how)
            yield from _bound_rows(found.bounds if conditional else found)
        if isinstance(held.samples, ExactSamples) and held.samples.log_z_standard_error > 0:
            found = LogZ.of(held.samples)
            about = {"quantity": "log Z by rejection", "kind": "estimate", "source": found.source}
            yield about | found.row() | {"num_runs": held.samples.proposed}

    def divergences(self) -> Iterator[Row]:
        """Both KL divergences, their sum, that to p0, and the mean log phi of q's texts."""
        if self.target.is_conditional:
            samples, size = self.joint(), max(self.spec.num_particles)
            log_z = log_z_bounds(
                self.target,
                num_particles=size,
                exact_samples=samples,
                rule=self.setup.rules[0],
                resampler=self.spec.resampler,
                **self.how,
            )
        else:
            samples, oracle = self.held.samples, self.held.oracle
            log_z = None if oracle is None else LogZ.of(oracle)
        found = kl_divergences(
            self.target,
            num_samples=self.spec.num_samples,
            exact_samples=samples,
            log_z=log_z,
            **self.how,
        )
        for kl in found.all():
            source = "log Z cancels" if kl.log_z is None else kl.log_z.source
            about = {"quantity": kl.divergence, "kind": "estimate", "num_runs": kl.num_samples}
            yield about | kl.row() | {"source": source, "remark": kl.remark}
        about = {"quantity": "E_q[log φ]", "kind": "estimate", "num_runs": found.log_phi.num_runs}
        yield about | found.log_phi.row()

    def profiles(self) -> Iterator[Row]:
        """ESS and surviving ancestors at every step, as shares of K."""
        for size, rule, about in self.cells():
            traces = list(self.traces(size, rule))
            for quantity, shares in shares_of_particles(traces).items():
                for step, share in enumerate(shares.T, start=1):
                    mean = MeanOverRuns.of(share)
                    row = {"quantity": f"{quantity} / K", "step": step, "num_runs": mean.num_runs}
                    yield about | row | mean.row()

    def single_runs(self) -> Iterator[Row]:
        """Log Z_hat of every forward run."""
        for size, rule, about in self.cells():
            log_z = torch.cat([trace.columns.log_z[:, -1] for trace in self.traces(size, rule)])
            for run, value in enumerate(log_z.tolist()):
                yield about | {"quantity": "log Z of a run", "run": run, "value": value}

    def traces(self, size: int, rule: ResampleRule) -> Iterator[SMCTrace]:
        """Runs in batches that fit the memory, under the samples' observations if there are any."""
        spec, target = self.spec, self.target
        part, parts = spec.island or (0, 1)
        own = size // parts
        how = {"num_particles": own, "twist": self.setup.twist, "proposal": self.setup.proposal,
               "rule": rule, "resampler": spec.resampler, "dead_runs": "keep"}  # fmt: skip
        observed = self.joint().observed if target.is_conditional else None
        total = spec.num_runs if observed is None else len(observed)
        chunk = runs_at_once(target, own, None)
        for at in range(0, total, chunk):
            count = min(chunk, total - at)
            noise = AddressedNoise(spec.seed, count, at)
            some = None if observed is None else observed[at : at + chunk]
            noise = SliceNoise(noise, part * own) if part else noise
            yield run_smc(target, num_runs=count, observed=some, noise=noise, **how)

    def texts(self) -> Iterator[Row]:
        """Mean log phi, ESS, log Z and tokens read of K texts, for each K and way to get them."""
        require_unconditional(self.target, "'texts' are measured of targets that wait for none.")
        for size in self.spec.num_particles:
            for name, rule, options in self.baselines():
                found = run_baseline(
                    name, self.target, num_samples=size, seed=self.spec.seed, **options
                )
                count = int(found.group.max()) + 1 if len(found.group) else 0
                about = {"rule": rule, "num_particles": size, "num_runs": count}
                noted = about | {"remark": found.note}
                yield noted | {
                    "quantity": "mean log φ of texts",
                    "kind": "estimate",
                    "value": found.mean_log_phi,
                    "source": found.samples_from,
                }
                yield noted | {"quantity": "ESS of texts", "value": found.ess}
                yield noted | {
                    "quantity": "log Z by texts",
                    "kind": found.log_z_kind,
                    "value": math.nan if found.log_z is None else found.log_z,
                    "standard_error": found.log_z_standard_error,
                }
                tokens = float(found.forward_tokens)
                yield about | {"quantity": "forward tokens", "kind": "count", "value": tokens}

    def baselines(self) -> Iterator[tuple[str, str | None, dict[str, Any]]]:
        """Name in ``BASELINES``, rule and arguments of each way to get the spec's texts."""
        spec, setup = self.spec, self.setup
        if spec.method in TEXT_METHODS:
            limit = {"max_draws": spec.max_draws} if spec.method == "rejection" else {}
            yield spec.method, None, limit
            return
        options = {"num_runs": spec.num_runs}
        from_base = isinstance(setup.proposal, Base)
        if setup.twist is None and from_base:
            yield "p0, SIS", Never().describe(), options
            return
        options["twist"] = setup.proposal.twist if setup.twist is None else setup.twist
        for rule in setup.rules:
            if isinstance(rule, Never) and not from_base:
                yield "twist, SIS", rule.describe(), options
            else:
                name = "p0, SMC" if from_base else "twist, SMC"
                yield name, rule.describe(), options | {"rule": rule}


def _bound_rows(bounds: LogZBounds) -> Iterator[Row]:
    """Both sides by their mean and pooled, and the gap; NaN where there is no upper side."""
    about = {"rule": bounds.rule, "num_particles": bounds.num_particles, "exact": bounds.exact}
    for quantity, lower, upper in (
        ("log Z", bounds.lower, bounds.upper),
        ("log Z, pooled", bounds.pooled_lower, bounds.pooled_upper),
    ):
        for side, value, kind in (("lower", lower, "bound"), ("upper", upper, bounds.upper_kind)):
            row = {"value": math.nan} if value is None else value.row()
            row |= {} if value is None else {"num_runs": value.num_runs}
            yield about | {"quantity": quantity, "side": side, "kind": kind} | row
    gap = {"quantity": "gap", "side": "", "kind": bounds.upper_kind, "exact": None}
    yield about | gap | bounds.gap_row() | {"num_runs": bounds.lower.num_runs}


_THREADS = threading.Lock()
_INSIDE: dict[object, int] = {}
"""PyTorch's threads before the first of all that use one alone, for each of them."""


def execute(spec: RunSpec, *, shared: str | Path | None = None, workers: int = 1) -> list[Row]:
    """Run a spec and measure what it asks for.

    Depends on the spec alone: models are loaded once for each process, exact samples and trained
    twists too, and none of it changes a number. PyTorch works on one thread meanwhile, since sums
    split over threads differ in their last bits: use processes to use several cores.

    Args:
        spec: what to do.
        shared: folder in which exact samples and trained twists are kept, for other specs and
            other workers; None keeps them in memory.
        workers: processes that share this machine's memory.

    Returns:
        One row for each number measured, with the columns ``COLUMNS``.
    """
    check_kind("spec", spec, RunSpec, "a RunSpec")
    folder = None if shared is None else check_path("shared", shared)
    with one_thread(), allow_memory(spec.memory_limit, workers=workers):
        target = fresh_target(spec)
        held = held_out(spec, spec.num_exact, spec.seed, folder)
        twist = twist_of(spec, target, folder)
        return measure(spec, target, twist, held)


def work(
    spec_json: str, shared: str | None, workers: int = 1, functions: bytes = b""
) -> dict[str, Any]:
    """Entry point of a worker of any kind: a spec as JSON in, rows or an error as JSON out.

    ``functions``, if any, are those that the worker's owner registered, pickled by their names.
    """
    start = time.perf_counter()
    answer: dict[str, Any] = {}
    try:
        for name, function in pickle.loads(functions).items() if functions else ():
            register_function(function, name=name)
        rows = execute(RunSpec.from_json(spec_json), shared=shared, workers=workers)
        answer["rows"] = dumps(rows)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - one bad spec must not end the others
        answer["error"] = {
            "type": type(error).__name__,
            "message": message_of(error),
            "traceback": traceback.format_exc(),
        }
    return answer | {"seconds": time.perf_counter() - start}


@contextmanager
def one_thread() -> Iterator[None]:
    """Let PyTorch use one thread; the last to leave restores the number before."""
    here = object()
    try:
        with _THREADS:
            _INSIDE[here] = next(iter(_INSIDE.values()), torch.get_num_threads())
            torch.set_num_threads(1)
        yield
    finally:
        try:
            _leave(here)
        except BaseException:  # An interrupt; what was left once may be left again.
            _leave(here)
            raise


def _leave(here: object) -> None:
    with _THREADS:
        if list(_INSIDE) == [here]:
            torch.set_num_threads(_INSIDE[here])
        _INSIDE.pop(here, None)


_MOST_TWISTS = 4
PHI_INDEPENDENT = ("saved", "shipped")
"""Methods whose twist does not depend on phi: one object can serve runs with several potentials."""


@dataclass(slots=True)
class TwistCache:
    """Twists that do not depend on phi, kept for later runs."""

    _twists: dict[tuple, Any] = field(default_factory=dict)

    def twist(self, spec: RunSpec, target: Target) -> Any:
        """The spec's twist: the very object of an earlier run where it would be equal."""
        if spec.method not in PHI_INDEPENDENT:
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
    twists: TwistCache | None = None,
    recording: Recording | None = None,
    target: Target | None = None,
    dead_runs: str = "keep",
) -> ReplaySession:
    """Prepare the runs of a spec, all in one batch, with its first K and its first rule.

    Args:
        spec: what to sample and how; its twist is loaded or computed, not trained.
        top_k: next tokens to record.
        twists: where twists are kept between runs.
        recording: the run before, which is re-weighted where that gives the same trace.
        target: in place of the spec's own, such as one on a model that has no name.
        dead_runs: "keep" (their log Z_hat is -inf) or "raise".

    Raises:
        ValueError: the spec has no single run: its method learns, or gives texts alone.
    """
    if spec.learns or spec.method in TEXT_METHODS:
        raise ValueError(
            f"method {quoted(spec.method)} is no single run with weights: train its twist first "
            "and "
            "take method 'saved', or measure the spec with tw.execute."
        )
    target = fresh_target(spec) if target is None else target
    require_unconditional(
        target, 'describe the problem, with "observed" beside the kind of its potential.'
    )
    setup = SamplerSetup.of(spec, (twists or TwistCache()).twist(spec, target))
    session = start_smc(
        target,
        num_particles=spec.num_particles[0],
        num_runs=spec.num_runs,
        twist=setup.twist,
        proposal=setup.proposal,
        resampler=spec.resampler,
        rule=setup.rules[0],
        seed=spec.seed,
        top_k=top_k,
        dead_runs=dead_runs,
        memory_limit=spec.memory_limit,
    )
    return ReplaySession(target, session.config, recording)
