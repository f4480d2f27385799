"""The lesson on resampling: it runs without a person, and a person can work it in JupyterLab."""

import pytest
from notebook_support import (
    NOTEBOOKS,
    check_saved_outputs,
    first_live_cell,
    outputs,
    printed,
    run_notebook,
)

from browser_support import run_all_cells

NOTEBOOK = NOTEBOOKS / "03_resampling.ipynb"

pytestmark = pytest.mark.slow

VIEW = "document.querySelector('.pv')"
STATUS = "document.querySelector('.pv-status').dataset.state"


def value_of(notebook, ending):
    """Result of the cell that ends so, without its brackets."""
    cell = next(c for c in notebook.cells if c.source.rstrip().endswith(ending))
    return cell.outputs[-1].data["text/plain"].strip("()")


def test_saved_outputs_read_well_without_a_kernel():
    shown = outputs(check_saved_outputs(NOTEBOOK))
    assert any("text/html" in output.get("data", {}) for output in shown)


def test_notebook_runs_without_a_person(tmp_path):
    notebook = run_notebook(NOTEBOOK, tmp_path)
    assert "first days survive" in printed(notebook)
    live, plain = (float(part) for part in value_of(notebook, "watch.trace.log_z").split(","))
    assert live == plain


@pytest.fixture
def live_part(tmp_path):
    """The notebook up to its widget; the test above runs the rest."""
    return first_live_cell(NOTEBOOK, tmp_path)


@pytest.mark.browser
def test_a_person_plays_moves_a_control_and_pauses(open_notebook, live_part):
    page = open_notebook(live_part)
    run_all_cells(page)
    page.wait_for_selector(".pv")
    page.wait_for_function(f"{VIEW}._stats.steps === 20")
    page.wait_for_function(f"{STATUS} === 'done'")
    assert page.locator(".pv-lost").is_hidden()

    page.get_by_role("button", name="Rewind to the prompt").click()
    page.wait_for_function(f"{VIEW}._stats.t === 0")
    page.get_by_label("Speed, steps a second").select_option("30")
    page.get_by_role("button", name="Play (Space)").click()
    page.wait_for_function(f"{VIEW}._stats.t === 20")

    before = page.locator(".pv-strip-logz .pv-strip-value").inner_text()
    beta = page.locator(".widget-slider", has_text="stars β").get_by_role("slider").first
    beta.focus()
    page.keyboard.type("dd")
    assert page.locator(".pv").count() == 1
    for _ in range(6):
        page.keyboard.press("ArrowLeft")
    page.wait_for_function("document.querySelector('.pv-target').textContent.endsWith('^5')")
    page.wait_for_function(f"{STATUS} === 'done' && {VIEW}._stats.steps === 20")
    assert page.locator(".pv-strip-logz .pv-strip-value").inner_text() != before

    particles = page.locator(".widget-slider", has_text="particles K").get_by_role("slider").first
    particles.focus()
    page.keyboard.press("End")
    page.wait_for_function("document.querySelector('.pv-facts').textContent.includes('4096')")
    page.locator(".pv-scroller").focus()
    page.get_by_role("button", name="Pause (Space)").wait_for()
    page.keyboard.press("Space")
    page.wait_for_function(f"['paused', 'done'].includes({STATUS})")
    steps = page.evaluate(f"{VIEW}._stats.steps")
    if page.evaluate(STATUS) == "paused":
        page.keyboard.press("End")
        page.get_by_role("button", name="One step on").click()
        page.wait_for_function(f"{VIEW}._stats.steps === {steps + 1}")
    page.keyboard.press("Home")
    page.wait_for_function(f"{VIEW}._stats.t === 0")


@pytest.mark.browser
def test_a_person_compares_two_lessons(open_notebook, live_part, page):
    open_notebook(live_part)
    run_all_cells(page)
    page.wait_for_selector(".pv")
    page.wait_for_function(f"{STATUS} === 'done'")

    page.get_by_role("button", name="Late evidence").click()
    page.wait_for_function("document.querySelector('.pv-target').textContent.includes('castle')")
    page.wait_for_function(f"{STATUS} === 'done' && {VIEW}._stats.steps === 20")
    page.get_by_role("button", name="Pin this run as A").click()
    page.wait_for_function("document.querySelectorAll('.pv').length === 2")
    page.get_by_role("button", name="A full ESS, and no gain").click()
    sentence = page.get_by_text("A → B, on the same noise")
    page.get_by_text("twist ψ none → look-ahead").wait_for()
    assert "proposal q base → twist-induced" in sentence.inner_text()

    # One play head for both.
    steps = "[...document.querySelectorAll('.pv')].map(root => root._stats.t)"
    page.get_by_role("button", name="More", exact=True).click()
    page.locator(".pv-scroller").first.focus()
    page.keyboard.press("Home")
    page.wait_for_function(f"{steps}.every(t => t === 0)")
    page.keyboard.press("ArrowRight")
    page.wait_for_function(f"{steps}.every(t => t === 1)")

    # A token under the lens, in the dark.
    page.keyboard.press("End")
    page.wait_for_function(f"{steps}.every(t => t === 20)")
    page.evaluate(
        "jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})"
        ".then(() => null)"
    )
    page.wait_for_function(f"{VIEW}._view.theme.dark")
    page.locator(".pv").first.locator(".pv-cell").first.click()
    page.locator(".pv").first.locator(".pv-next .pv-chosen").wait_for()
