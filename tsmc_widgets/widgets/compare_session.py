"""A live comparison of methods: controls above, tables and plots below, runs in the background."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import WeakSet

import ipywidgets as ipw

from tsmc_widgets.errors import check_one_of, message_of
from tsmc_widgets.evaluation.compare import Comparison
from tsmc_widgets.evaluation.result_table import ResultTable
from tsmc_widgets.evaluation.spec import RunSpec
from tsmc_widgets.widgets.compare_frames import FIGURES, Frames
from tsmc_widgets.widgets.compare_record import CompareRecord, encode_failures, encode_plan
from tsmc_widgets.widgets.compare_settings import CompareSettings, menu
from tsmc_widgets.widgets.compare_view import CompareView
from tsmc_widgets.widgets.front_end import run_action
from tsmc_widgets.widgets.sweep import Sweep

PUBLISH_SECONDS = 0.2
"""Shortest time between two reports; tables and plots come with at most every fifth."""
RESULTS_SECONDS = 1.0
WAIT_SECONDS = 0.1

PROBLEMS = ("rainy-week", "one-star-review")
METHODS = ("none", "shipped", "optimal")

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
        problems: Any = PROBLEMS,
        methods: Any = METHODS,
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
                session.sweep.send_home()

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
            "workers": sweep.crew.size,
            "drops": sweep.crew.can_stop,
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
