"""The second notebook: its saved outputs read well, and it runs without a person."""

import copy
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from browser_support import run_all_cells

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "02_learn_a_twist.ipynb"
VIEW = "document.querySelector('.tl')"
STATE = "document.querySelector('.pv-status').dataset.state"


def outputs(notebook):
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [output for cell in cells for output in cell.outputs]


def printed(notebook):
    return "".join(o.text for o in outputs(notebook) if o.output_type == "stream")


def gaps(text):
    return [float(gap) for gap in re.findall(r"gap (-?\d+\.\d+)", text)]


def test_saved_outputs_read_well_without_a_kernel():
    notebook = nbformat.read(NOTEBOOK, 4)
    bundles = [output.get("data", {}) for output in outputs(notebook)]
    assert any("image/png" in bundle for bundle in bundles)
    # A saved widget without its kernel shows an error in place of the picture.
    assert not any("application/vnd.jupyter.widget-view+json" in bundle for bundle in bundles)
    assert not any(output.output_type == "error" for output in outputs(notebook))
    assert NOTEBOOK.stat().st_size < 600_000
    before, after = gaps(printed(notebook))
    assert after < before / 3


@pytest.mark.slow
def test_notebook_runs_without_a_person(tmp_path):
    notebook = copy.deepcopy(nbformat.read(NOTEBOOK, 4))
    for cell in notebook.cells:
        cell.source = cell.source.replace("learn.train(100)", "learn.train(12)")
        cell.source = cell.source.replace("trainer.updates(40)", "trainer.updates(10)")
    client = NotebookClient(
        notebook,
        timeout=240,
        resources={"metadata": {"path": str(tmp_path)}},
        kernel_name="python3",
    )
    client.execute()
    shown = outputs(notebook)
    assert any("application/vnd.jupyter.widget-view+json" in o.get("data", {}) for o in shown)
    # Neither warnings nor progress bars.
    assert [o.text for o in shown if o.output_type == "stream" and o.name == "stderr"] == []
    before, after = gaps(printed(notebook))
    assert after < before
    assert "learned twist: log Z estimates" in printed(notebook)


@pytest.fixture
def live_part(tmp_path):
    """The widget's cell on the toy, and one that asks whether the kernel is free."""
    notebook = nbformat.read(NOTEBOOK, 4)
    last = next(i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code")
    notebook.cells = notebook.cells[: last + 1]
    cell = notebook.cells[last]
    cell.source = cell.source.replace("1-star reviews", "two days of rain (toy)")
    cell.source = cell.source.replace("num_updates=120", "num_updates=2000")
    assert "toy" in cell.source
    nbformat.write(notebook, tmp_path / NOTEBOOK.name)
    return tmp_path / NOTEBOOK.name


@pytest.mark.slow
@pytest.mark.browser
def test_a_person_trains_pauses_swaps_and_races(open_notebook, live_part):
    page = open_notebook(live_part)
    run_all_cells(page)
    page.wait_for_selector(".tl")
    page.get_by_role("button", name="Start", exact=True).click()
    page.wait_for_function(f"{VIEW}._stats.updates >= 20")
    assert page.locator(".pv-lost").is_hidden()
    page.get_by_role("button", name="Pause").click()
    page.wait_for_function(f"{STATE} === 'paused'")
    updates = page.evaluate(f"{VIEW}._stats.updates")
    page.get_by_role("button", name="Go on").click()
    page.wait_for_function(f"{VIEW}._stats.updates > {updates}")
    page.get_by_role("button", name="Stop").click()
    page.wait_for_function(f"{STATE} === 'stopped'")

    page.get_by_label("method", exact=True).select_option(label="RL: path consistency")
    page.wait_for_selector(".tl-stale:not([hidden])")
    page.get_by_label("NVI", exact=True).check()
    page.get_by_label("seed").focus()
    page.keyboard.type("dd")
    page.get_by_role("button", name="Start anew").click()
    page.wait_for_function(f"{VIEW}.querySelectorAll('.tl-race tbody tr').length === 2")
    page.wait_for_function(f"{VIEW}._stats.updates >= 20")
    page.get_by_role("radio").first.focus()
    page.keyboard.type("dd")
    assert page.locator(".tl").count() == 1
    page.get_by_role("button", name="Stop").click()
    page.wait_for_function(f"{STATE} === 'stopped'")
