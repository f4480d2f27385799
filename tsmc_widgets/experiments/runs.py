"""Many specs on any executor: results stream back, and are stored as they come."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tsmc_widgets.errors import TsmcError, check_integer
from tsmc_widgets.experiments.artifacts import DamagedFileError, loads, read_file, write_file
from tsmc_widgets.experiments.execute import Row, work
from tsmc_widgets.experiments.spec import RunSpec

LOST = ("BrokenExecutor", "KilledWorker", "CommClosedError", "FutureCancelledError")
"""Errors that say that a worker or its cluster is gone, by name: Dask is not imported for them."""


class SpecError(TsmcError, RuntimeError):
    """A spec could not be run; ``traceback`` holds where it failed."""

    traceback: str = ""


class WorkerLostError(TsmcError, RuntimeError):
    """Workers died, and the executor takes no more work; what was finished is stored."""


@dataclass(frozen=True, slots=True)
class RunResult:
    """What came of a spec.

    Attributes:
        spec: what was asked for.
        rows: numbers measured; empty where it failed.
        error: type, message and traceback of a failure; None where there was none.
        seconds: that the work took.
        stored: whether it was found in the folder and not computed now.
    """

    spec: RunSpec
    rows: list[Row]
    error: dict[str, str] | None = None
    seconds: float = 0.0
    stored: bool = field(default=False, compare=False)

    def raise_error(self) -> RunResult:
        """The result itself; ``SpecError`` where the spec failed."""
        if self.error is not None:
            error = SpecError(
                f"{self.spec.problem_name}, method {self.spec.method}: "
                f"{self.error['type']}: {self.error['message']}"
            )
            error.traceback = self.error["traceback"]
            raise error
        return self


class ResultFolder:
    """Results by the key of their spec: ``KEY.json``, or ``KEY.error.json`` of a failure.

    Files of equal specs are equal to the byte; what differs from run to run, the time it took,
    stands beside them in ``KEY.time.json``.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise NotADirectoryError(f"folder must be a folder; {str(folder)!r} is a file.")

    def path(self, spec: RunSpec, kind: str = "") -> Path:
        """Where the result of a spec stands, or its "error" or "time"."""
        return self.folder / (f"{spec.key}.{kind}.json" if kind else f"{spec.key}.json")

    def write(self, result: RunResult) -> None:
        """Keep a result; one that succeeds takes the place of an earlier failure."""
        said = {"spec": result.spec.to_dict()}
        write_file(self.path(result.spec, "time"), said | {"seconds": result.seconds})
        if result.error is not None:
            write_file(self.path(result.spec, "error"), said | {"error": result.error})
            return
        write_file(self.path(result.spec), said | {"rows": result.rows})
        self.path(result.spec, "error").unlink(missing_ok=True)

    def read(self, spec: RunSpec) -> RunResult | None:
        """A stored success; None where there is none, or only a damaged one."""
        try:
            found = read_file(self.path(spec))
        except (FileNotFoundError, DamagedFileError):
            return None
        return RunResult(spec, found["rows"], seconds=self._seconds(spec), stored=True)

    def _seconds(self, spec: RunSpec) -> float:
        try:
            return float(read_file(self.path(spec, "time"))["seconds"])
        except (OSError, DamagedFileError, KeyError):
            return float("nan")


class RunStream(Iterator[RunResult]):
    """Results in the order in which they finish; ``map_runs`` makes these.

    Leaving the loop leaves the others to be finished and stored; ``cancel`` stops them.

    Attributes:
        total: how many results there will be.
        done: how many have come so far.
    """

    def __init__(
        self,
        specs: list[RunSpec],
        executor: Executor | None,
        store: ResultFolder | None,
        shared: Path | None,
    ) -> None:
        self.total, self.done = len(specs), 0
        self._executor, self._store = executor, store
        self._shared = None if shared is None else str(shared)
        self._cancelled = False
        self._finished: queue.SimpleQueue[RunResult | BaseException] = queue.SimpleQueue()
        self._todo: list[RunSpec] = []
        self._found: list[RunResult] = []
        for spec in specs:
            known = None if store is None else store.read(spec)
            if known is None:
                self._todo.append(spec)
            else:
                self._found.append(known)
        self._open = 0
        self._futures: list[Future] = []
        self._lost: list[str] = []
        self._lock = threading.Lock()
        if executor is not None:
            self._submit()

    def _submit(self) -> None:
        for spec in self._todo:
            try:
                future = self._executor.submit(work, spec.to_json(), self._shared)
            except RuntimeError as error:
                # An executor that broke while work was handed to it takes no more.
                if not self._futures:
                    raise
                self._lost.append(f"{type(error).__name__}: {error}")
                break
            self._open += 1
            self._futures.append(future)
        for spec, future in zip(self._todo, self._futures, strict=False):
            future.add_done_callback(lambda future, spec=spec: self._note(spec, future))

    def _note(self, spec: RunSpec, future: Future) -> None:
        """Store what a worker sent; called as soon as it is there, wherever the user is."""
        try:
            self._finished.put(self._keep(spec, future.result()))
        except BaseException as error:  # noqa: BLE001 - told to whoever asks for the next result
            self._finished.put(error)

    def _keep(self, spec: RunSpec, answer: dict[str, Any]) -> RunResult:
        rows = loads(answer["rows"]) if "rows" in answer else []
        result = RunResult(spec, rows, answer.get("error"), answer["seconds"])
        if self._store is not None:
            self._store.write(result)
        return result

    def cancel(self) -> int:
        """Start nothing more; what is finished is kept, what runs is stored when it ends.

        Returns:
            How many specs will not be run.
        """
        self._cancelled = True
        if self._executor is None:
            left, self._todo = len(self._todo), []
            return left
        return sum(future.cancel() for future in self._futures)

    def __iter__(self) -> RunStream:
        return self

    def __next__(self) -> RunResult:
        """The next result, waited for."""
        try:
            result = self._next()
        except KeyboardInterrupt:
            self.cancel()
            raise
        self.done += 1
        return result

    def _next(self) -> RunResult:
        if self._found:
            return self._found.pop(0)
        if self._executor is None:
            if not self._todo:
                raise StopIteration
            spec = self._todo[0]
            result = self._keep(spec, work(spec.to_json(), self._shared))
            self._todo.pop(0)
            return result
        while self._open:
            answer = self._wait()
            self._open -= 1
            if isinstance(answer, RunResult):
                return answer
            self._note_failure(answer)
        if self._lost and not self._cancelled:
            raise WorkerLostError(
                f"workers were lost ({self._lost[0]}), {self.total - self.done} of {self.total} "
                "specs are not done. What was finished is "
                + ("lost, for no folder was given: " if self._store is None else "stored: ")
                + "call again with a new executor, and only what is missing is computed."
            )
        raise StopIteration

    def _wait(self) -> RunResult | BaseException:
        """A short wait at a time, so that an interrupt is heard."""
        while True:
            try:
                return self._finished.get(timeout=0.5)
            except queue.Empty:
                continue

    def _note_failure(self, error: BaseException) -> None:
        if isinstance(error, CancelledError) and self._cancelled:
            return
        names = {kind.__name__ for kind in type(error).__mro__}
        if isinstance(error, BrokenExecutor | CancelledError) or names & set(LOST):
            self._lost.append(f"{type(error).__name__}: {error}")
            return
        raise error


def map_runs(
    specs: Iterable[Any],
    executor: Any = None,
    folder: str | Path | None = None,
    *,
    shared: str | Path | None = None,
) -> RunStream:
    """Run specs on any executor; results come as they finish and are stored as they come.

    Numbers are the same to the byte whichever executor runs them, on processors of one kind. A
    spec that fails is a stored, readable error, and the others go on; it is tried again by the
    next call. Work that was stored is not done again.

    Args:
        specs: what to run; equal ones are run once.
        executor: anything with the interface of ``concurrent.futures.Executor``, such as
            ``ProcessPoolExecutor(2, mp_context=get_context("spawn"))`` or, of a Dask cluster,
            ``Client(...).get_executor()``; None runs one after the other, here.
        folder: where results are kept, by the key of their spec; None keeps none.
        shared: where workers share exact samples and trained twists; None is in ``folder``. On a
            cluster, a folder that all see; workers that do not see it do without.

    Returns:
        An iterator of ``RunResult``.
    """
    distinct: dict[str, RunSpec] = {}
    for spec in specs:
        if not isinstance(spec, RunSpec):
            raise TypeError(f"specs must hold RunSpec objects; got {spec!r}.")
        distinct.setdefault(spec.key, spec)
    if executor is not None and not hasattr(executor, "submit"):
        raise TypeError(
            "executor must be a concurrent.futures.Executor, or None; got "
            f"{executor!r}. Of a Dask client take client.get_executor()."
        )
    store = None if folder is None else ResultFolder(folder)
    if store is not None:
        # A folder that can not be written to is best known before anything is computed.
        store.folder.mkdir(parents=True, exist_ok=True)
    if shared is None and folder is not None:
        shared = Path(folder) / "shared"
    where = None if shared is None else Path(shared).absolute()
    return RunStream(list(distinct.values()), executor, store, where)


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
