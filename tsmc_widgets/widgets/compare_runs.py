"""What a comparison asks for, and the runs that answer it: in workers, stored as they end."""

from __future__ import annotations

import math
import os
import statistics
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from tsmc_widgets.errors import as_list, check_integer, check_one_of, check_path
from tsmc_widgets.experiments.compare import Comparison, check_method, spec_of
from tsmc_widgets.experiments.runs import (
    CancellablePool,
    ResultFolder,
    RunResult,
    RunStream,
    check_executor,
    map_runs,
)
from tsmc_widgets.experiments.spec import METHODS as ALL_METHODS
from tsmc_widgets.experiments.spec import TEXT_METHODS, RunSpec, Training
from tsmc_widgets.learning.objectives import METHODS as LEARNING_METHODS
from tsmc_widgets.smc.resampling import RULES
from tsmc_widgets.targets.description import parse_problem, problem_reference
from tsmc_widgets.targets.problems import PROBLEMS
from tsmc_widgets.twists.storage import shipped_twists

METHODS = tuple(name for name in ALL_METHODS if name != "saved")
MEASURES = ("bounds", "kl", "profiles", "runs")
_COUNTS = {"seeds": 1, "num_runs": 2, "num_exact": 0, "num_samples": 2, "num_updates": 1,
           "batch_size": 2}  # fmt: skip
_MOST = {"num_particles": 4096, "seeds": 100, "num_runs": 10_000, "num_exact": 10_000,
         "num_samples": 100_000, "num_updates": 100_000, "batch_size": 10_000}  # fmt: skip
"""What a page may ask for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareSettings:
    """Problems by methods by seeds, and what each run measures.

    Attributes:
        problems: names in ``PROBLEMS``, or descriptions as for ``RunSpec``.
        methods: as for ``Comparison``; one that does not fit a problem is left out there.
        num_particles: one or more K.
        seeds: how many; each seeds a training and the runs that measure it.
        num_runs: forward runs for each K and rule.
        num_exact: exact samples for upper bounds and KL(sigma||q); 0 does without.
        num_samples: texts drawn from q for the KL divergences.
        rules: one or more of "always", "ess", "never".
        num_updates: what each learning method may spend.
        batch_size: texts drawn for each update.
        profiles: whether ESS, surviving ancestors and log Z_hat of single runs are recorded too,
            which takes a second sweep for each K and rule.
    """

    problems: Any
    methods: str | Iterable[str]
    num_particles: int | Iterable[int] = (1, 4, 16, 64)
    seeds: int = 3
    num_runs: int = 50
    num_exact: int = 50
    num_samples: int = 500
    rules: str | Iterable[str] = ("ess",)
    num_updates: int = 100
    batch_size: int = 100
    profiles: bool = True

    def __post_init__(self) -> None:
        """Check every choice, and bring each into its one form."""
        problems = [problem_reference(problem) for problem in as_list("problems", self.problems)]
        names = [parse_problem(problem).name for problem in problems]
        if len(set(names)) < len(names):
            raise ValueError(f"every problem must have a name of its own; got {', '.join(names)}.")
        object.__setattr__(self, "problems", tuple(problems))
        methods = {check_method(method): None for method in as_list("methods", self.methods)}
        rules = as_list("rules", self.rules)
        for rule in rules:
            check_one_of("rules", rule, sorted(RULES))
        for name, chosen, order in (("methods", methods, METHODS), ("rules", rules, sorted(RULES))):
            # Folders of saved twists come last, as they were given.
            kept = [each for each in (*order, *chosen) if each in chosen]
            object.__setattr__(self, name, tuple(dict.fromkeys(kept)))
        sizes = as_list("num_particles", self.num_particles)
        for size in sizes:
            check_integer("num_particles", size)
        object.__setattr__(self, "num_particles", tuple(sorted({int(size) for size in sizes})))
        for name, least in _COUNTS.items():
            check_integer(name, getattr(self, name), at_least=least)
        check_one_of("profiles", self.profiles, (True, False))

    @property
    def problem_names(self) -> tuple[str, ...]:
        """Names of the problems, also of those described in place."""
        return tuple(parse_problem(problem).name for problem in self.problems)

    @property
    def misfits(self) -> dict[tuple[str, str], str]:
        """Why a method is left out, by (problem, method)."""
        found = {
            (parse_problem(problem).name, method): misfit(problem, method)
            for problem in self.problems
            for method in self.methods
        }
        return {pair: why for pair, why in found.items() if why}

    def specs(self) -> list[RunSpec]:
        """One spec for each seed, method and problem that fit; first seeds first."""
        return [
            self._spec(problem, method, seed)
            for seed in range(self.seeds)
            for problem in self.problems
            for method in self.methods
            if not misfit(problem, method)
        ]

    def to_dict(self) -> dict[str, Any]:
        """In JSON's types."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> CompareSettings:
        """Settings from their fields; those left out have their usual value."""
        known = [field.name for field in fields(cls)]
        for name in given:
            check_one_of("the setting", name, known)
        return cls(**given)

    def check_page(self, now: CompareSettings, offered: Mapping[str, Any]) -> None:
        """Raise ValueError for what a page does not ask for: more than it could show, new problems.

        Args:
            now: the settings that stand, as large as Python made them.
            offered: the page's menu.
        """
        for problem in self.problems:
            check_one_of("problem", problem, [entry["value"] for entry in offered["problems"]])
        for method in self.methods:
            check_one_of("method", method, [entry["name"] for entry in offered["methods"]])
        for name, most in _MOST.items():
            values = getattr(self, name), getattr(now, name)
            asked, stands = (max(v) if isinstance(v, tuple) else v for v in values)
            if asked > max(most, stands):
                raise ValueError(
                    f"{name} must be at most {most} on a page; got {asked}. Python takes more."
                )

    def _spec(self, problem: Any, method: str, seed: int) -> RunSpec:
        texts = bool(set(self.methods) & set(TEXT_METHODS))
        measures = MEASURES if self.profiles else ("bounds", "kl")
        if texts and not parse_problem(problem).conditional:
            measures = (*measures, "texts")
        learns = method in LEARNING_METHODS
        return spec_of(
            problem,
            method,
            seed,
            Training(num_updates=self.num_updates, batch_size=self.batch_size) if learns else None,
            measures,
            num_particles=self.num_particles,
            num_runs=self.num_runs,
            num_exact=self.num_exact,
            num_samples=self.num_samples,
            rule=self.rules,
        )


def misfit(problem: Any, method: str) -> str:
    """Why a method cannot be run on a problem; "" where it can."""
    about = parse_problem(problem)
    if method == "shipped" and about.name not in shipped_twists():
        return "no twist ships for it"
    if method == "optimal" and not about.exact:
        return "too large to be enumerated"
    if about.conditional and method in (*TEXT_METHODS, "look-ahead", "optimal"):
        return "φ waits for an observation"
    if about.conditional and about.form == "table" and method in LEARNING_METHODS:
        return "its table learns one observation at a time"
    return ""


def menu(settings: CompareSettings, before: Mapping[str, Any]) -> dict[str, Any]:
    """What can be chosen, with words on each, for the view; what was offered before stays."""
    problems = {name: name for name in PROBLEMS}
    problems |= {entry["name"]: entry["value"] for entry in before.get("problems", ())}
    problems |= {parse_problem(problem).name: problem for problem in settings.problems}
    methods = [*(entry["name"] for entry in before.get("methods", ())), *settings.methods]
    return {
        "problems": [_entry(problem) for problem in problems.values()],
        "methods": [
            {"name": name, "group": kind}
            for kind, names in (
                ("given", [m for m in METHODS if m not in (*TEXT_METHODS, *LEARNING_METHODS)]),
                ("learned", LEARNING_METHODS),
                ("texts", TEXT_METHODS),
                ("own", dict.fromkeys(m for m in methods if m not in METHODS)),
            )
            for name in names
        ],
    }


def _entry(problem: Any) -> dict[str, Any]:
    about = parse_problem(problem)
    groups = {"table": "toys", "storybook": "storybook", "smollm2": "smollm2"}
    return {
        "value": problem,
        "name": about.name,
        "summary": about.summary,
        "teaches": about.teaches,
        "group": groups.get(about.model, "paper") if about.name in PROBLEMS else "own",
    }


MOST_WORKERS = 8
"""Processes that are started unasked; each holds models of its own."""
POLL_SECONDS = 0.2


class ComparisonRuns:
    """Specs, their results, and a pool of workers that computes what is missing.

    Has no thread of its own: ``read`` and ``compute`` are made of steps that a ``LiveSession``
    takes.

    Args:
        folder: where results are kept, by the key of their spec; None keeps them in memory.
        workers: runs at once; None is one for each core, or for each that the executor names.
        executor: as for ``map_runs``; None starts processes of its own.

    Attributes:
        comparison: specs and results; a new one after each ``take``.
        stopping: "pausing" or "cancelling" once what is computed was to end; empty else.
        unstored: why some result is in memory alone; empty else.
    """

    def __init__(
        self, *, folder: str | Path | None, workers: int | None, executor: Any = None
    ) -> None:
        check_executor(executor)
        if folder is not None:
            folder = check_path("folder", folder)
        if workers is None:
            cores = min(os.cpu_count() or 1, MOST_WORKERS)
            workers = getattr(executor, "_max_workers", None) or cores
        self.comparison = Comparison.of([])
        self.folder = folder
        self.pool = CancellablePool(workers, executor)
        self.stopping = self.unstored = ""
        self._known: dict[str, RunResult] = {}
        self._lock = threading.RLock()
        self._stream: RunStream | None = None

    @property
    def missing(self) -> list[RunSpec]:
        """Specs without a result; those that failed are tried again."""
        results = self.comparison.table.results
        return [spec for spec in self.comparison.specs if spec.key not in results]

    @property
    def running(self) -> list[tuple[RunSpec, float]]:
        """What workers compute, and since when, in seconds of ``time.time``."""
        known = {spec.to_json(): spec for spec in self.comparison.specs}
        found = [(known.get(work.args[0]), work.since) for work in self.pool.running]
        return [(spec, since) for spec, since in found if spec is not None]

    def snapshot(self) -> Comparison:
        """Specs and results as they stand, which change no more."""
        with self._lock:
            found = Comparison.of(self.comparison.specs)
            found.table.results.update(self.comparison.table.results)
            found.table.failures.update(self.comparison.table.failures)
        return found

    def take(self, specs: Sequence[RunSpec]) -> None:
        """Ask for these specs instead; results that are known fill in by themselves."""
        with self._lock:
            self.comparison, self.stopping = Comparison.of(specs), ""
            for spec in specs:
                if spec.key in self._known:
                    self.comparison.table.add(self._known[spec.key])

    def read(self) -> Iterator[None]:
        """Fill in what is stored in the folder, a file a step."""
        if self.folder is None:
            return
        comparison, store = self.comparison, ResultFolder(self.folder)
        for spec in self.missing:
            found = store.read(spec)
            if found is not None:
                self._add(comparison, found)
            yield

    def compute(self) -> Iterator[None]:
        """Compute what is missing; a step waits for a result, or for a moment."""
        comparison = self.comparison
        stream = map_runs(self.missing, self.pool, self.folder)
        with self._lock:
            self._stream, asked = stream, self.stopping
        if asked:
            self.stop(asked)
        try:
            while True:
                result = stream.poll(POLL_SECONDS)
                if result is not None:
                    self._add(comparison, result)
                yield
        except StopIteration:
            return
        finally:
            self._stream = None

    def stop(self, how: str) -> None:
        """Start nothing more; what runs ends first.

        Args:
            how: "pausing", or "cancelling" to drop what runs, except on another's executor.
        """
        with self._lock:
            self.stopping, stream = how, self._stream
        if stream is not None:
            stream.cancel()
            if how == "cancelling":
                self.pool.stop_workers()

    def close(self) -> None:
        """End everything."""
        self.stop("cancelling")
        self.pool.stop_workers()
        self.pool.shutdown(wait=False, cancel_futures=True)

    def expected_seconds(self, now: float | None = None) -> float:
        """About how long what is missing will take; NaN while nothing has been timed."""
        now = time.time() if now is None else now
        since = {spec.key: start for spec, start in self.running}
        left = 0.0
        for spec in self.missing:
            if spec.key in self.comparison.table.failures:
                continue
            left += max(0.0, self._usual(spec) - max(0.0, now - since.get(spec.key, now)))
        return left / self.pool.size

    def _usual(self, spec: RunSpec) -> float:
        """Median time of runs most like this one, of those that have ended."""
        timed = [r for r in self._known.values() if math.isfinite(r.seconds) and not r.error]
        alike = [r for r in timed if r.spec.problem_name == spec.problem_name]
        own = [r for r in alike if r.spec.label == spec.label]
        kind = [r for r in alike if r.spec.learns == spec.learns]
        for group in (own, kind, alike, timed):
            if group:
                return statistics.median(r.seconds for r in group)
        return math.nan

    def _add(self, comparison: Comparison, result: RunResult) -> None:
        with self._lock:
            self.unstored = result.unstored or self.unstored
            if result.error is None:
                self._known[result.spec.key] = result
            comparison.table.add(result)
