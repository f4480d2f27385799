"""Many runs in the background: started, paused, dropped and gone on with, nothing finished lost.

Nothing here knows of widgets: a function is called when something has changed.
"""

from __future__ import annotations

import math
import os
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tsmc_widgets.experiments.compare import Comparison
from tsmc_widgets.experiments.runs import (
    CancellablePool,
    ResultFolder,
    RunResult,
    RunStream,
    map_runs,
)
from tsmc_widgets.experiments.spec import RunSpec

MOST_WORKERS = 8
"""Processes that are started unasked; each holds models of its own."""


class Sweep:
    """What is to be run, what has come of it, and the thread that sees to it.

    Args:
        changed: called from any thread when there is something new to show.
        folder: where results are kept, by the key of their spec; None keeps them in memory.
        workers: runs at once; None is one for each core, or for each that the executor names.
        executor: as for ``map_runs``; None starts processes of its own.

    Attributes:
        state: idle, running, pausing, paused, cancelling, cancelled, done or failed.
        error: what stopped it, where it failed.
        comparison: specs and results; a new one after each ``take``.
    """

    def __init__(
        self,
        changed: Callable[[], Any],
        *,
        folder: str | Path | None = None,
        workers: int | None = None,
        executor: Any = None,
    ) -> None:
        if workers is None:
            cores = min(os.cpu_count() or 1, MOST_WORKERS)
            workers = getattr(executor, "_max_workers", None) or cores
        self.state, self.error = "idle", None
        self.comparison = Comparison.of([])
        self.folder = folder
        self.pool = CancellablePool(workers, executor, changed=changed)
        self._changed = changed
        self._known: dict[str, RunResult] = {}
        self._lock = threading.RLock()
        self._rest = threading.Condition(self._lock)
        self._reading = 0
        self._stream: RunStream | None = None
        self._order = ""

    @property
    def busy(self) -> bool:
        """Whether runs are under way."""
        return self.state in ("running", "pausing", "cancelling")

    @property
    def missing(self) -> list[RunSpec]:
        """Specs without a result; those that failed are tried again."""
        results = self.comparison.table.results
        return [spec for spec in self.comparison.specs if spec.key not in results]

    @property
    def running(self) -> list[tuple[RunSpec, float]]:
        """What workers are at, and since when, in seconds of ``time.time``."""
        known = {spec.to_json(): spec for spec in self.comparison.specs}
        found = [(known.get(task.args[0]), task.since) for task in self.pool.running]
        return [(spec, since) for spec, since in found if spec is not None]

    def snapshot(self) -> Comparison:
        """Specs and results as they stand, which change no more."""
        with self._lock:
            found = Comparison.of(self.comparison.specs)
            found.table.results.update(self.comparison.table.results)
            found.table.failures.update(self.comparison.table.failures)
        return found

    def take(self, specs: Sequence[RunSpec]) -> None:
        """Ask for these specs instead; results that are known or stored fill in by themselves.

        Raises:
            RuntimeError: runs are under way.
        """
        with self._lock:
            if self.busy:
                raise RuntimeError("pause or cancel the runs under way first.")
            self.comparison = Comparison.of(specs)
            self.state, self.error = "idle", None
            for spec in specs:
                if spec.key in self._known:
                    self.comparison.table.add(self._known[spec.key])
            if not self.missing:
                self.state = "done"
            elif self.folder is not None:
                self._reading += 1
                self._spawn(self._read, self.comparison)
        self._changed()

    def start(self) -> None:
        """Run what is missing; nothing happens where runs are under way."""
        with self._lock:
            if self.busy:
                return
            self.state, self.error, self._order = "running", None, ""
            self._spawn(self._run, self.comparison, self.missing)
        self._changed()

    def pause(self) -> None:
        """Start nothing more; what runs ends first."""
        self._stop("pausing")

    def cancel(self) -> None:
        """Start nothing more and drop what runs; workers of another's executor end theirs."""
        self._stop("cancelling")

    def wait(self, timeout: float | int | None = None) -> bool:
        """Wait until nothing is under way; False if that takes too long."""
        with self._rest:
            return self._rest.wait_for(lambda: not (self.busy or self._reading), timeout)

    def stop_workers(self) -> None:
        """Cancel, and end idle workers too, which hold models; ``start`` calls new ones."""
        self.cancel()
        self.pool.stop_workers()

    def close(self) -> None:
        """End everything."""
        self.stop_workers()
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
        own = [r for r in alike if r.spec.method == spec.method]
        kind = [r for r in alike if r.spec.learns == spec.learns]
        for group in (own, kind, alike, timed):
            if group:
                return statistics.median(r.seconds for r in group)
        return math.nan

    def _stop(self, state: str) -> None:
        with self._lock:
            if not self.busy or self.state == "cancelling":
                return
            self.state = self._order = state
            stream = self._stream
        if stream is not None:
            stream.cancel()
            if state == "cancelling":
                self.pool.stop_workers()
        self._changed()

    def _spawn(self, act: Callable[..., None], *args: Any) -> None:
        threading.Thread(target=act, args=args, name="sweep", daemon=True).start()

    def _read(self, comparison: Comparison) -> None:
        """Fill in what is stored."""
        try:
            store = ResultFolder(self.folder)
            for spec in self.missing:
                found = store.read(spec)
                if found is not None:
                    self._add(comparison, found)
                if comparison is not self.comparison:
                    break
        except OSError as error:
            self.error = error
        finally:
            with self._rest:
                self._reading -= 1
                if comparison is self.comparison and self.state == "idle" and not self.missing:
                    self.state = "done"
                self._rest.notify_all()
            self._changed()

    def _run(self, comparison: Comparison, missing: list[RunSpec]) -> None:
        """What the thread does."""
        error = None
        try:
            stream = map_runs(missing, self.pool, self.folder)
            with self._lock:
                self._stream = stream
                order = self._order
            if order:
                stream.cancel()
            if order == "cancelling":
                self.pool.stop_workers()
            for result in stream:
                self._add(comparison, result)
        except Exception as problem:  # noqa: BLE001 - shown in words
            error = problem
        with self._rest:
            self._stream = None
            ended = {"pausing": "paused", "cancelling": "cancelled"}.get(self._order, "done")
            self.state = "failed" if error is not None else ended
            if not self.missing:
                self.state = "done"
            self.error = error
            self._rest.notify_all()
        self._changed()

    def _add(self, comparison: Comparison, result: RunResult) -> None:
        with self._lock:
            if result.error is None:
                self._known[result.spec.key] = result
            comparison.table.add(result)
        self._changed()
