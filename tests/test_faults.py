"""The script of faults: its events end well, and it tells an unclear error from a clear one."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.fault_events import EVENTS, must_raise
from benchmarks.faults import fits, refused_clearly
from tsmc_widgets.errors import check_integer

QUICK = [event for event in EVENTS if event.__name__ != "a_killed_worker"]  # Has its own test.


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("event", QUICK, ids=lambda event: event.__name__)
def test_an_event_ends_well(event, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    event()


def test_what_is_promised_and_does_not_come_is_lost():
    with pytest.raises(AssertionError, match="nothing was raised"), must_raise(OSError):
        pass


def raised(function):
    with pytest.raises(Exception) as error:  # noqa: PT011 - any
        function()
    return error.value


def test_clear_errors_are_told_from_others():
    def call(size: int, text: str = "") -> None: ...

    size, text = inspect.signature(call).parameters.values()
    assert refused_clearly(raised(lambda: check_integer("size", "x")), size, "x")
    assert not refused_clearly(raised(lambda: len(3)), size, 3)
    assert not refused_clearly(raised(lambda: check_integer("other", 2.5)), size, b"y")
    assert fits("call", size, "-1")
    assert not fits("call", size, "'nonsense'")
    assert not fits("call", text, "object()")


@pytest.mark.slow
def test_no_case_is_other_than_ok():
    script = [sys.executable, "-m", "benchmarks.faults"]
    root = Path(__file__).parents[1]
    ended = subprocess.run(script, cwd=root, capture_output=True, text=True, check=True)
    everything = ended.stdout.splitlines()[-1].split("|")[1:-1]
    assert int(everything[0].split()[-1]) > 7000
    assert everything[2:] == [" 0 "] * 4, ended.stderr
