"""The lesson on learning: its saved outputs read well, and it runs without a person."""

import re

import pytest
from notebook_support import NOTEBOOKS, check_saved_outputs, first_live_cell, printed, run_notebook

from browser_support import run_all_cells

NOTEBOOK = NOTEBOOKS / "05_learn_a_twist.ipynb"
VIEW = "document.querySelector('.tl')"
STATE = "document.querySelector('.pv-status').dataset.state"


def gaps(text):
    return [float(gap) for gap in re.findall(r"gap (-?\d+\.\d+)", text)]


def test_saved_outputs_read_well_without_a_kernel():
    before, after = gaps(printed(check_saved_outputs(NOTEBOOK)))
    assert after < before / 3


@pytest.mark.slow
def test_notebook_runs_without_a_person(tmp_path):
    shorter = [
        ("learn.train(100)", "learn.train(12)"),
        ("trainer.updates(40)", "trainer.updates(10)"),
    ]
    notebook = run_notebook(NOTEBOOK, tmp_path, replace=shorter)
    before, after = gaps(printed(notebook))
    assert after < before
    assert "learned twist: log Z estimates" in printed(notebook)


@pytest.mark.slow
@pytest.mark.browser
def test_a_person_trains_pauses_swaps_and_races(open_notebook, tmp_path):
    # The toy, with more updates than a test waits for.
    toy = [("one-star-review", "rainy-week"), ("num_updates=120", "num_updates=2000")]
    page = open_notebook(first_live_cell(NOTEBOOK, tmp_path, replace=toy))
    run_all_cells(page)
    page.wait_for_selector(".tl")
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
    page.get_by_role("button", name="Start again").click()
    page.wait_for_function(f"{VIEW}.querySelectorAll('.tl-race tbody tr').length === 2")
    page.wait_for_function(f"{VIEW}._stats.updates >= 20")
    page.get_by_role("radio").first.focus()
    page.keyboard.type("dd")
    assert page.locator(".tl").count() == 1
    page.get_by_role("button", name="Stop").click()
    page.wait_for_function(f"{STATE} === 'stopped'")
