"""One background thread that takes a run step by step, and can be held, stepped and cancelled.

Nothing here knows of widgets: the runner tells a function what has changed. A loop in a cell cannot
be stopped by a button, and an interrupt does not reach a thread, so the thread looks at its orders
between any two steps.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

PUBLISH_SECONDS = 0.1
"""Shortest time between two reports of a run that goes on."""


@runtime_checkable
class Steppable(Protocol):
    """What the runner needs of a session, beside its ``trace``."""

    done: bool

    def step(self) -> Any:
        """Take one step."""
        ...


@dataclass(frozen=True, slots=True)
class Progress:
    """How a run stands.

    Attributes:
        state: waiting (for the controls to rest), running, paused, done, failed or cancelled.
        run_id: counts the runs that were started.
        trace: what is on record of the run; None before its first step.
        seconds: spent on the run so far, pauses left out.
        error: what stopped it.
    """

    state: str
    run_id: int = 0
    trace: Any = None
    seconds: float = 0.0
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class _Job:
    prepare: Callable[[], Steppable]
    due: float
    run_id: int


class Runner:
    """Takes one run at a time; the newest wins.

    Args:
        publish: called from the thread with each ``Progress`` that is worth showing, at most ten
            times a second and always at the end. It may raise; the run goes on.
        rest: seconds that must pass without a newer run before one is started.
    """

    def __init__(self, publish: Callable[[Progress], None], *, rest: float | int = 0.12) -> None:
        self.session: Steppable | None = None
        self.publish_error: Exception | None = None
        self._publish = publish
        self._rest = rest
        self._orders = threading.Condition()
        self._record = threading.Lock()
        self._progress = Progress("waiting")
        self._told = ""
        self._job: _Job | None = None
        self._busy = self._held = self._closed = self._cancelled = False
        self._granted = 0
        self._started = self._session_run = 0
        self._published = 0.0
        self._thread: threading.Thread | None = None

    @property
    def progress(self) -> Progress:
        """How the newest run stands."""
        return self._progress

    @property
    def trace(self) -> Any:
        """What is on record of the run; waits for a step in progress. None before the first run."""
        with self._record:
            return None if self.session is None else self.session.trace

    def read(self, act: Callable[[], Any]) -> Any:
        """Call ``act`` between two steps, so that it sees a record at rest."""
        with self._record:
            return act()

    def submit(self, prepare: Callable[[], Steppable], *, rest: float | int | None = None) -> int:
        """Start a run once the controls rest; cancels the one before and any hold. Its run_id.

        Args:
            prepare: makes the session, in the thread; what it raises is reported.
            rest: seconds to wait for a newer run; the runner's own if None.
        """
        with self._orders:
            if self._closed:
                raise RuntimeError("the runner is closed: make a new one.")
            self._started += 1
            due = time.monotonic() + (self._rest if rest is None else rest)
            self._job = _Job(prepare, due, self._started)
            self._held = self._cancelled = False
            self._granted = 0
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="smc-run", daemon=True)
                self._thread.start()
            self._orders.notify_all()
            return self._started

    def hold(self) -> None:
        """Wait after the step in progress."""
        self._order(held=True, granted=0)

    def release(self) -> None:
        """Go on."""
        self._order(held=False)

    def more(self, steps: int = 1) -> None:
        """Hold, but take this many more steps first."""
        with self._orders:
            self._held = True
            self._granted += steps
            self._orders.notify_all()

    def cancel(self) -> None:
        """End the run after the step in progress; what is on record stays."""
        with self._orders:
            self._job, self._cancelled = None, True
            self._orders.notify_all()

    def close(self, timeout: float | int = 5.0) -> None:
        """Cancel, and end the thread."""
        with self._orders:
            self._job, self._closed, self._cancelled = None, True, True
            self._orders.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout)

    def wait(self, timeout: float | int | None = None) -> bool:
        """Wait until the newest run has ended or is held; False if that takes too long."""
        with self._orders:
            return self._orders.wait_for(self._settled, timeout)

    def _settled(self) -> bool:
        if self._job is not None:
            return False
        resting = (
            self._held and not self._granted and self._progress.state == "paused" == self._told
        )
        return resting or not self._busy

    def _order(self, *, held: bool, granted: int | None = None) -> None:
        with self._orders:
            self._held = held
            self._granted = self._granted if granted is None else granted
            self._orders.notify_all()

    def _work(self) -> None:
        while (job := self._next_job()) is not None:
            self._run(job)
            with self._orders:
                self._busy = False
                self._orders.notify_all()

    def _next_job(self) -> _Job | None:
        with self._orders:
            while not self._closed:
                job = self._job
                remaining = None if job is None else job.due - time.monotonic()
                if job is not None and remaining <= 0:
                    self._job, self._busy = None, True
                    return job
                self._orders.wait(remaining)
            return None

    def _run(self, job: _Job) -> None:
        self._progress = Progress("running", job.run_id)
        clock = time.perf_counter()
        try:
            self._tell()
            session = job.prepare()
            with self._record:
                self.session, self._session_run = session, job.run_id
            # The first step is told at once: it is what a person who moved a control waits for.
            self._published = 0.0
            while self._may_step(session):
                clock = time.perf_counter()
                with self._record:
                    session.step()
                self._advance("running", clock)
        except Exception as error:  # noqa: BLE001 - the widget shows it in words
            self._advance("failed", clock, error)
        else:
            self._advance("done" if session.done else "cancelled")

    def _may_step(self, session: Steppable) -> bool:
        """Wait while held; False once the run is done, cancelled or overtaken by a newer one."""
        while not session.done:
            with self._orders:
                if self.overtaken or self._cancelled:
                    return False
                if not self._held or self._granted:
                    self._granted = max(0, self._granted - 1) if self._held else 0
                    self._progress = replace(self._progress, state="running")
                    return True
                if self._progress.state == "paused":
                    self._orders.wait()
                    continue
            self._advance("paused")
            with self._orders:
                self._orders.notify_all()
        return False

    @property
    def overtaken(self) -> bool:
        """Whether a newer run waits."""
        return self._job is not None

    def _advance(
        self, state: str, clock: float | None = None, error: Exception | None = None
    ) -> None:
        """Note how the run stands, and report it unless that was done a moment ago."""
        spent = 0.0 if clock is None else time.perf_counter() - clock
        seconds = self._progress.seconds + spent
        self._progress = replace(self._progress, state=state, seconds=seconds, error=error)
        due = time.monotonic() - self._published >= PUBLISH_SECONDS
        if (state != "running" or due) and not (state == "cancelled" and self.overtaken):
            self._tell()

    def _newest_trace(self) -> Any:
        """The record of the newest run; None while it has no session or that has no steps."""
        if self._session_run != self._progress.run_id:
            return None
        try:
            trace = self.trace
        except Exception as error:  # noqa: BLE001 - how the run stands is told without a record
            self.publish_error = error
            return None
        return None if getattr(trace, "steps_done", 1) == 0 else trace

    def _tell(self) -> None:
        """Report how the run stands; a view that went away must not end a run."""
        begun = time.monotonic()
        try:
            self._publish(replace(self._progress, trace=self._newest_trace()))
        except Exception as error:  # noqa: BLE001 - kept for whoever asks
            self.publish_error = error
        self._told = self._progress.state
        # A slow front end is told less often, so that it never slows the run by more than half.
        self._published = max(begun, 2 * time.monotonic() - begun - PUBLISH_SECONDS)
