"""A live comparison of methods: controls above, tables and plots below, runs in the background."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tsmc_widgets.errors import check_one_of, message_of
from tsmc_widgets.evaluation.estimates import t_interval
from tsmc_widgets.experiments.compare import BEGINS, Comparison, OverSeeds, over_seeds, place_of
from tsmc_widgets.experiments.result_table import ResultTable
from tsmc_widgets.experiments.runs import RunResult
from tsmc_widgets.experiments.spec import RunSpec
from tsmc_widgets.files import page_path
from tsmc_widgets.widgets.compare_runs import CompareSettings, ComparisonRuns, menu
from tsmc_widgets.widgets.front_end import CompareView
from tsmc_widgets.widgets.record import known
from tsmc_widgets.widgets.session import LivePage, Progress, Steps, error_text

if TYPE_CHECKING:
    import pandas as pd

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


PROFILES = ("ESS / K", "surviving ancestors / K")
SINGLE_RUNS = "log Z of a run"
MOST_BINS = 60


class CompareRecord:
    """Encodes a comparison; what has not changed since the last time is not computed again."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Any, dict[str, Any]]] = {}

    def problems(self, comparison: Comparison) -> dict[str, Any]:
        """Of each problem that has results: cells, profiles, histograms and log Z if it is exact.

        A cell is [method, rule, quantity, K, kind, mean, low, high, seeds, best, over]; ``over``
        says what its interval is of: "seeds", or "runs" where there is a single seed or all agree.
        """
        found = {}
        for name in dict.fromkeys(spec.problem_name for spec in comparison.specs):
            specs = [spec for spec in comparison.specs if spec.problem_name == name]
            results = comparison.table.results
            mine = [results[spec.key] for spec in specs if spec.key in results]
            state = (comparison.seeds, tuple(result.spec.key for result in mine))
            if mine and self._known.get(name, (None,))[0] != state:
                self._known[name] = (state, encode_problem(mine, comparison.seeds))
            if mine:
                found[name] = self._known[name][1]
        return found


def encode_problem(results: Sequence[RunResult], seeds: Sequence[int]) -> dict[str, Any]:
    """Everything measured on one problem."""
    exact = next((r["exact"] for result in results for r in result.rows if r["exact"]), None)
    return {
        "exact": known(exact),
        "cells": cells(results, seeds),
        "profiles": profiles(results),
        "histograms": histograms(results),
    }


def cells(results: Sequence[RunResult], seeds: Sequence[int]) -> list[list[Any]]:
    """Means over seeds; of a method whose seeds are not all done, over those that are."""
    about = {}
    for result in results:
        for row in result.rows:
            place = place_of(result, row)
            if place is not None:
                about[place, result.spec.label, row["rule"] or ""] = row
    entries = over_seeds(results, seeds)
    for method in dict.fromkeys(result.spec.label for result in results):
        own = [result for result in results if result.spec.label == method]
        done = [result.spec.seed for result in own]
        if len(done) < len(seeds):
            entries += over_seeds(own, done)
    return [
        _cell(entry, about[entry.place, entry.method, entry.rule])
        for entry in entries
        if not math.isnan(entry.mean)
    ]


def _cell(entry: OverSeeds, row: dict[str, Any]) -> list[Any]:
    count = len(entry.values)
    low, high = entry.interval if count > 1 else (row["low"], row["high"])
    return [
        entry.method, entry.rule, entry.place.quantity, entry.place.num_particles,
        row["kind"] or "estimate", known(entry.mean), known(low), known(high), count, entry.best,
        "runs" if count == 1 or entry.agree else "seeds",
    ]  # fmt: skip


def _rows(
    results: Iterable[RunResult], *quantities: str
) -> Iterator[tuple[tuple[str, str, int], dict[str, Any]]]:
    """Rows of some quantities, each with its (method, rule, K)."""
    for result in results:
        for row in result.rows:
            if row["quantity"] in quantities:
                yield (result.spec.label, row["rule"], row["num_particles"]), row


def profiles(results: Iterable[RunResult]) -> list[list[Any]]:
    """[method, rule, K, quantity, means]: step by step, over all runs of all seeds."""
    found: dict[tuple, list[list[float]]] = {}
    for key, row in _rows(results, *PROFILES):
        runs = found.setdefault((*key, row["quantity"]), [])
        if row["step"] == 1:
            runs.append([])
        runs[-1].append(row["value"])
    return [
        [*key, [known(value, 3) for value in np.mean(runs, axis=0)]] for key, runs in found.items()
    ]


def single_runs(results: Iterable[RunResult]) -> dict[tuple[str, str, int], list[float]]:
    """Log Z_hat of every run of every seed, by (method, rule, K)."""
    found: dict[tuple[str, str, int], list[float]] = {}
    for key, row in _rows(results, SINGLE_RUNS):
        found.setdefault(key, []).append(row["value"])
    return found


def histograms(results: Iterable[RunResult]) -> list[list[Any]]:
    """[rule, K, left end, width, [[method, counts, dead], ...]]: methods share their bins."""
    runs = single_runs(results)
    found = []
    for rule, size in dict.fromkeys((rule, size) for _, rule, size in runs):
        mine = {m: np.array(v) for (m, r, k), v in runs.items() if (r, k) == (rule, size)}
        alive = [values[np.isfinite(values)] for values in mine.values()]
        alive = [values for values in alive if len(values)]
        if not alive:
            continue
        low, width, count = bins(alive)
        edges = low + width * np.arange(count + 1)
        rows = [
            [m, np.histogram(v[np.isfinite(v)], edges)[0].tolist(), int((~np.isfinite(v)).sum())]
            for m, v in mine.items()
        ]
        found.append([rule, size, known(low, 9), known(width, 9), rows])
    return found


def bins(groups: Sequence[np.ndarray]) -> tuple[float, float, int]:
    """Left end, width and number of bins: as fine as the least spread of the groups asks for."""
    low, high = min(map(np.min, groups)), max(map(np.max, groups))
    if high - low < 1e-6:
        return float(low) - 0.05, 0.1 / 3, 3
    finest = (high - low) / MOST_BINS
    usual = [2 * np.subtract(*np.quantile(v, [0.75, 0.25])) / len(v) ** (1 / 3) for v in groups]
    # Runs that all agree ask for bins of no width: others decide.
    width = min((w for w in usual if w > finest), default=(high - low) / 20)
    count = max(math.ceil((high - low) / width), 5)
    # A hair wider, so that the largest value falls into the last bin.
    return float(low), float(high - low) / count * (1 + 1e-9), count


def encode_plan(
    comparison: Comparison, running: Container[str], misfits: dict
) -> list[dict[str, Any]]:
    """For each method and problem how its seeds stand, a letter each: w, r, d or f.

    Args:
        comparison: specs and results.
        running: keys of the specs that workers compute now.
        misfits: why a method is left out, by (problem, method).
    """
    table = comparison.table
    found: dict[tuple[str, str], str] = {}
    for spec in comparison.specs:
        letter = "w"
        if spec.key in table.results:
            letter = "d"
        elif spec.key in running:
            letter = "r"
        elif spec.key in table.failures:
            letter = "f"
        pair = (spec.problem_name, spec.label)
        found[pair] = found.get(pair, "") + letter
    plan = [{"problem": p, "method": m, "seeds": s} for (p, m), s in found.items()]
    plan += [{"problem": p, "method": m, "why": why} for (p, m), why in misfits.items()]
    return plan


def encode_failures(comparison: Comparison) -> list[list[str]]:
    """What failed, and why: equal messages of several seeds once."""
    found: dict[tuple[str, str], list[int]] = {}
    for result in comparison.table.failures.values():
        spec, error = result.spec, result.error
        message = error["message"] or error["type"]
        found.setdefault((f"{spec.problem_name} · {spec.label}", message), []).append(spec.seed)
    return [
        [f"{who} · seed{'s' * (len(seeds) > 1)} {', '.join(map(str, sorted(seeds)))}", message]
        for (who, message), seeds in found.items()
    ]


@dataclass(frozen=True, slots=True)
class Frames:
    """What figures of a problem are drawn from.

    Attributes:
        problem: its name.
        means: over seeds, as ``Comparison.to_frame`` gives them.
        results: of single specs.
    """

    problem: str
    means: pd.DataFrame
    results: tuple[RunResult, ...]

    @classmethod
    def of(cls, comparison: Comparison, problem: str) -> Frames:
        """The frames of a problem.

        Raises:
            ValueError: no method has all its seeds on it yet.
        """
        means = comparison.to_frame()
        means = means[means["problem"] == problem] if len(means) else means
        if means.empty:
            raise ValueError(f"no method has all its seeds on {problem!r} yet: press Start first.")
        found = comparison.table.results.values()
        mine = tuple(result for result in found if result.spec.problem_name == problem)
        if len(comparison.seeds) == 1:
            means = _intervals_over_runs(means, mine)
        return cls(problem, means, mine)

    @property
    def largest(self) -> int:
        """The largest K."""
        sizes: list[Any] = [result.spec.num_particles for result in self.results]
        return max(map(max, sizes))


def draw(kind: str, frames: Frames, theme: str) -> Any:
    """One of ``FIGURES``, as a plotly figure."""
    from tsmc_widgets import figures

    title, figure, rows, options = FIGURES[kind]
    title = f"{title.format(K=frames.largest)}: {frames.problem}"
    return getattr(figures, figure)(rows(frames), theme=theme, title=title, **options)


def _reward_frame(frames: Frames) -> pd.DataFrame:
    """Reward against divergence from p0, a row for each method that has both."""
    import pandas as pd

    names = {"KL(q||p0)": "kl", "E_q[log φ]": "reward"}
    records: dict[str, dict[str, Any]] = {}
    for row in frames.means.to_dict("records"):
        name = names.get(row["quantity"])
        if name is not None:
            own = records.setdefault(row["method"], {"method": row["method"]})
            own |= {name: row["value"], f"{name}_low": row["low"], f"{name}_high": row["high"]}
    columns = ["method", *(f"{n}{end}" for n in names.values() for end in ("", "_low", "_high"))]
    frame = pd.DataFrame(records.values(), columns=columns)
    return frame[np.isfinite(frame[["kl", "reward"]].astype(float)).all(axis=1)]


def _runs_frame(frames: Frames) -> pd.DataFrame:
    """Log Z_hat of single runs at the largest K."""
    import pandas as pd

    exact = frames.means["exact"].dropna()
    log_z = exact.iloc[0] if len(exact) else None
    rows = [
        (method, rule, value, log_z)
        for (method, rule, size), values in single_runs(frames.results).items()
        if size == frames.largest
        for value in values
    ]
    return pd.DataFrame(rows, columns=["method", "rule", "log_z", "exact"])


def _profile_frame(frames: Frames) -> pd.DataFrame:
    """Means over the runs of all seeds at the largest K, with t-intervals over runs."""
    import pandas as pd

    found: dict[tuple, list[dict[str, Any]]] = {}
    for (method, rule, size), row in _rows(frames.results, *PROFILES):
        if size == frames.largest:
            key = (method, rule, row["quantity"], row["step"])
            found.setdefault(key, []).append(row)
    records = []
    for (method, rule, quantity, step), rows in found.items():
        mean = sum(row["value"] for row in rows) / len(rows)
        error = math.sqrt(sum(row["standard_error"] ** 2 for row in rows)) / len(rows)
        freedom = sum(row["num_runs"] - 1 for row in rows)
        low, high = t_interval(mean, error, freedom, 0.95)
        about = {"method": method, "rule": rule, "t": step}
        quantity = quantity.removesuffix(" / K")
        records.append(about | {"quantity": quantity, "mean": mean, "low": low, "high": high})
    return pd.DataFrame(records)


def _intervals_over_runs(means: pd.DataFrame, results: tuple[RunResult, ...]) -> pd.DataFrame:
    """Of a single seed there is no interval over seeds: that over its runs stands in."""
    ends = {
        (result.spec.label, row["rule"] or "", row["quantity"], row["side"] or "",
         int(row["num_particles"] or 0)): (row["low"], row["high"])
        for result in results
        for row in result.rows
        if row["step"] is None and row["run"] is None
    }  # fmt: skip
    keys = zip(
        means["method"], means["rule"], means["quantity"], means["side"], means["num_particles"],
        strict=True,
    )  # fmt: skip
    found = [ends[key] for key in keys]
    return means.assign(low=[low for low, _ in found], high=[high for _, high in found])


FIGURES: dict[str, tuple[str, str, Callable[[Frames], pd.DataFrame], dict[str, str]]] = {
    "bounds": ("Bounds on log Z", "bounds_figure", lambda f: f.means, {}),
    "gap": ("Gap between the bounds", "gap_figure", lambda f: f.means, {}),
    "kl": (
        "Divergences between proposal and target",
        "kl_forest_figure",
        lambda f: f.means.drop(columns="exact"),
        {"label": "method"},
    ),
    "reward": (
        "Reward against divergence from p0",
        "frontier_figure",
        _reward_frame,
        {"by": "method"},
    ),
    "profiles": ("ESS and surviving ancestors, K = {K}", "profiles_figure", _profile_frame, {}),
    "runs": ("log Ẑ of single runs, K = {K}", "log_z_histogram", _runs_frame, {}),
}
"""Plots of a comparison: title, function of ``figures``, the rows it draws, and its options."""
