"""What comes from a front end stays in the notebook's folder, and never ends a page."""

import pytest

from tsmc_widgets.experiments.runs import map_runs
from tsmc_widgets.widgets.compare_page import CompareSession
from tsmc_widgets.widgets.train_page import TrainSession
from tsmc_widgets.widgets.workbench import Workbench

SECONDS = 60
SMALL = {"num_particles": (1,), "seeds": 1, "num_runs": 2, "num_exact": 0, "num_samples": 4}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The notebook's folder, with a file of its author in it."""
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "notes.csv").write_text("mine")
    (tmp_path / "here" / "twist.safetensors").write_text("mine")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def opened():
    """Function that opens a page, closed at the end."""
    pages = []

    def make(kind, *args, **options):
        pages.append(kind(*args, **options))
        assert pages[-1].wait(SECONDS)
        return pages[-1]

    yield make
    for page in pages:
        page.close()


def unchanged(folder):
    assert sorted(path.name for path in folder.parent.rglob("*")) == [
        "here", "notes.csv", "twist.safetensors"
    ]  # fmt: skip
    assert (folder / "notes.csv").read_text() == "mine"
    assert (folder / "twist.safetensors").read_text() == "mine"


def press(page, act):
    page.view.ask = {"act": act, "n": page.view.ask.get("n", 0) + 1}
    return page.view.status["error"]


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
    assert "notebook&#x27;s folder" in page.refusal.value
    page.problem.fields["model"].value = "table:rainy-week"
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
