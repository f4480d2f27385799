"""Tasks that run can be listed and killed: nothing hangs, and only what ran is lost."""

import os
import signal
import threading
import time
from concurrent.futures import BrokenExecutor, CancelledError, ThreadPoolExecutor
from pathlib import Path

import pytest

from tsmc_widgets.experiments.runs import CancellablePool, _Worker

SECONDS = 60


def wait_for_ever(path):
    """Say that it has begun, and never end."""
    Path(path).touch()
    threading.Event().wait()


@pytest.fixture(scope="module")
def pool():
    pool = CancellablePool(1)
    yield pool
    pool.stop_workers()
    pool.shutdown(wait=True, cancel_futures=True)


@pytest.fixture
def hung(pool, tmp_path):
    """Work that runs until its worker is gone."""
    begun, pause = tmp_path / "begun", threading.Event()
    future = pool.submit(wait_for_ever, str(begun))
    deadline = time.monotonic() + SECONDS
    while not begun.exists():
        assert time.monotonic() < deadline
        pause.wait(0.01)
    return future


def test_work_is_done_elsewhere_and_errors_come_back(pool):
    assert pool.submit(os.getpid).result(SECONDS) != os.getpid()
    with pytest.raises(ZeroDivisionError):
        pool.submit(divmod, 1, 0).result(SECONDS)
    with pytest.raises(TypeError, match="cannot be sent back"):
        pool.submit(threading.Lock).result(SECONDS)
    assert pool.submit(int, "12", base=8).result(SECONDS) == 10


def test_a_worker_ignores_the_interrupt_that_is_meant_for_the_kernel(pool):
    worker = pool.submit(os.getpid).result(SECONDS)
    pool.submit(os.kill, worker, signal.SIGINT).result(SECONDS)
    assert pool.submit(os.getpid).result(SECONDS) == worker


def test_an_interrupt_while_a_worker_still_imports_is_ignored_too():
    worker = _Worker()
    os.kill(worker._process.pid, signal.SIGINT)
    assert worker.run(os.getpid, (), {}) == worker._process.pid
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert worker.run(signal.pthread_sigmask, (signal.SIG_BLOCK, ()), {}) == set()
    worker.kill()


def test_stop_ends_what_runs_and_a_new_worker_goes_on(pool, hung):
    waiting = pool.submit(int, "3")
    assert [work.args[0].endswith("begun") for work in pool.running] == [True]
    pool.stop_workers()
    with pytest.raises(CancelledError):
        hung.result(SECONDS)
    assert waiting.result(SECONDS) == 3
    assert pool.running == []


def test_a_worker_that_dies_takes_only_its_own_work(pool):
    lost = pool.submit(os._exit, 7)
    kept = pool.submit(int, "4")
    with pytest.raises(BrokenExecutor, match="exit code 7"):
        lost.result(SECONDS)
    assert kept.result(SECONDS) == 4


def test_cancelled_work_is_never_begun(pool, hung):
    waiting = pool.submit(int, "3")
    assert waiting.cancel()
    pool.stop_workers()
    with pytest.raises(CancelledError):
        hung.result(SECONDS)
    assert waiting.cancelled()


def test_borrowed_workers_do_the_same():
    with ThreadPoolExecutor(2, thread_name_prefix="lent") as lent:
        pool = CancellablePool(2, lent)
        names = pool.submit(lambda: threading.current_thread().name)
        assert names.result(SECONDS).startswith("lent")
        pool.shutdown()
    with pytest.raises(RuntimeError, match="closed"):
        pool.submit(int, "1")
