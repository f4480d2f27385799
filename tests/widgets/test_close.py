"""Nothing of a page that was closed, refused or replaced stays behind."""

import contextlib
import gc
import importlib
import os
import pkgutil
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from types import SimpleNamespace

import comm
import pytest
from ipywidgets.widgets import widget as ipywidgets_registry

import tsmc_widgets as tw
from tsmc_widgets.widgets import Judges, controls

SECONDS = 60
STATM = Path("/proc/self/statm")


def workbench():
    page = tw.Workbench("rainy-week", num_particles=8)
    assert page.wait(SECONDS)
    page.pin()
    row = page.problem.editor.add({"kind": "ContainsToken", "args": ["rain"]})
    page.problem.editor.remove(row)
    assert page.wait(SECONDS)
    page.show("late-evidence")
    assert page.wait(SECONDS)
    return page


def watch():
    lm = tw.load_problem("rainy-week").target().lm
    page = tw.WatchSMC(lm, judges=Judges(None, None), prompt="", num_steps=3, num_particles=4)
    for particles in (4, 5):
        page.set(num_particles=particles)
        assert page.wait(SECONDS)
        page.pin()
    return page


def training():
    page = tw.TrainSession("rainy-week", num_updates=1, batch_size=10)
    assert page.train(1, timeout=SECONDS)
    return page


def comparison():
    page = tw.CompareSession("rainy-week", ("none",), folder=None, workers=1)
    assert page.wait(SECONDS)
    return page


def trace():
    return tw.run_smc(tw.load_problem("rainy-week").target(), num_particles=4, seed=0)


MAKERS = {
    "WatchSMC": watch,
    "Workbench": workbench,
    "TrainSession": training,
    "CompareSession": comparison,
    "ParticleView": lambda: tw.ParticleView(trace()),
    "RunPanels": lambda: tw.RunPanels(trace()),
}


def alive():
    """Whatever of a page the process may keep: widgets, their channels, threads."""
    gc.collect()
    channels = comm.get_comm_manager().comms
    return set(ipywidgets_registry._instances), set(channels), set(threading.enumerate())


@pytest.mark.parametrize("name", MAKERS)
def test_nothing_of_a_closed_page_survives(name):
    before, gone = alive(), []
    for _ in range(2):
        page = MAKERS[name]()
        names = ("trace", "session", "training", "view", "panels")
        held = [page, *(getattr(page, name, None) for name in names)]
        gone += [weakref.ref(each) for each in held if each is not None]
        page.close()
        del page, held
    assert alive() == before
    assert [ref() for ref in gone if ref() is not None] == []


def memory():
    pages = int(STATM.read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


@pytest.mark.slow
@pytest.mark.skipif(not STATM.exists(), reason="reads memory from /proc")
def test_fifty_workbenches_opened_and_closed_leave_little_memory():
    workbench().close()
    before, megabytes = alive(), memory()
    for _ in range(50):
        workbench().close()
        gc.collect()
    assert alive() == before
    assert memory() - megabytes < 20


REFUSED = [
    lambda: tw.WatchSMC(num_steps="many"),
    lambda: tw.WatchSMC(stars=9),
    lambda: tw.Workbench("no such problem"),
    lambda: tw.Workbench("rainy-week", folder=3),
    lambda: tw.TrainSession(method="none"),
    lambda: tw.CompareSession(seeds=0),
    lambda: tw.CompareSession(workers=0),
    lambda: tw.ParticleView(trace(), run=1),
    lambda: tw.RunPanels(trace(), bracket=3),
]


def test_a_refused_page_leaves_nothing_and_raises_once(monkeypatch):
    again = []
    monkeypatch.setattr(sys, "unraisablehook", again.append)
    before = alive()
    for make in REFUSED:
        with pytest.raises((ValueError, TypeError)):
            make()
    assert alive() == before
    assert again == []


def classes_with_a_finalizer():
    names = (module.name for module in pkgutil.walk_packages(tw.__path__, "tsmc_widgets."))
    modules = [importlib.import_module(name) for name in names]
    found = {each for module in modules for each in vars(module).values() if isinstance(each, type)}
    own = (each for each in found if each.__module__.startswith("tsmc_widgets"))
    return sorted((each for each in own if hasattr(each, "__del__")), key=str)


def test_no_class_finalizes_what_was_never_made(monkeypatch):
    again = []
    monkeypatch.setattr(sys, "unraisablehook", again.append)
    classes = classes_with_a_finalizer()
    assert {tw.Workbench, tw.RunPanels, tw.CompareSession} < set(classes)
    for each in classes:
        with contextlib.suppress(Exception):
            each(*[object()] * 9)
        each.__new__(each)
        gc.collect()
        assert again == [], each


def test_python_ends_quietly_with_pages_open():
    script = """
import tsmc_widgets as tw
pages = [tw.WatchSMC(), tw.TrainSession(problem="rainy-week")]
"""
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120
    )
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.fixture
def run_cell(monkeypatch):
    """Function that says that this cell runs, in this run of it."""

    def run(cell, message):
        request = {"metadata": {"cellId": cell}, "header": {"msg_id": message}}
        kernel = SimpleNamespace(get_parent=lambda: request)
        monkeypatch.setattr(controls, "get_ipython", lambda: SimpleNamespace(kernel=kernel))

    return run


def test_a_cell_that_is_run_again_closes_the_page_of_before(run_cell):
    before = alive()
    run_cell("a", "1")
    first, beside = watch(), watch()
    run_cell("b", "2")
    other = watch()
    assert all(page.comm is not None for page in (first, beside))
    run_cell("a", "3")
    again = watch()
    assert first.comm is beside.comm is None
    assert other.comm is not None
    for page in (other, again):
        page.close()
    del first, beside, other, again, page
    assert alive() == before
