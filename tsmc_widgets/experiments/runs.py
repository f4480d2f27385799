"""Many specs on any executor, stored as they finish; islands; a pool whose tasks can be killed."""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import (
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from tsmc_widgets import numerics
from tsmc_widgets.errors import (
    TsmcError,
    as_exception,
    as_list,
    check_flag,
    check_integer,
    check_kind,
    check_path,
    quoted,
)
from tsmc_widgets.evaluation.estimates import LogZBounds
from tsmc_widgets.experiments.artifacts import DamagedFileError, loads, read_file, write_file
from tsmc_widgets.experiments.execute import Row, work
from tsmc_widgets.experiments.spec import RunSpec
from tsmc_widgets.targets.description import named_functions, parse_problem
from tsmc_widgets.targets.functions import find_function, registered_functions

LOST = ("BrokenExecutor", "KilledWorker", "CommClosedError", "FutureCancelledError")
"""Errors that say that a worker or its cluster is gone, by name: Dask is not imported for them."""


PROBE_BYTES = 2**16
"""About as large as a result."""


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
        unstored: why it could not be kept in the folder: a full disk, say. Empty where it was.
    """

    spec: RunSpec
    rows: list[Row]
    error: dict[str, str] | None = None
    seconds: float = 0.0
    stored: bool = field(default=False, compare=False)
    unstored: str = field(default="", compare=False)

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
        self.folder = check_path("folder", folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise NotADirectoryError(f"folder must be a folder; {str(folder)!r} is a file.")

    def check_writable(self) -> None:
        """Make the folder and write a file there.

        Raises:
            OSError: it cannot be written to.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self.folder) as probe:
            probe.write(b"x" * PROBE_BYTES)

    def path(self, spec: RunSpec, kind: str = "") -> Path:
        """Where the result of a spec stands, or its "error" or "time"."""
        return self.folder / (f"{spec.key}.{kind}.json" if kind else f"{spec.key}.json")

    def write(self, result: RunResult) -> None:
        """Keep a result; one that succeeds takes the place of an earlier failure."""
        about = {"spec": result.spec.with_(memory_limit=None).to_dict()}
        write_file(self.path(result.spec, "time"), about | {"seconds": result.seconds})
        if result.error is not None:
            write_file(self.path(result.spec, "error"), about | {"error": result.error})
            return
        write_file(self.path(result.spec), about | {"rows": result.rows})
        self.path(result.spec, "error").unlink(missing_ok=True)

    def read(self, spec: RunSpec) -> RunResult | None:
        """A stored success; None where there is none, or only a damaged one."""
        try:
            found = read_file(self.path(spec))
        except (FileNotFoundError, DamagedFileError):
            return None
        return RunResult(spec, found["rows"], seconds=self.seconds(spec), stored=True)

    def seconds(self, spec: RunSpec) -> float:
        """How long the stored work took; NaN where that is not known."""
        try:
            return float(read_file(self.path(spec, "time"))["seconds"])
        except (OSError, DamagedFileError, KeyError, TypeError):
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
        *,
        progress: bool = False,
    ) -> None:
        self.total, self.done = len(specs), 0
        self._executor, self._store = executor, store
        self._shared = None if shared is None else str(shared)
        # Processes of a pool are on this machine; those of a cluster each have their own memory.
        self._workers = getattr(executor, "_max_workers", 1)
        self._cancelled = False
        self._finished: queue.SimpleQueue[RunResult | BaseException] = queue.SimpleQueue()
        self._todo: list[RunSpec] = []
        for spec in specs:
            known = None if store is None else store.read(spec)
            if known is None:
                self._todo.append(spec)
            else:
                self._finished.put(known)
        self._open = len(specs) - len(self._todo)
        self._futures: list[Future] = []
        self._lost: list[str] = []
        todo = self._todo if executor is not None else ()
        functions = {spec.key: pickled_functions(spec, executor) for spec in todo}
        for spec in todo:
            try:
                given = (spec.to_json(), self._shared, self._workers, *functions[spec.key])
                future = executor.submit(work, *given)
            except RuntimeError as error:
                # An executor that broke while work was handed to it takes no more.
                if not self._futures:
                    raise
                self._lost.append(f"{type(error).__name__}: {error}")
                break
            self._open += 1
            self._futures.append(future)
            future.add_done_callback(partial(self._note, spec))
        from tqdm.auto import tqdm

        self._bar = tqdm(total=self.total, desc="runs", unit="spec", disable=not progress)

    def _note(self, spec: RunSpec, future: Future) -> None:
        """Store what a worker sent, as soon as it comes and whether or not it is asked for."""
        try:
            self._finished.put(self._keep(spec, future.result()))
        except BaseException as error:  # noqa: BLE001 - raised where the next result is asked for
            self._finished.put(error)

    def _keep(self, spec: RunSpec, answer: dict[str, Any]) -> RunResult:
        rows = loads(answer["rows"]) if "rows" in answer else []
        result = RunResult(spec, rows, answer.get("error"), answer["seconds"])
        try:
            if self._store is not None:
                self._store.write(result)
        except OSError as error:
            return replace(result, unstored=f"{type(error).__name__}: {error}")
        return result

    def cancel(self) -> int:
        """Start no more specs; those that run are stored when they end.

        Returns:
            How many specs will not be run.
        """
        self._cancelled = True
        self._bar.close()
        if self._executor is None:
            left, self._todo = len(self._todo), []
            return left
        return sum(future.cancel() for future in self._futures)

    def __iter__(self) -> RunStream:
        return self

    def __next__(self) -> RunResult:
        """The next result, waited for."""
        try:
            # Short waits, so that an interrupt is noticed.
            while (result := self.poll(0.5)) is None:
                continue
        except KeyboardInterrupt:
            self.cancel()
            raise
        return result

    def poll(self, seconds: float) -> RunResult | None:
        """The next result where one comes within so many seconds, else None.

        Raises:
            StopIteration: there are no more.
        """
        try:
            result = self._next(seconds)
        except BaseException:
            self._bar.close()
            raise
        if result is None:
            return None
        self.done += 1
        self._bar.update()
        if result.unstored:
            warnings.warn(
                f"The result of {result.spec.problem_name}, method {result.spec.method}, seed "
                f"{result.spec.seed} could not be stored ({result.unstored}). It is handed back, "
                "and lost with this process: keep its rows.",
                RuntimeWarning,
                stacklevel=3,
            )
        return result

    def _next(self, seconds: float) -> RunResult | None:
        if self._executor is None and self._todo and not self._open:
            spec = self._todo[0]
            result = self._keep(spec, work(spec.to_json(), self._shared))
            self._todo.pop(0)
            return result
        while self._open:
            try:
                answer = self._finished.get(timeout=seconds)
            except queue.Empty:
                return None
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

    def _note_failure(self, error: BaseException) -> None:
        if isinstance(error, CancelledError) and self._cancelled:
            return
        names = {kind.__name__ for kind in type(error).__mro__}
        if isinstance(error, BrokenExecutor | CancelledError) or names & set(LOST):
            self._lost.append(f"{type(error).__name__}: {error}")
            return
        raise error


def pickled_functions(spec: RunSpec, executor: Executor) -> tuple[bytes, ...]:
    """The registered functions that a spec names, for workers that do not have them: one or none.

    Raises:
        ValueError: worker processes cannot be given one of them.
    """
    if isinstance(executor, CancellablePool) and executor.executor is not None:
        executor = executor.executor
    if isinstance(executor, ThreadPoolExecutor):
        return ()
    # A fork has what was registered before; a cluster's workers may have registered their own.
    context = getattr(executor, "_mp_context", None)
    spawned = isinstance(executor, CancellablePool) or (
        isinstance(executor, ProcessPoolExecutor) and context.get_start_method() != "fork"
    )
    functions = {}
    for name in set(named_functions(spec.problem)) & set(registered_functions()):
        function = find_function(name)
        try:
            pickle.dumps(function)
            main = sys.modules["__main__"]
            if function.__module__ == "__main__" and not hasattr(main, "__file__"):
                raise pickle.PicklingError("it is defined in a notebook or at a prompt")
            functions[name] = function
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            if spawned:
                raise ValueError(
                    f"the function {quoted(name)} of {spec.problem_name} cannot be sent to worker "
                    f"processes: {error}. Define it with def in a module and import it from there, "
                    "or run without processes (executor=None of map_runs)."
                ) from error
    return (pickle.dumps(functions),) if functions else ()


def check_executor(executor: Any) -> None:
    """Raise TypeError unless it is None or takes work."""
    if executor is not None:
        wanted = "a concurrent.futures.Executor, such as client.get_executor() of Dask, or None"
        check_kind("executor", executor, ("submit",), wanted)


def map_runs(
    specs: Iterable[Any],
    executor: Any = None,
    folder: str | Path | None = None,
    *,
    shared: str | Path | None = None,
    progress: bool = False,
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
        progress: whether to show a bar of the results that have come.

    Returns:
        An iterator of ``RunResult``.
    """
    distinct: dict[str, RunSpec] = {}
    for spec in as_list("specs", specs, at_least=0):
        if not isinstance(spec, RunSpec):
            raise TypeError(f"specs must hold RunSpec objects; got {quoted(spec)}.")
        distinct.setdefault(spec.key, spec)
    check_executor(executor)
    check_flag("progress", progress)
    store = None if folder is None else ResultFolder(folder)
    if store is not None:
        # Fails at once, before anything is computed, where the folder cannot be written to.
        store.check_writable()
    if shared is None and folder is not None:
        shared = Path(folder) / "shared"
    where = None if shared is None else check_path("shared", shared).absolute()
    return RunStream(list(distinct.values()), executor, store, where, progress=progress)


@dataclass(frozen=True, slots=True)
class IslandRuns:
    """Runs of K particles, each made of M islands of K / M that resample among themselves.

    Attributes:
        log_z: log of the mean over islands of Z_hat, for each run: exp of it is unbiased for Z.
        island_log_z: log Z_hat of each island.
        num_particles: K of all islands together.
        rule: when an island resampled, in words.
    """

    log_z: Float64[Tensor, " runs"]
    island_log_z: Float64[Tensor, "islands runs"]
    num_particles: int
    rule: str

    @property
    def bounds(self) -> LogZBounds:
        """The lower bound that the pooled runs give."""
        return LogZBounds.of(self.log_z, None, num_particles=self.num_particles, rule=self.rule)


def island_specs(spec: RunSpec, num_islands: int) -> list[RunSpec]:
    """The islands of a spec's runs, each a spec for one worker.

    Args:
        spec: one K, a multiple of ``num_islands``, and one rule.
        num_islands: M.
    """
    check_kind("spec", spec, RunSpec, "a RunSpec")
    check_integer("num_islands", num_islands)
    if len(spec.num_particles) != 1 or len(spec.rule) != 1:
        raise ValueError(
            f"islands are of one K and one rule; got {spec.num_particles} and {spec.rule}."
        )
    # Exact samples matter to islands only where they bring the observations along.
    num_exact = spec.num_exact if parse_problem(spec.problem).conditional else 0
    plain = spec.with_(measures=("runs",), num_exact=num_exact)
    return [plain.with_(island=(i, num_islands)) for i in range(num_islands)]


def run_islands(
    spec: RunSpec,
    num_islands: int,
    executor: Any = None,
    folder: str | Path | None = None,
) -> IslandRuns:
    """Split each run's K particles over workers and pool what they find.

    Islands do not exchange particles, so that nothing but one number for each run travels. Without
    resampling the pooled runs are those of one large batch; with it, each island's Z_hat is
    unbiased for Z and so is their mean, but islands of few particles lose more to resampling than
    one large population does.

    Args:
        spec: what to run; its ``num_particles`` is K of all islands together.
        num_islands: M.
        executor: as for ``map_runs``.
        folder: as for ``map_runs``: islands that are stored are not run again.

    Raises:
        SpecError: an island failed.
        WorkerLostError: workers died; islands that were finished are stored.
    """
    specs = island_specs(spec, num_islands)
    found: dict[int, list[dict[str, Any]]] = {}
    for result in map_runs(specs, executor, folder):
        found[result.raise_error().spec.island[0]] = result.rows
    log_z = torch.tensor(
        [[row["value"] for row in found[i]] for i in range(num_islands)], dtype=torch.float64
    )
    pooled = numerics.logmeanexp(log_z.T)
    return IslandRuns(pooled, log_z, spec.num_particles[0], found[0][0]["rule"])


NICE = 5
"""Priority of workers: the kernel and the page that show their work come first."""

_SPAWN = get_context("spawn")


@dataclass(frozen=True, slots=True)
class Task:
    """A call that runs in a worker.

    Attributes:
        args: what the function was called with.
        since: when it began, in seconds of ``time.time``.
    """

    args: tuple[Any, ...]
    since: float


class CancellablePool(Executor):
    """Process pool whose running tasks can be listed and killed; for ``map_runs``.

    Processes start when there is a task, ignore interrupts of the kernel, and end with it. One that
    dies loses its own task alone; the next task gets a new process. As for every process that is
    spawned, a script makes a pool under ``if __name__ == "__main__":``.

    Args:
        size: how many tasks run at once.
        executor: runs the tasks in place of processes of the pool's own: a cluster's, say.
    """

    def __init__(self, size: int, executor: Any = None) -> None:
        check_integer("size", size)
        self.size = self._max_workers = size
        self.executor = executor
        self._tasks: queue.SimpleQueue[tuple | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._workers: list[_Worker] = []
        self._running: dict[Future, Task] = {}
        self._closed = False
        self._stops = 0

    @property
    def running(self) -> list[Task]:
        """Tasks that run, oldest first."""
        with self._lock:
            return sorted(self._running.values(), key=lambda task: task.since)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        """Put a task in the queue."""
        future: Future = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError("the pool is closed: make a new one.")
            self._tasks.put((future, fn, args, kwargs))
            if len(self._threads) < self.size:
                name = f"pool-{len(self._threads)}"
                thread = threading.Thread(target=self._serve, name=name, daemon=True)
                self._threads.append(thread)
                thread.start()
        return future

    def stop_workers(self) -> None:
        """Kill all processes, idle ones too; tasks that wait are the caller's to cancel."""
        with self._lock:
            self._stops += 1
            workers = list(self._workers)
        for worker in workers:
            worker.kill()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more tasks, and end once those taken are done."""
        with self._lock:
            self._closed = True
            threads = list(self._threads)
        if cancel_futures:
            with contextlib.suppress(queue.Empty):
                while (task := self._tasks.get_nowait()) is not None:
                    task[0].cancel()
        for _ in threads:
            self._tasks.put(None)
        for thread in threads if wait else ():
            thread.join()

    def _serve(self) -> None:
        """What each thread does: hand tasks to its worker until there are no more."""
        worker: _Worker | None = None
        while (task := self._tasks.get()) is not None:
            future, fn, args, kwargs = task
            if not future.set_running_or_notify_cancel():
                continue
            with self._lock:
                self._running[future] = Task(args, time.time())
                stops = self._stops
            error = answer = None
            try:
                if self.executor is None:
                    worker = self._ensure_worker(worker, stops)
                    answer = worker.run(fn, args, kwargs)
                else:
                    answer = self.executor.submit(fn, *args, **kwargs).result()
            except BaseException as problem:  # noqa: BLE001 - raised where the result is asked for
                error = problem
            with self._lock:
                self._running.pop(future, None)
            if error is None:
                future.set_result(answer)
            else:
                future.set_exception(error)
        if worker is not None:
            worker.kill()

    def _ensure_worker(self, worker: _Worker | None, stops: int) -> _Worker:
        """The worker at hand if it lives, or a new one; killed if all were stopped meanwhile."""
        if worker is None or not worker.alive:
            worker = _Worker()
        with self._lock:
            self._workers = [w for w in self._workers if w.alive and w is not worker] + [worker]
            too_late = stops != self._stops
        if too_late:
            worker.kill()
        return worker


class _Worker:
    """One process that runs one task at a time."""

    def __init__(self) -> None:
        self._link, there = _SPAWN.Pipe()
        self._process = _SPAWN.Process(target=_work, args=(there,), name="worker", daemon=True)
        self._killed = False
        with _interrupts_blocked():
            self._process.start()
        # With the other end open in the process alone, its death closes the pipe.
        there.close()

    @property
    def alive(self) -> bool:
        """Whether it can take a task."""
        return not self._killed and self._process.is_alive()

    def run(self, *task: Any) -> Any:
        """Run a task (function, args, kwargs) there, and wait."""
        try:
            self._link.send(task)
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


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Block Ctrl-C in this thread and in the process that it starts, which still imports."""
    before = _mask_interrupts(signal.SIG_BLOCK)
    try:
        yield
    finally:
        if signal.SIGINT not in before:
            _mask_interrupts(signal.SIG_UNBLOCK)


def _mask_interrupts(how: int) -> set[int]:
    """Change whether this thread hears SIGINT; the mask before. Nothing on Windows."""
    if not hasattr(signal, "pthread_sigmask"):
        return set()
    return signal.pthread_sigmask(how, {signal.SIGINT})


def _work(link: Any) -> None:
    """What a process does: one task after another until its owner is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _mask_interrupts(signal.SIG_UNBLOCK)
    with contextlib.suppress(AttributeError, OSError):
        os.nice(NICE)
    while True:
        try:
            fn, args, kwargs = link.recv()
        except (EOFError, OSError):
            return
        try:
            answer = (True, fn(*args, **kwargs))
        except BaseException as error:  # noqa: BLE001 - raised where the task was given
            answer = (False, as_exception(error))
        # A pipe whose owner is gone raises OSError; the next task then ends the loop.
        with contextlib.suppress(OSError):
            try:
                link.send(answer)
            except OSError:
                raise
            except Exception as error:  # noqa: BLE001 - what cannot be pickled
                link.send((False, TypeError(f"the result cannot be sent back: {error}")))
