"""The background thread: order of events, holds, cancelling, errors; no kernel, no browser."""

import threading
import time

import pytest

from tsmc_widgets.widgets.session import PUBLISH_SECONDS, Runner


class Session:
    """Counts steps; each waits for a permit, so that a test decides when it ends."""

    def __init__(self, steps=3, permits=None, fail_at=None):
        self.steps, self.permits, self.fail_at = steps, permits, fail_at
        self.t = 0
        self.entered = threading.Semaphore(0)

    @property
    def done(self):
        return self.t == self.steps

    @property
    def trace(self):
        return self.t

    def step(self):
        self.entered.release()
        if self.permits is not None:
            assert self.permits.acquire(timeout=5)
        if self.t + 1 == self.fail_at:
            raise ValueError(f"no step {self.fail_at}")
        self.t += 1


@pytest.fixture
def told():
    return []


@pytest.fixture
def runner(told):
    runner = Runner(told.append, rest=0.0)
    yield runner
    runner.close()
    assert runner._thread is None or not runner._thread.is_alive()


def test_runs_to_the_end_and_always_tells_it(runner, told):
    runner.submit(lambda: Session(5))
    assert runner.wait(5)
    assert (told[-1].state, told[-1].trace, told[-1].error) == ("done", 5, None)
    assert runner.trace == 5


def test_reports_at_most_ten_times_a_second(runner, told):
    begun = time.monotonic()
    runner.submit(lambda: Session(2000))
    assert runner.wait(5)
    running = [progress for progress in told if progress.state == "running"]
    assert len(running) <= 3 + (time.monotonic() - begun) / PUBLISH_SECONDS


def test_the_first_step_is_told_at_once(runner, told):
    runner.submit(lambda: Session(50))
    assert runner.wait(5)
    assert [progress.trace for progress in told if progress.state == "running"][:2] == [None, 1]


def test_hold_release_and_single_steps(runner, told):
    permits = threading.Semaphore(0)
    session = Session(4, permits)
    runner.submit(lambda: session)
    assert session.entered.acquire(timeout=5)
    runner.hold()
    permits.release(99)
    assert runner.wait(5)
    assert (runner.progress.state, session.t) == ("paused", 1)
    runner.more()
    assert runner.wait(5)
    assert (told[-1].state, told[-1].trace) == ("paused", 2)
    runner.release()
    assert runner.wait(5)
    assert (told[-1].state, told[-1].trace) == ("done", 4)


def test_newest_run_wins(runner, told):
    permits = threading.Semaphore(0)
    old, new = Session(100, permits), Session(2)
    runner.submit(lambda: old)
    assert old.entered.acquire(timeout=5)
    run_id = runner.submit(lambda: new)
    permits.release()
    assert runner.wait(5)
    assert old.t == 1
    assert (told[-1].state, told[-1].trace, told[-1].run_id) == ("done", 2, run_id)
    assert "cancelled" not in [progress.state for progress in told]


def test_a_run_overtaken_while_controls_move_is_never_made():
    made = []
    runner = Runner(lambda _: None, rest=30.0)
    runner.submit(lambda: made.append("old") or Session(1))
    runner.submit(lambda: made.append("new") or Session(1), rest=0.0)
    assert runner.wait(5)
    assert made == ["new"]
    runner.close()


def test_a_new_run_ends_a_hold(runner, told):
    session = Session(9)
    runner.submit(lambda: session, rest=0.05)
    runner.hold()
    assert runner.wait(5)
    assert runner.progress.state == "paused"
    runner.submit(lambda: Session(2))
    assert runner.wait(5)
    assert (told[-1].state, told[-1].trace) == ("done", 2)


def test_cancel_keeps_what_is_on_record(runner, told):
    permits = threading.Semaphore(0)
    session = Session(4, permits)
    runner.submit(lambda: session)
    assert session.entered.acquire(timeout=5)
    runner.cancel()
    permits.release()
    assert runner.wait(5)
    assert (told[-1].state, told[-1].trace) == ("cancelled", 1)


def test_error_in_a_step_is_told_with_the_record(runner, told):
    runner.submit(lambda: Session(9, fail_at=7))
    assert runner.wait(5)
    assert (told[-1].state, told[-1].trace) == ("failed", 6)
    assert str(told[-1].error) == "no step 7"
    runner.submit(lambda: Session(1))
    assert runner.wait(5)
    assert told[-1].state == "done"


def test_error_before_the_first_step_has_no_trace(runner, told):
    runner.submit(lambda: Session(1))
    assert runner.wait(5)
    runner.submit(lambda: 1 / 0)
    assert runner.wait(5)
    assert (told[-1].state, told[-1].trace) == ("failed", None)
    assert isinstance(told[-1].error, ZeroDivisionError)
    assert runner.trace == 1


def test_a_view_that_went_away_does_not_end_the_run():
    def publish(progress):
        raise OSError("no comm")

    runner = Runner(publish, rest=0.0)
    runner.submit(lambda: Session(3))
    assert runner.wait(5)
    assert runner.session.done
    assert str(runner.publish_error) == "no comm"
    runner.close()


def test_wait_gives_up():
    permits = threading.Semaphore(0)
    runner = Runner(lambda _: None, rest=0.0)
    runner.submit(lambda: Session(1, permits))
    assert not runner.wait(0.05)
    permits.release()
    assert runner.wait(5)
    runner.close()


def test_closed_runner_refuses_work(runner):
    runner.close()
    with pytest.raises(RuntimeError, match="closed"):
        runner.submit(Session)


def test_wait_returns_after_the_pause_was_told():
    telling, told = threading.Event(), threading.Event()

    def publish(progress):
        if progress.state == "paused":
            telling.set()
            told.wait(20)

    permits = threading.Semaphore(0)
    runner, session = Runner(publish, rest=0.0), Session(3, permits)
    runner.submit(lambda: session)
    assert session.entered.acquire(timeout=20)
    runner.hold()
    permits.release()
    assert telling.wait(20)
    assert not runner.wait(0.0)
    told.set()
    assert runner.wait(20)
    permits.release(9)
    runner.close()
