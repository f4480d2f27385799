"""Workers that can be looked at and sent home: nothing hangs, and only what ran is lost."""

import os
import signal
import threading
from concurrent.futures import BrokenExecutor, CancelledError, ThreadPoolExecutor
from pathlib import Path

import pytest

from tsmc_widgets.experiments.runs import Crew

SECONDS = 60


def wait_for_ever(path):
    """Say that it has begun, and never end."""
    Path(path).touch()
    threading.Event().wait()


@pytest.fixture(scope="module")
def crew():
    crew = Crew(1)
    yield crew
    crew.stop()
    crew.shutdown(wait=True, cancel_futures=True)


@pytest.fixture
def hung(crew, tmp_path):
    """Work that runs until its worker is gone."""
    began = threading.Event()
    crew._changed = lambda: crew.running and began.set()
    future = crew.submit(wait_for_ever, str(tmp_path / "begun"))
    assert began.wait(SECONDS)
    yield future
    crew._changed = lambda: None


def test_work_is_done_elsewhere_and_errors_come_back(crew):
    assert crew.submit(os.getpid).result(SECONDS) != os.getpid()
    with pytest.raises(ZeroDivisionError):
        crew.submit(divmod, 1, 0).result(SECONDS)
    with pytest.raises(TypeError, match="can not be sent back"):
        crew.submit(threading.Lock).result(SECONDS)
    assert crew.submit(int, "12", base=8).result(SECONDS) == 10


def test_a_worker_ignores_the_interrupt_that_is_meant_for_the_kernel(crew):
    worker = crew.submit(os.getpid).result(SECONDS)
    crew.submit(os.kill, worker, signal.SIGINT).result(SECONDS)
    assert crew.submit(os.getpid).result(SECONDS) == worker


def test_stop_ends_what_runs_and_a_new_worker_goes_on(crew, hung):
    waiting = crew.submit(int, "3")
    assert [work.args[0].endswith("begun") for work in crew.running] == [True]
    crew.stop()
    with pytest.raises(CancelledError):
        hung.result(SECONDS)
    assert waiting.result(SECONDS) == 3
    assert crew.running == []


def test_a_worker_that_dies_takes_only_its_own_work(crew):
    lost = crew.submit(os._exit, 7)
    kept = crew.submit(int, "4")
    with pytest.raises(BrokenExecutor, match="exit code 7"):
        lost.result(SECONDS)
    assert kept.result(SECONDS) == 4


def test_cancelled_work_is_never_begun(crew, hung):
    waiting = crew.submit(int, "3")
    assert waiting.cancel()
    crew.stop()
    with pytest.raises(CancelledError):
        hung.result(SECONDS)
    assert waiting.cancelled()


def test_borrowed_workers_do_the_same():
    with ThreadPoolExecutor(2, thread_name_prefix="lent") as lent:
        crew = Crew(2, lent)
        names = crew.submit(lambda: threading.current_thread().name)
        assert names.result(SECONDS).startswith("lent")
        assert not crew.can_stop
        crew.shutdown()
    with pytest.raises(RuntimeError, match="closed"):
        crew.submit(int, "1")
