"""A live comparison of methods: controls above, tables and plots below, runs in the background."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any
from weakref import WeakSet

import ipywidgets as ipw

from tsmc_widgets.errors import check_integer, check_one_of, message_of
from tsmc_widgets.experiments.compare import Comparison
from tsmc_widgets.experiments.result_table import ResultTable
from tsmc_widgets.experiments.spec import METHODS as ALL_METHODS
from tsmc_widgets.experiments.spec import TEXT_METHODS, RunSpec, Training
from tsmc_widgets.learning.objectives import METHODS as LEARNING_METHODS
from tsmc_widgets.smc.resampling import RULES
from tsmc_widgets.targets.description import check_problem, problem_of
from tsmc_widgets.targets.problems import PROBLEMS
from tsmc_widgets.twists.storage import shipped_twists
from tsmc_widgets.widgets.compare_record import (
    FIGURES,
    CompareRecord,
    Frames,
    encode_failures,
    encode_plan,
)
from tsmc_widgets.widgets.compare_view import CompareView
from tsmc_widgets.widgets.front_end import run_action
from tsmc_widgets.widgets.sweep import Sweep

METHODS = tuple(name for name in ALL_METHODS if name != "saved")
MEASURES = ("bounds", "kl", "profiles", "runs")
_COUNTS = {"seeds": 1, "num_runs": 2, "num_exact": 0, "num_samples": 2, "num_updates": 1,
           "batch_size": 2}  # fmt: skip


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
        problems = [check_problem(problem) for problem in _several("problems", self.problems)]
        names = [problem_of(problem).name for problem in problems]
        if len(set(names)) < len(names):
            raise ValueError(f"every problem must have a name of its own; got {', '.join(names)}.")
        object.__setattr__(self, "problems", tuple(problems))
        for name, allowed in (("methods", METHODS), ("rules", tuple(sorted(RULES)))):
            chosen = _several(name, getattr(self, name))
            for choice in chosen:
                check_one_of(name, choice, allowed)
            kept = dict.fromkeys(chosen)
            object.__setattr__(self, name, tuple(c for c in allowed if c in kept))
        sizes = _several("num_particles", self.num_particles)
        for size in sizes:
            check_integer("num_particles", size)
        object.__setattr__(self, "num_particles", tuple(sorted({int(size) for size in sizes})))
        for name, least in _COUNTS.items():
            check_integer(name, getattr(self, name), at_least=least)
        check_one_of("profiles", self.profiles, (True, False))

    @property
    def problem_names(self) -> tuple[str, ...]:
        """Names of the problems, also of those described in place."""
        return tuple(problem_of(problem).name for problem in self.problems)

    @property
    def misfits(self) -> dict[tuple[str, str], str]:
        """Why a method is left out, by (problem, method)."""
        found = {
            (problem_of(problem).name, method): misfit(problem, method)
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

    def _spec(self, problem: Any, method: str, seed: int) -> RunSpec:
        texts = bool(set(self.methods) & set(TEXT_METHODS))
        measures = MEASURES if self.profiles else ("bounds", "kl")
        if texts and not problem_of(problem).conditional:
            measures = (*measures, "texts")
        training = None
        if method in LEARNING_METHODS:
            training = Training(num_updates=self.num_updates, batch_size=self.batch_size, seed=seed)
        return RunSpec(
            problem=problem,
            method=method,
            training=training,
            num_particles=self.num_particles,
            num_runs=self.num_runs,
            num_exact=self.num_exact,
            num_samples=self.num_samples,
            rule=self.rules,
            seed=seed,
            measures=("texts",) if method in TEXT_METHODS else measures,
        )


def misfit(problem: Any, method: str) -> str:
    """Why a method can not be run on a problem; "" where it can."""
    about = problem_of(problem)
    if method == "shipped" and about.name not in shipped_twists():
        return "no twist ships for it"
    if method == "optimal" and not about.exact:
        return "too large to be enumerated"
    if about.conditional and method in (*TEXT_METHODS, "look-ahead", "optimal"):
        return "φ waits for an observation"
    if about.conditional and about.form == "table" and method in LEARNING_METHODS:
        return "its table learns one observation at a time"
    return ""


def menu(settings: CompareSettings) -> dict[str, Any]:
    """What can be chosen, with words on each, for the view."""
    own = [problem for problem in settings.problems if not isinstance(problem, str)]
    return {
        "problems": [_entry(problem) for problem in (*PROBLEMS, *own)],
        "methods": [
            {"name": name, "group": kind}
            for kind, names in (
                ("given", [m for m in METHODS if m not in (*TEXT_METHODS, *LEARNING_METHODS)]),
                ("learned", LEARNING_METHODS),
                ("texts", TEXT_METHODS),
            )
            for name in names
        ],
    }


def _entry(problem: Any) -> dict[str, Any]:
    about = problem_of(problem)
    return {
        "value": problem,
        "name": about.name,
        "summary": about.summary,
        "teaches": about.teaches,
        "group": _group(about.name, about.model),
        "misfits": {m: why for m in METHODS if (why := misfit(problem, m))},
    }


def _group(name: str, model: str) -> str:
    if name not in PROBLEMS:
        return "own"
    return {"table": "toys", "storybook": "storybook"}.get(model, "paper")


def _several(name: str, value: Any) -> list[Any]:
    one = isinstance(value, str | int | Mapping) or not isinstance(value, Iterable)
    values = [value] if one else list(value)
    if not values:
        raise ValueError(f"{name} must hold at least one choice; got none.")
    return values


PUBLISH_SECONDS = 0.2
"""Shortest time between two reports; tables and plots come with at most every fifth."""
RESULTS_SECONDS = 1.0
WAIT_SECONDS = 0.1

DEFAULT_PROBLEMS = ("rainy-week", "one-star-review")
DEFAULT_METHODS = ("none", "shipped", "optimal")

_SESSIONS: WeakSet[CompareSession] = WeakSet()


class CompareSession(ipw.VBox):
    """Compare methods while you watch: choose, press Start, see the table and the figures fill.

    Shown as the last line of a cell. Runs are computed by worker processes, so that kernel and page
    stay free. What has ended is stored as it comes: after a pause, a cancel, a killed kernel or one
    more seed, Start computes what is missing and nothing else. ``table``, ``comparison`` and
    ``specs`` are at hand in the next cell. In a script, as for all spawned processes, ``run``
    stands under ``if __name__ == "__main__":``.

    Args:
        problems: names in ``PROBLEMS``, or descriptions as for ``RunSpec``.
        methods: as for ``Comparison``; one that does not fit a problem is left out there.
        folder: where results are kept, by the key of their spec; None keeps them in memory.
        workers: runs at once; None is one for each core, or for each that the executor names.
        executor: where they run, as for ``map_runs``: a Dask cluster's ``client.get_executor()``,
            say, with ``workers``; None starts processes here.
        **settings: where the other controls start, see ``CompareSettings``.
    """

    def __init__(
        self,
        problems: Any = DEFAULT_PROBLEMS,
        methods: Any = DEFAULT_METHODS,
        *,
        folder: str | Path | None = "results",
        workers: int | None = None,
        executor: Any = None,
        **settings: Any,
    ) -> None:
        self._settings = CompareSettings(problems=problems, methods=methods, **settings)
        self.view = CompareView(menu=menu(self._settings), settings=self._settings.to_dict())
        self._record = CompareRecord()
        self._refusal = self._note = ""
        self._news = threading.Event()
        self._closed = False
        self._shown: Any = None
        self._results_due = 0.0
        self.sweep = Sweep(self._news.set, folder=folder, workers=workers, executor=executor)
        super().__init__([self.view], layout={"width": "100%"})
        self.add_class("tsmc-watch")
        self.sweep.take(self._settings.specs())
        self.view.observe(self._run_action, "ask")
        self.view.observe(self._moved, "settings")
        self._publish()
        threading.Thread(target=self._tell, name="compare-view", daemon=True).start()
        self._stop_others()
        _SESSIONS.add(self)

    @property
    def settings(self) -> CompareSettings:
        """What the controls say."""
        return self._settings

    @property
    def specs(self) -> list[RunSpec]:
        """Everything that is to be run, whether or not it has been."""
        return self.sweep.comparison.specs

    @property
    def comparison(self) -> Comparison:
        """Results so far over seeds, with tables as CSV, LaTeX and HTML."""
        return self.sweep.snapshot()

    @property
    def table(self) -> ResultTable:
        """Results so far, one row for each number."""
        return self.comparison.table

    @property
    def misfits(self) -> dict[tuple[str, str], str]:
        """Why a method is left out, by (problem, method)."""
        return self._settings.misfits

    def set(self, **settings: Any) -> None:
        """Move controls from code: ``session.set(seeds=5, methods=("none", "ctl"))``.

        Raises:
            RuntimeError: runs are under way.
        """
        self._take(replace(self._settings, **settings))

    def start(self) -> None:
        """Run what is missing: for the first time, after a pause or a cancel, or once more."""
        self._refusal = ""
        self._stop_others()
        self.sweep.start()

    def pause(self) -> None:
        """Start nothing more; what runs ends first."""
        self.sweep.pause()

    def cancel(self) -> None:
        """Stop at once: what is done stays, what runs is dropped and begins anew with Start."""
        self.sweep.cancel()

    def run(self, timeout: float | int | None = None) -> Comparison:
        """Start, and wait until everything is done; the comparison with its results.

        Raises:
            TimeoutError: the time was up; the runs go on.
        """
        self.wait(timeout)
        if self.sweep.missing:
            self.start()
            if not self.wait(timeout):
                raise TimeoutError(
                    f"{len(self.sweep.missing)} runs are not done after {timeout} s; they go on."
                )
        return self.comparison

    def wait(self, timeout: float | int | None = None) -> bool:
        """Wait until nothing is under way; False if that takes too long."""
        end = None if timeout is None else time.monotonic() + timeout
        # In short turns, so that an interrupt of the kernel is heard.
        while not self.sweep.wait(WAIT_SECONDS):
            if end is not None and time.monotonic() > end:
                return False
        if self.sweep.error is not None:
            raise self.sweep.error
        return True

    def figure(self, kind: str, problem: str | None = None, *, theme: str = "light") -> Any:
        """A finished plot of what is done, as a plotly figure.

        Args:
            kind: "bounds", "gap", "kl", "reward", "profiles" or "runs".
            problem: its name; None is the first.
            theme: "light" or "dark".
        """
        check_one_of("kind", kind, FIGURES)
        names = self._settings.problem_names
        problem = names[0] if problem is None else problem
        check_one_of("problem", problem, names)
        return FIGURES[kind](Frames.of(self.comparison, problem), theme)

    def export(self, kind: str, path: str | Path | None = None) -> Path:
        """Write what is done: numbers as CSV, or tables as LaTeX or HTML.

        Args:
            kind: "csv", "tex" or "html".
            path: the file; None is the name that stands in the view.
        """
        check_one_of("kind", kind, ("csv", "tex", "html"))
        path = Path(path or f"{self.view.stem}.{kind}")
        comparison = self.comparison
        if not comparison.quantities:
            raise ValueError("Nothing to write yet: no method has all its seeds on any problem.")
        path.parent.mkdir(parents=True, exist_ok=True)
        comparison.export(kind, path)
        self._note = f"written: {path}"
        self._news.set()
        return path

    def close(self) -> None:
        """End all runs and take the widgets from the page."""
        # Also called of a session whose arguments were refused.
        if not hasattr(self, "sweep"):
            return
        self._closed = True
        self._news.set()
        self.sweep.close()
        self.view.close()
        super().close()

    def _stop_others(self) -> None:
        """One comparison at a time: a cell that is run again leaves its old session behind."""
        for session in list(_SESSIONS):
            if session is not self:
                session.sweep.stop_workers()

    def _take(self, settings: CompareSettings) -> None:
        self.sweep.take(settings.specs())
        self._settings, self._refusal, self._note = settings, "", ""
        self._results_due = 0.0
        shown = settings.to_dict()
        if self.view.settings != shown:
            self.view.settings = shown

    def _moved(self, change: Any) -> None:
        """A control was moved in the view; what can not be is put back, and said."""
        if change["new"] == self._settings.to_dict():
            return
        try:
            self._take(CompareSettings.from_dict(change["new"]))
        except Exception as error:  # noqa: BLE001 - shown beside the controls
            self._refusal = message_of(error)
            self._news.set()
            self.view.settings = self._settings.to_dict()

    def _run_action(self, change: Any) -> None:
        """Do what was pressed in the view, and say why where that can not be."""
        acts: dict[str, Callable[[], Any]] = {
            "start": self.start, "pause": self.pause, "cancel": self.cancel,
            "csv": lambda: self.export("csv"), "tex": lambda: self.export("tex"),
            "html": lambda: self.export("html"),
        }  # fmt: skip
        self._refusal = ""
        self._refusal = run_action(change["new"], acts)
        self._show_status()

    def _tell(self) -> None:
        """What the view's thread does: report what is new, seldom enough to cost little."""
        while not self._closed:
            self._news.wait()
            self._news.clear()
            began = time.monotonic()
            try:
                self._publish()
            except Exception as error:  # noqa: BLE001 - shown in words
                if not self._closed:
                    self._refusal = f"The runs go on, but can not be shown: {error!r}"
                    self._show_status()
            time.sleep(max(PUBLISH_SECONDS, 2 * (time.monotonic() - began)))

    def _publish(self) -> None:
        comparison, now = self.comparison, time.monotonic()
        done = (self._settings, tuple(comparison.table.results))
        with self.view.hold_sync():
            self.view.plan = encode_plan(self.sweep, comparison, self.misfits)
            if done != self._shown and (now >= self._results_due or not self.sweep.busy):
                self._shown, self._results_due = done, now + RESULTS_SECONDS
                self.view.results = self._record.problems(comparison)
            self._show_status()
        if done != self._shown:
            self._news.set()

    def _show_status(self) -> None:
        sweep, comparison = self.sweep, self.comparison
        left = sweep.expected_seconds()
        self.view.status = {
            "state": sweep.state,
            "done": len(comparison.table.results),
            "total": comparison.total,
            "running": [[_named(s), max(0.0, time.time() - t)] for s, t in sweep.running],
            "left": left if math.isfinite(left) else None,
            "workers": sweep.pool.size,
            "drops": sweep.pool.can_stop,
            "folder": "" if sweep.folder is None else str(sweep.folder),
            "error": self._refusal or _said(sweep.error),
            "failures": encode_failures(comparison),
            "note": self._note,
        }


def _named(spec: RunSpec) -> str:
    return f"{spec.problem_name} · {spec.method} · seed {spec.seed}"


def _said(error: Exception | None) -> str:
    """What stopped the runs, in words."""
    return "" if error is None else f"{message_of(error)}\nWhat was done stays."
