"""What comes from a front end stays in the notebook's folder, and never ends a page."""

import math
import random
from concurrent.futures import ThreadPoolExecutor

import pytest
from widgets.conftest import SECONDS, press

from tsmc_widgets.experiments.runs import map_runs
from tsmc_widgets.widgets.compare_page import CompareSession
from tsmc_widgets.widgets.train_page import TrainSession
from tsmc_widgets.widgets.workbench import Workbench

SMALL = {"num_particles": (1,), "seeds": 1, "num_runs": 2, "num_exact": 0, "num_samples": 4}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The notebook's folder, with a file of its author in it."""
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "notes.csv").write_text("mine")
    (tmp_path / "here" / "twist.safetensors").write_text("mine")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def unchanged(folder):
    assert sorted(path.name for path in folder.parent.rglob("*")) == [
        "here", "notes.csv", "twist.safetensors"
    ]  # fmt: skip
    assert (folder / "notes.csv").read_text() == "mine"
    assert (folder / "twist.safetensors").read_text() == "mine"


def test_the_workbench_saves_and_loads_in_its_folder(opened, folder):
    page = opened(Workbench, "rainy-week", num_particles=4)
    for name, message in [("../page.json", "s folder only"), ("notes.csv", "another name")]:
        page.file.path.value = name
        page.file.buttons["save"].click()
        assert message in page.file.message.value
    elsewhere = folder.parent / "elsewhere.json"
    page.save(elsewhere)
    page.file.path.value = "../elsewhere.json"
    page.file.buttons["load"].click()
    assert "notebook&#x27;s folder" in page.file.message.value
    elsewhere.unlink()
    unchanged(folder)


def test_the_workbench_reads_no_twist_or_model_from_elsewhere(opened, folder):
    page = opened(Workbench, "rainy-week", num_particles=4)
    page.sampler.fields["folder"].value = "../twist"
    page.sampler.fields["twist"].value = "saved"
    assert "notebook&#x27;s folder" in page.refusal.value
    page.sampler.fields["twist"].value = "none"
    assert page.refusal.value == ""
    page.problem.fields["model"].value = "../model"
    assert "notebook&#x27;s folder" in page.problem.note.value
    assert page.problem.fields["model"].value == "table:rainy-week"
    page.problem.editor.add({"kind": "ClassProbability", "model": "/judge", "label": 1})
    assert "notebook&#x27;s folder" in page.refusal.value


def test_a_twist_is_saved_in_the_folder(opened, folder):
    page = opened(TrainSession, "rainy-week", num_updates=1, batch_size=10)
    page.train(1, timeout=SECONDS)
    for name, message in [("../twist", "notebook's folder"), (".", "another name")]:
        page.view.folder = name
        assert message in press(page, "save")
    unchanged(folder)
    page.view.folder = "own"
    assert press(page, "save") == press(page, "save") == ""
    assert (folder / "own" / "twist.json").is_file()


def test_a_comparison_is_exported_in_the_folder(opened, folder):
    page = opened(CompareSession, "rainy-week", ("none",), folder=None, workers=1, **SMALL)
    for result in map_runs(page.specs):
        page.runs.comparison.table.add(result)
    for name, message in [("../table", "notebook's folder"), ("notes", "another name")]:
        page.view.stem = name
        assert message in press(page, "csv")
    unchanged(folder)
    page.view.stem = "table"
    for kind in ("csv", "tex", "html"):
        assert press(page, kind) == press(page, kind) == ""


def test_a_comparison_shows_what_it_cannot_store(opened, folder, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tsmc_widgets.experiments.runs.ResultFolder.write", full)
    with ThreadPoolExecutor(1) as lent:
        page = opened(CompareSession, "rainy-week", ("none",), folder="r", executor=lent, **SMALL)
        with pytest.warns(RuntimeWarning, match="could not be stored"):
            assert len(page.run(SECONDS).table) == 1
    assert "No space left on device" in page.view.status["error"]


ODD = (None, True, -1, 10**12, 1e308, math.nan, "", "x" * 300, "../x", [], [[]], {}, {"a": {}})


def messages(names, count=500):
    """Malformed messages from a front end, and some that only look like it."""
    rng = random.Random(0)

    def value(depth=0):
        if depth < 2 and rng.random() < 0.3:
            keys = ("act", "n", "problems", "num_particles", "seeds", "methods", "rules", "x")
            return {key: value(depth + 1) for key in rng.sample(keys, 3)}
        return rng.choice(ODD)

    for _ in range(count):
        state = {rng.choice([*names, "unknown"]): value() for _ in range(rng.randint(1, 3))}
        data = {"method": "update", "state": state, "buffer_paths": []}
        broken = rng.random()
        if broken < 0.2:
            data[rng.choice([*data])] = value()
        yield {"content": {"data": rng.choice(ODD) if broken > 0.9 else data}, "buffers": []}
    yield {}
    yield None


def send(widget, **state):
    widget._handle_msg({"content": {"data": {"method": "update", "state": state}}, "buffers": []})


def fuzz(widget):
    """Send what is malformed; what Python alone sets must stay as it is."""
    own = set(widget.keys) - {*widget._takes, "status", "welcome"}
    before = {name: getattr(widget, name) for name in own}
    for message in messages(widget.keys):
        widget._handle_msg(message)
    assert {name: getattr(widget, name) for name in own} == before
    send(widget, hello=7)
    if widget.has_trait("hello"):
        assert widget.welcome == 7


def test_malformed_messages_are_answered_and_the_page_goes_on(opened):
    bench = opened(Workbench, "rainy-week", num_particles=4)
    for widget in (bench.view, bench.panels):
        fuzz(widget)
    for view in (bench.view, bench.panels):
        send(view, run=5)
        assert "run must be one of 0 to 0; got 5" in view.status["error"]
        assert view.run == 0
        send(view, hello=8)
        assert view.status["error"] == ""
    send(bench.view, share={"code": "import os"})
    assert "what a page sets" in bench.view.status["error"]
    assert "import os" not in bench.view.share["code"]
    bench.set(num_particles=8)
    assert bench.wait(SECONDS)
    assert bench.view.status["state"] == "done"
    assert bench.view.status["error"] == ""


def test_malformed_messages_to_the_training(opened):
    page = opened(TrainSession, "rainy-week", num_updates=1, batch_size=10)
    fuzz(page.view)
    send(page.view, ask=[])
    assert "ask" in page.view.status["error"]
    send(page.view, ask={"act": {}, "n": 1})
    assert "act must be one of" in page.view.status["error"]
    assert page.train(1, timeout=SECONDS)


def test_malformed_messages_to_the_comparison(opened):
    page = opened(CompareSession, "rainy-week", ("none",), folder=None, workers=1, **SMALL)
    fuzz(page.view)
    stands = page.settings
    path_of_another = {"name": "x", "model": "/x", "prompt": "x", "num_steps": 1,
                       "potential": {"kind": "Constant"}}  # fmt: skip
    for change, message in [
        ({"num_particles": [10**12]}, "num_particles must be at most 4096"),
        ({"seeds": 10**6}, "seeds must be at most 100"),
        ({"problems": [path_of_another]}, "problem must be one of"),
        ({"seeds": 0}, "seeds must be an integer"),
        ({"unknown": 1}, "the setting must be one of"),
    ]:
        send(page.view, settings={**stands.to_dict(), **change})
        assert message in page.view.status["error"]
        assert page.settings == stands
        assert page.view.settings == stands.to_dict()
    send(page.view, settings={**stands.to_dict(), "seeds": 2})
    assert page.settings.seeds == 2
