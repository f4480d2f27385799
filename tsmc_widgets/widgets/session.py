"""The live engine: a background thread that steps one run at a time, and the page that shows it.

A loop in a cell cannot be stopped by a button, and an interrupt does not reach a thread, so the
thread looks at its orders between any two steps, and models within one: see ``stop_when``.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable
from weakref import WeakSet

import ipywidgets as ipw
import torch

from tsmc_widgets.errors import Stopped, as_exception, check_one_of, message_of, stop_when
from tsmc_widgets.widgets.controls import ClosesWhole, replace_in_cell
from tsmc_widgets.widgets.front_end import FrontEnd, Still

PUBLISH_SECONDS = 0.1
"""Shortest time between two reports of a run in progress."""
WAIT_SECONDS = 0.1


@runtime_checkable
class Steppable(Protocol):
    """What ``LiveSession`` needs of a run, beside its ``trace``."""

    done: bool

    def step(self) -> Any:
        """Take one step."""
        ...


class Steps:
    """A generator as something that a ``LiveSession`` steps.

    Args:
        steps: each item is a step.
        trace: what is recorded meanwhile.
    """

    def __init__(self, steps: Iterator[Any], trace: Any) -> None:
        self.done, self.trace, self._steps = False, trace, steps

    def step(self) -> None:
        """Take one step."""
        try:
            next(self._steps)
        except StopIteration:
            self.done = True


@dataclass(frozen=True, slots=True)
class Progress:
    """State of a run.

    Attributes:
        state: waiting (for the controls to rest), running, paused, done, failed or cancelled.
        run_id: counts the runs that were started.
        trace: what is recorded of the run; None before its first step.
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


_STARTED: WeakSet[LiveSession] = WeakSet()


@atexit.register
def _close_all() -> None:
    """A thread that is within PyTorch as Python ends would abort the process."""
    for session in list(_STARTED):
        session.close()


class LiveSession:
    """Steps one run at a time in a background thread; the newest run replaces the one before.

    Knows nothing of widgets.

    Args:
        publish: called from the thread with each ``Progress`` that is worth showing, at most ten
            times a second and always at the end. It may raise; the run goes on.
        rest: seconds that must pass without a newer run before one is started.

    Attributes:
        session: the newest run that could be prepared.
        progress: the state of the newest run.
        publish_error: what ``publish`` raised last.
    """

    def __init__(self, publish: Callable[[Progress], None], *, rest: float | int = 0.12) -> None:
        self.session: Steppable | None = None
        self.progress = Progress("waiting")
        self.publish_error: Exception | None = None
        self._publish = publish
        self._rest = rest
        self._orders = threading.Condition()
        self._record = threading.Lock()
        self._job: _Job | None = None
        self._busy = self._paused = self._closed = self._cancelled = False
        self._granted = 0
        self._started = self._session_run = 0
        self._published = 0.0
        self._published_state = ""
        self._thread: threading.Thread | None = None

    @property
    def trace(self) -> Any:
        """What is recorded of the run; waits for a step in progress. None before the first run."""
        with self._record:
            return None if self.session is None else self.session.trace

    @property
    def overtaken(self) -> bool:
        """Whether a newer run waits."""
        return self._job is not None

    @property
    def stopping(self) -> bool:
        """Whether work on the present run is no longer wanted: cancelled, closed or overtaken."""
        return self.overtaken or self._cancelled

    def read(self, act: Callable[[], Any]) -> Any:
        """Call ``act`` between two steps, so that the record does not change meanwhile."""
        with self._record:
            return act()

    def submit(self, prepare: Callable[[], Steppable], *, rest: float | int | None = None) -> int:
        """Start a run once the controls rest; cancels the one before and any pause. Its run_id.

        Args:
            prepare: makes the run, in the thread; what it raises is reported.
            rest: seconds to wait for a newer run; the session's own if None.
        """
        with self._orders:
            if self._closed:
                raise RuntimeError("the session is closed: make a new one.")
            self._started += 1
            due = time.monotonic() + (self._rest if rest is None else rest)
            self._job = _Job(prepare, due, self._started)
            self._paused = self._cancelled = False
            self._granted = 0
            if self._thread is None:
                # It ends with its last run, so that a page that nobody closes keeps none.
                self._thread = threading.Thread(target=self._work, name="live", daemon=True)
                self._thread.start()
                _STARTED.add(self)
            self._orders.notify_all()
            return self._started

    def pause(self) -> None:
        """Wait after the step in progress."""
        self._order(_paused=True, _granted=0)

    def resume(self) -> None:
        """Go on."""
        self._order(_paused=False)

    def step(self, steps: int = 1) -> None:
        """Take this many more steps, then pause."""
        with self._orders:
            self._order(_paused=True, _granted=self._granted + steps)

    def cancel(self) -> None:
        """End the run; what is recorded stays, and a step in progress may not be taken."""
        self._order(_job=None, _cancelled=True)

    def close(self, timeout: float | int = 5.0) -> None:
        """Cancel, and end the thread."""
        self._order(_job=None, _closed=True, _cancelled=True)
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)

    def wait(self, timeout: float | int | None = None) -> bool:
        """Wait until the newest run has ended or is paused; False if that takes too long."""
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            # In short turns, so that an interrupt of the kernel is noticed.
            left = WAIT_SECONDS if end is None else min(WAIT_SECONDS, end - time.monotonic())
            with self._orders:
                if self._orders.wait_for(self._settled, left):
                    return True
            if end is not None and time.monotonic() >= end:
                return False

    def _settled(self) -> bool:
        if self._job is not None:
            return False
        # A pause counts once it has been published, so that the page shows it.
        shown = self.progress.state == "paused" == self._published_state
        return not self._busy or (self._paused and not self._granted and shown)

    def _order(self, **orders: Any) -> None:
        with self._orders:
            for name, value in orders.items():
                setattr(self, name, value)
            self._orders.notify_all()

    def _work(self) -> None:
        while (job := self._next_job()) is not None:
            self._run(job)
            self._order(_busy=False)

    def _next_job(self) -> _Job | None:
        with self._orders:
            while (job := self._job) is not None:
                remaining = job.due - time.monotonic()
                if remaining <= 0:
                    self._job, self._busy = None, True
                    self.progress = Progress("running", job.run_id)
                    return job
                self._orders.wait(remaining)
            self._thread = None
            return None

    def _run(self, job: _Job) -> None:
        clock = time.perf_counter()
        try:
            self._report()
            session = job.prepare()
            with self._record:
                self.session, self._session_run = session, job.run_id
            # The first step is published at once: a person who moved a control waits for it.
            self._published = 0.0
            while self._may_step(session):
                clock = time.perf_counter()
                with self._record, stop_when(lambda: self.stopping):
                    session.step()
                self._advance("running", clock)
        except Stopped:
            self._advance("cancelled")
        # SystemExit from code of others must not end the thread, which is all that runs anything.
        except BaseException as error:  # noqa: BLE001 - shown on the page
            self._advance("failed", clock, as_exception(error))
        else:
            self._advance("done" if session.done else "cancelled")

    def _may_step(self, session: Steppable) -> bool:
        """Wait while paused; False once the run is done, cancelled or overtaken by a newer one."""
        while not session.done:
            with self._orders:
                if self.overtaken or self._cancelled:
                    return False
                if not self._paused or self._granted:
                    self._granted = max(0, self._granted - 1) if self._paused else 0
                    self.progress = replace(self.progress, state="running")
                    return True
                if self.progress.state == "paused":
                    self._orders.wait()
                    continue
            self._advance("paused")
            self._order()
        return False

    def _advance(
        self, state: str, clock: float | None = None, error: Exception | None = None
    ) -> None:
        """Note the state of the run, and publish it unless that was done a moment ago."""
        spent = 0.0 if clock is None else time.perf_counter() - clock
        seconds = self.progress.seconds + spent
        self.progress = replace(self.progress, state=state, seconds=seconds, error=error)
        due = time.monotonic() - self._published >= PUBLISH_SECONDS
        if (state != "running" or due) and not (state == "cancelled" and self.overtaken):
            self._report()

    def _newest_trace(self) -> Any:
        """The record of the newest run; None while it has no session."""
        if self._session_run != self.progress.run_id:
            return None
        try:
            return self.trace
        except BaseException as error:  # noqa: BLE001 - the state is published without a record
            self.publish_error = as_exception(error)
            return None

    def _report(self) -> None:
        """Publish the state of the run; a page that went away must not end a run."""
        if self._closed:
            return
        begun = time.monotonic()
        try:
            self._publish(replace(self.progress, trace=self._newest_trace()))
        except BaseException as error:  # noqa: BLE001 - kept for whoever asks
            self.publish_error = as_exception(error)
        self._published_state = self.progress.state
        # A slow front end gets fewer reports, so that it never slows the run by more than half.
        self._published = max(begun, 2 * time.monotonic() - begun - PUBLISH_SECONDS)


_PAGES: WeakSet[LivePage] = WeakSet()
"""Every page of the process."""


class LivePage(Still, ClosesWhole, ipw.VBox):
    """A view fed by a ``LiveSession``; what goes wrong is shown in it.

    A subclass makes its controls, sets ``children``, and defines ``_show`` and ``_show_status``.

    Args:
        view: what shows the run.
        rest: seconds that the controls must rest before a run starts.

    Attributes:
        view: the same.
        live: the engine.
    """

    _subject = "run"
    """What the page shows, in its messages."""
    _raises = False
    """Whether ``wait`` raises what stopped the run."""
    live: LiveSession | None = None

    def __init__(self, view: FrontEnd, *, rest: float | int = 0.0) -> None:
        self.view = view
        self.live = LiveSession(self._publish, rest=rest)
        self._refusal = ""
        super().__init__(layout={"width": "100%"})
        self.add_class("tsmc-watch")
        _PAGES.add(self)
        replace_in_cell(self)

    @property
    def _actions(self) -> dict[str, Callable[[], Any]]:
        """What can be pressed in the view, by the name that its ``ask`` gives."""
        return {}

    def _submit(self, make: Callable[[], Steppable], *, rest: float | int | None = None) -> None:
        """Start a run in place of the one in progress.

        Args:
            make: makes the run, in the thread; what it raises is shown.
            rest: seconds to wait for another change.
        """

        def prepare() -> Steppable:
            leave_a_core()
            return make()

        self.view.status = {"state": "running", "text": "starting"}
        self.live.submit(prepare, rest=rest)

    def wait(self, timeout: float | int | None = None) -> bool:
        """Wait until the run has ended or is paused; False if that takes too long."""
        ended = self.live.wait(timeout)
        if ended and self._raises and self.live.progress.error is not None:
            raise self.live.progress.error
        return ended

    def _retire(self) -> None:
        """Stop what runs, for another page of the kind takes over."""
        self.live.cancel()

    def _stop_others(self) -> None:
        """One run at a time: a cell that is run again leaves its old page behind."""
        for page in list(_PAGES):
            if page is not self and type(page) is type(self):
                page._retire()

    def close(self) -> None:
        """End the run and take the widgets from the page."""
        # Also called by the garbage collector for a page whose arguments were refused.
        if self.live is None:
            return
        self.live.close()
        super().close()

    def _press(self, change: Any) -> None:
        """Do what was pressed in the view, and say why where that cannot be done."""
        self._refusal, act, acts = "", change["new"].get("act"), self._actions
        try:
            check_one_of("act", act, acts)
            acts[act]()
        except Exception as error:  # noqa: BLE001 - shown where it was pressed
            self._refusal = message_of(error)
            self._show_status(self.live.progress)

    def _publish(self, progress: Progress) -> None:
        """Show the state of the run; called from the thread."""
        try:
            self._show(progress)
            if progress.state != "running":
                self.renew_still()
        except BaseException as error:
            problem = f"The {self._subject} goes on, but cannot be shown: {message_of(error)}"
            shown = {"state": "failed", "text": "not shown", "error": problem}
            self.view.status = {**self.view.status, **shown}
            raise

    def _show(self, progress: Progress) -> None:
        raise NotImplementedError

    def _show_status(self, progress: Progress) -> None:
        raise NotImplementedError


def error_text(error: Exception | None, what_stays: str) -> str:
    """What stopped a run and what stays of it, in words; empty where nothing did."""
    return "" if error is None else f"{message_of(error)}\n{what_stays}"


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Load models without a bar for each, which would stay on the page beside the view."""
    try:
        from transformers.utils import logging
    except ImportError:
        yield
        return
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def leave_a_core() -> None:
    """Let this thread compute on all cores but one, which the kernel and the page share."""
    spare = max(1, (os.cpu_count() or 1) - 1)
    if torch.get_num_threads() > spare:
        torch.set_num_threads(spare)
