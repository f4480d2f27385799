"""The background thread: order of events, holds, cancelling, errors; no kernel, no browser."""

import threading
import time

import pytest

import tsmc_widgets as tw
from tsmc_widgets.widgets.session import PUBLISH_SECONDS, LiveSession


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
def live(told):
    live = LiveSession(told.append, rest=0.0)
    yield live
    live.close()
    assert live._thread is None or not live._thread.is_alive()


def test_the_first_step_is_told_at_once_and_the_end_always(live, told):
    live.submit(lambda: Session(50))
    assert live.wait(5)
    assert [progress.trace for progress in told if progress.state == "running"][:2] == [None, 1]
    assert (told[-1].state, told[-1].trace, told[-1].error) == ("done", 50, None)
    assert live.trace == 50


def test_reports_at_most_ten_times_a_second(live, told):
    begun = time.monotonic()
    live.submit(lambda: Session(2000))
    assert live.wait(5)
    running = [progress for progress in told if progress.state == "running"]
    assert len(running) <= 3 + (time.monotonic() - begun) / PUBLISH_SECONDS


def test_hold_release_and_single_steps(live, told):
    permits = threading.Semaphore(0)
    session = Session(4, permits)
    live.submit(lambda: session)
    assert session.entered.acquire(timeout=5)
    live.pause()
    permits.release(99)
    assert live.wait(5)
    assert (live.progress.state, session.t) == ("paused", 1)
    live.step()
    assert live.wait(5)
    assert (told[-1].state, told[-1].trace) == ("paused", 2)
    live.resume()
    assert live.wait(5)
    assert (told[-1].state, told[-1].trace) == ("done", 4)


def test_newest_run_wins(live, told):
    permits = threading.Semaphore(0)
    old, new = Session(100, permits), Session(2)
    live.submit(lambda: old)
    assert old.entered.acquire(timeout=5)
    run_id = live.submit(lambda: new)
    permits.release()
    assert live.wait(5)
    assert old.t == 1
    assert (told[-1].state, told[-1].trace, told[-1].run_id) == ("done", 2, run_id)
    assert "cancelled" not in [progress.state for progress in told]


def test_a_run_overtaken_while_controls_move_is_never_made():
    made = []
    live = LiveSession(lambda _: None, rest=30.0)
    live.submit(lambda: made.append("old") or Session(1))
    live.submit(lambda: made.append("new") or Session(1), rest=0.0)
    assert live.wait(5)
    assert made == ["new"]
    live.close()


def test_a_new_run_ends_a_hold(live, told):
    session = Session(9)
    live.submit(lambda: session, rest=0.05)
    live.pause()
    assert live.wait(5)
    assert live.progress.state == "paused"
    live.submit(lambda: Session(2))
    assert live.wait(5)
    assert (told[-1].state, told[-1].trace) == ("done", 2)


def test_cancel_keeps_what_is_on_record(live, told):
    permits = threading.Semaphore(0)
    session = Session(4, permits)
    live.submit(lambda: session)
    assert session.entered.acquire(timeout=5)
    live.cancel()
    permits.release()
    assert live.wait(5)
    assert (told[-1].state, told[-1].trace) == ("cancelled", 1)


def test_cancel_ends_a_pass_of_the_model_after_its_chunk(live, told, checkpoint):
    lm = tw.HuggingFaceLM.from_pretrained(checkpoint("gpt2"), max_rows=1)
    begun, permits, chunks = threading.Event(), threading.Semaphore(0), []

    def forward(*args, **options):
        chunks.append(len(chunks))
        if len(chunks) == 3:
            begun.set()
            assert permits.acquire(timeout=20)
        return tw.HuggingFaceLM._forward(lm, *args, **options)

    lm._forward = forward
    target = tw.Target(lm, tw.Constant(), prompt="once upon a", num_steps=3)
    live.submit(lambda: tw.start_smc(target, num_particles=50))
    assert begun.wait(20)
    live.cancel()
    permits.release()
    assert live.wait(20)
    assert (told[-1].state, live.session.t, len(chunks)) == ("cancelled", 0, 3)
    assert live.session.run().done


def test_error_in_a_step_is_told_with_the_record(live, told):
    live.submit(lambda: Session(9, fail_at=7))
    assert live.wait(5)
    assert (told[-1].state, told[-1].trace) == ("failed", 6)
    assert str(told[-1].error) == "no step 7"
    live.submit(lambda: Session(1))
    assert live.wait(5)
    assert told[-1].state == "done"


def test_error_before_the_first_step_has_no_trace(live, told):
    live.submit(lambda: Session(1))
    assert live.wait(5)
    live.submit(lambda: 1 / 0)
    assert live.wait(5)
    assert (told[-1].state, told[-1].trace) == ("failed", None)
    assert isinstance(told[-1].error, ZeroDivisionError)
    assert live.trace == 1


def test_a_view_that_went_away_does_not_end_the_run():
    def publish(progress):
        raise OSError("no comm")

    live = LiveSession(publish, rest=0.0)
    live.submit(lambda: Session(3))
    assert live.wait(5)
    assert live.session.done
    assert str(live.publish_error) == "no comm"
    live.close()


def test_wait_gives_up(live):
    permits = threading.Semaphore(0)
    live.submit(lambda: Session(1, permits))
    assert not live.wait(0.05)
    permits.release()
    assert live.wait(5)


def test_closed_runner_refuses_work(live):
    live.close()
    with pytest.raises(RuntimeError, match="closed"):
        live.submit(Session)


def test_wait_returns_after_the_pause_was_told():
    telling, told = threading.Event(), threading.Event()

    def publish(progress):
        if progress.state == "paused":
            telling.set()
            told.wait(20)

    permits = threading.Semaphore(0)
    live, session = LiveSession(publish, rest=0.0), Session(3, permits)
    live.submit(lambda: session)
    assert session.entered.acquire(timeout=20)
    live.pause()
    permits.release()
    assert telling.wait(20)
    assert not live.wait(0.0)
    told.set()
    assert live.wait(20)
    permits.release(9)
    live.close()


@pytest.mark.parametrize("kind", [SystemExit, GeneratorExit, KeyboardInterrupt])
def test_code_that_ends_the_program_ends_its_run_alone(live, told, kind):
    class Ends(Session):
        def step(self):
            raise kind("by the user's code")

    live.submit(Ends)
    assert live.wait(5)
    assert told[-1].state == "failed"
    assert f"{kind.__name__} was raised: by the user's code" in str(told[-1].error)
    live.submit(Session)
    assert live.wait(5)
    assert told[-1].state == "done"


def test_a_page_that_ends_the_program_does_not_end_the_run():
    def publish(_):
        raise SystemExit

    live = LiveSession(publish, rest=0.0)
    live.submit(lambda: Session(2))
    assert live.wait(5)
    assert live.progress.state == "done"
    live.close()
