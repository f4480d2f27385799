"""Workers that a person watches: what they are at is seen, and they can be sent home at once."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any

from tsmc_widgets.errors import check_integer

NICE = 5
"""Workers step back behind the kernel and the page that show what they do."""

_SPAWN = get_context("spawn")


@dataclass(frozen=True, slots=True)
class Work:
    """Work that a worker is at.

    Attributes:
        args: what the function was called with.
        since: when it began, in seconds of ``time.time``.
    """

    args: tuple[Any, ...]
    since: float


@dataclass(frozen=True, slots=True)
class _Task:
    future: Future
    act: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)


class Crew(Executor):
    """An executor for ``map_runs`` that tells what runs, and that can drop it at once.

    Its processes are started when there is work, ignore interrupts of the kernel, and end with it.
    A worker that dies takes its own work with it and nothing else; the next work gets a new one.
    As for every process that is spawned, a script makes one under ``if __name__ == "__main__":``.

    Args:
        size: how many work at once.
        executor: lends its workers in place of processes of the crew's own, such as a cluster's.
        changed: called when work begins or ends, from any thread.
    """

    def __init__(
        self,
        size: int,
        executor: Any = None,
        *,
        changed: Callable[[], Any] = lambda: None,
    ) -> None:
        check_integer("size", size)
        self.size = size
        self._executor = executor
        self._changed = changed
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._workers: list[_Worker] = []
        self._running: dict[int, Work] = {}
        self._closed = False
        self._stops = 0

    @property
    def running(self) -> list[Work]:
        """What the workers are at, oldest first."""
        with self._lock:
            return sorted(self._running.values(), key=lambda work: work.since)

    @property
    def can_stop(self) -> bool:
        """Whether ``stop`` ends what runs: not where the workers are another executor's."""
        return self._executor is None

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        """Put work in the queue."""
        with self._lock:
            if self._closed:
                raise RuntimeError("the crew is closed: make a new one.")
            task = _Task(Future(), fn, args, kwargs)
            self._tasks.put(task)
            if len(self._threads) < self.size:
                name = f"crew-{len(self._threads)}"
                thread = threading.Thread(target=self._serve, name=name, daemon=True)
                self._threads.append(thread)
                thread.start()
        return task.future

    def stop(self) -> None:
        """End what runs, unfinished; what waits is the caller's to cancel."""
        with self._lock:
            self._stops += 1
            workers = list(self._workers)
        for worker in workers:
            worker.kill()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more work, and end once it is done."""
        with self._lock:
            self._closed = True
            threads = list(self._threads)
        if cancel_futures:
            with contextlib.suppress(queue.Empty):
                while (task := self._tasks.get_nowait()) is not None:
                    task.future.cancel()
        for _ in threads:
            self._tasks.put(None)
        for thread in threads if wait else ():
            thread.join()

    def _serve(self) -> None:
        """What each thread does: hand work to its worker until there is no more."""
        worker: _Worker | None = None
        while (task := self._tasks.get()) is not None:
            if not task.future.set_running_or_notify_cancel():
                continue
            with self._lock:
                self._running[id(task)] = Work(task.args, time.time())
                stops = self._stops
            self._changed()
            try:
                if self._executor is None:
                    worker = self._hire(worker, stops)
                    answer = worker.run(task)
                else:
                    answer = self._executor.submit(task.act, *task.args, **task.kwargs).result()
            except BaseException as error:  # noqa: BLE001 - told to whoever asks for the result
                self._forget(task)
                task.future.set_exception(error)
            else:
                self._forget(task)
                task.future.set_result(answer)
        if worker is not None:
            worker.kill()

    def _hire(self, worker: _Worker | None, stops: int) -> _Worker:
        """The worker at hand, or a new one; it is sent home if all were meanwhile."""
        if worker is None or not worker.alive:
            worker = _Worker()
        with self._lock:
            self._workers = [w for w in self._workers if w.alive and w is not worker] + [worker]
            too_late = stops != self._stops
        if too_late:
            worker.kill()
        return worker

    def _forget(self, task: _Task) -> None:
        with self._lock:
            self._running.pop(id(task), None)
        self._changed()


class _Worker:
    """One process that takes one piece of work at a time."""

    def __init__(self) -> None:
        self._link, there = _SPAWN.Pipe()
        self._process = _SPAWN.Process(target=_work, args=(there,), name="worker", daemon=True)
        self._killed = False
        self._process.start()
        # The other end is the process's alone, so that its death is heard.
        there.close()

    @property
    def alive(self) -> bool:
        """Whether it can take work."""
        return not self._killed and self._process.is_alive()

    def run(self, task: _Task) -> Any:
        """Have it do this, and wait."""
        try:
            self._link.send((task.act, task.args, task.kwargs))
            good, answer = self._link.recv()
        except (EOFError, OSError) as error:
            self._process.join(5)
            if self._killed:
                raise CancelledError from error
            raise BrokenExecutor(
                f"a worker process died with exit code {self._process.exitcode}; if that is -9, "
                "the machine may have run out of memory"
            ) from error
        if good:
            return answer
        raise answer

    def kill(self) -> None:
        """End it at once."""
        self._killed = True
        self._process.kill()


def _work(link: Any) -> None:
    """What a process does: one piece of work after another until its owner is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(AttributeError, OSError):
        os.nice(NICE)
    while True:
        try:
            act, args, kwargs = link.recv()
        except (EOFError, OSError):
            return
        try:
            answer = (True, act(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - raised where the work was asked for
            answer = (False, error)
        with contextlib.suppress(OSError):
            _send(link, answer)


def _send(link: Any, answer: tuple[bool, Any]) -> None:
    try:
        link.send(answer)
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001 - what can not be pickled
        link.send((False, TypeError(f"the result can not be sent back: {error}")))
