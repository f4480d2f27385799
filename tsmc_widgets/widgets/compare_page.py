"""A live comparison of methods: controls above, tables and plots below, runs in the background."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tsmc_widgets.errors import check_one_of, message_of
from tsmc_widgets.experiments.compare import BEGINS, Comparison
from tsmc_widgets.experiments.result_table import ResultTable
from tsmc_widgets.experiments.spec import RunSpec
from tsmc_widgets.files import page_path
from tsmc_widgets.widgets.compare_record import (
    FIGURES,
    CompareRecord,
    Frames,
    draw,
    encode_failures,
    encode_plan,
)
from tsmc_widgets.widgets.compare_runs import CompareSettings, ComparisonRuns, menu
from tsmc_widgets.widgets.front_end import CompareView
from tsmc_widgets.widgets.session import LivePage, Progress, Steps, error_text

RESULTS_SECONDS = 1.0
"""Shortest time between two reports of tables and plots."""

DEFAULT_PROBLEMS = ("rainy-week", "one-star-review")
DEFAULT_METHODS = ("none", "shipped", "optimal")


class CompareSession(LivePage):
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

    _subject = "comparison"
    _raises = True

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
        self.runs = ComparisonRuns(folder=folder, workers=workers, executor=executor)
        super().__init__(CompareView(settings=self._settings.to_dict()))
        self._record = CompareRecord()
        self._note = ""
        self._computing = False
        self._showing = threading.RLock()
        self._shown: Any = None
        self._reported: Any = None
        self._results_due = 0.0
        self.children = [self.view]
        self._take(self._settings)
        self.view.observe(self._press, "ask")
        self.view.observe(self._moved, "settings")
        self._stop_others()

    @property
    def state(self) -> str:
        """One of idle, running, pausing, paused, cancelling, cancelled, done and failed."""
        stopping = self.runs.stopping
        if self.busy:
            return stopping or "running"
        if not self.runs.missing:
            return "done"
        if not self._computing:
            return "idle"
        ended = {"pausing": "paused", "cancelling": "cancelled"}.get(stopping, "done")
        return "failed" if self.live.progress.state == "failed" else ended

    @property
    def busy(self) -> bool:
        """Whether runs are under way."""
        return self._computing and (self.live.overtaken or self.live.progress.state == "running")

    @property
    def settings(self) -> CompareSettings:
        """What the controls say."""
        return self._settings

    @property
    def specs(self) -> list[RunSpec]:
        """Everything that is to be run, whether or not it has been."""
        return self.runs.comparison.specs

    @property
    def comparison(self) -> Comparison:
        """Results so far over seeds, with tables as CSV, LaTeX and HTML."""
        return self.runs.snapshot()

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
        if not self.busy:
            self._computing, self.runs.stopping = True, ""
            self.live.submit(lambda: Steps(self.runs.compute(), self.runs))

    def pause(self) -> None:
        """Start nothing more; what runs ends first."""
        self._stop("pausing")

    def cancel(self) -> None:
        """Stop at once: what is done stays, what runs is dropped; Start computes it again."""
        self._stop("cancelling")

    def run(self, timeout: float | int | None = None) -> Comparison:
        """Start, and wait until everything is done; the comparison with its results.

        Raises:
            TimeoutError: the time was up; the runs go on.
        """
        # Not ``wait``, which raises what ended the runs before.
        self.live.wait(timeout)
        if self.runs.missing:
            self.start()
            if not self.wait(timeout):
                raise TimeoutError(
                    f"{len(self.runs.missing)} runs are not done after {timeout} s; they go on."
                )
        return self.comparison

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
        return draw(kind, Frames.of(self.comparison, problem), theme)

    def export(self, kind: str, path: str | Path | None = None) -> Path:
        """Write what is done: numbers as CSV, or tables as LaTeX or HTML.

        Args:
            kind: "csv", "tex" or "html".
            path: the file; None is the name that stands in the view.
        """
        check_one_of("kind", kind, ("csv", "tex", "html"))
        path = Path(path or page_path(f"{self.view.stem}.{kind}", begins=BEGINS[kind]))
        comparison = self.comparison
        if not comparison.quantities:
            raise ValueError("Nothing to write yet: no method has all its seeds on any problem.")
        path.parent.mkdir(parents=True, exist_ok=True)
        comparison.export(kind, path)
        self._note = f"written: {path}"
        self._show_status(self.live.progress)
        return path

    def still(self) -> str:
        """Tables of what is done."""
        return self.comparison._repr_html_()

    def _retire(self) -> None:
        """Cancel, and end idle workers too, which hold models; ``start`` calls new ones."""
        self.cancel()
        self.runs.pool.stop_workers()

    def close(self) -> None:
        """End all runs and take the widgets from the page."""
        if self.live is not None:
            self.runs.close()
        super().close()

    @property
    def _actions(self) -> dict[str, Callable[[], Any]]:
        """What can be pressed in the view."""
        return {
            "start": self.start, "pause": self.pause, "cancel": self.cancel,
            "csv": lambda: self.export("csv"), "tex": lambda: self.export("tex"),
            "html": lambda: self.export("html"),
        }  # fmt: skip

    def _stop(self, how: str) -> None:
        if self.busy and self.runs.stopping != "cancelling":
            self.runs.stop(how)
            self._show_status(self.live.progress)

    def _take(self, settings: CompareSettings) -> None:
        if self.busy:
            raise RuntimeError("pause or cancel the runs under way first.")
        self._computing = False
        self.runs.take(settings.specs())
        self._settings, self._refusal, self._note = settings, "", ""
        self._results_due = 0.0
        self.view.menu = menu(settings, self.view.menu)
        shown = settings.to_dict()
        if self.view.settings != shown:
            self.view.settings = shown
        self._show(Progress("waiting"))
        self.live.submit(lambda: Steps(self.runs.read(), self.runs))

    def _moved(self, change: Any) -> None:
        """A control was moved in the view; what is refused is put back, with the reason."""
        if change["new"] == self._settings.to_dict():
            return
        try:
            asked = CompareSettings.from_dict(change["new"])
            asked.check_page(self._settings, self.view.menu)
            self._take(asked)
        except Exception as error:  # noqa: BLE001 - shown beside the controls
            self._refusal = message_of(error)
            self.view.settings = self._settings.to_dict()
            self._show_status(self.live.progress)

    def _show(self, progress: Progress) -> None:
        with self._showing, self.view.hold_sync():
            comparison, now = self.comparison, time.monotonic()
            done = (self._settings, tuple(comparison.table.results))
            running = {spec.key for spec, _ in self.runs.running}
            plan = encode_plan(comparison, running, self.misfits)
            if done != self._shown and (now >= self._results_due or not self.busy):
                self._shown, self._results_due = done, now + RESULTS_SECONDS
                self.view.results = self._record.problems(comparison)
            news = (plan, self.state, progress.error)
            # Steps come several times a second; the page counts the seconds between news itself.
            if news != self._reported:
                self.view.plan, self._reported = plan, news
                self._show_status(progress)

    def _show_status(self, progress: Progress) -> None:
        with self._showing:
            runs, comparison = self.runs, self.comparison
            left = runs.expected_seconds()
            stopped = error_text(progress.error, "What was done stays.")
            unstored = runs.unstored and f"Not stored, and lost with this page: {runs.unstored}"
            self.view.status = {
                "state": self.state,
                "done": len(comparison.table.results),
                "total": comparison.total,
                "running": [[_named(s), max(0.0, time.time() - t)] for s, t in runs.running],
                "left": left if math.isfinite(left) else None,
                "workers": runs.pool.size,
                "folder": "" if runs.folder is None else str(runs.folder),
                "error": self._refusal or stopped or unstored,
                "failures": encode_failures(comparison),
                "note": self._note,
            }


def _named(spec: RunSpec) -> str:
    return f"{spec.problem_name} · {spec.label} · seed {spec.seed}"
