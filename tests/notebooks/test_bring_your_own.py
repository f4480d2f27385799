"""The last lesson and its workbench: it runs alone, and a person can work it in JupyterLab."""

import pytest
from notebook_support import NOTEBOOKS, first_live_cell, printed, run_notebook

from browser_support import run_all_cells

NOTEBOOK = NOTEBOOKS / "12_bring_your_own.ipynb"

pytestmark = pytest.mark.slow

VIEW = "document.querySelector('.pv')"
STATUS = "document.querySelector('.pv-status').dataset.state"
EVIL = "<img src=x onerror=globalThis.hacked=1>"


def test_notebook_runs_without_a_person(tmp_path):
    notebook = run_notebook(NOTEBOOK, tmp_path)
    assert "trace = tw.run_smc(" in printed(notebook)
    spec = next(cell for cell in notebook.cells if cell.source.endswith("workbench.spec"))
    assert spec.outputs[-1].data["text/plain"].startswith("RunSpec(problem={'name': 'my own'")


@pytest.fixture
def lab(open_notebook, tmp_path):
    """The page of the notebook's first cell, its first run done."""
    live = first_live_cell(NOTEBOOK, tmp_path, replace=[("tw.Workbench()", 'tw.Workbench("eos")')])
    page = open_notebook(live)
    page.set_default_timeout(60_000)
    run_all_cells(page)
    page.wait_for_function(f"{STATUS} === 'done'")
    return page


def unfold(page, phrase):
    """Press the phrase of the sentence that says this."""
    page.locator(".tw-phrase", has_text=phrase).first.click()


def slider(page, name):
    return page.locator(".widget-slider", has_text=name).get_by_role("slider").first


def done_again(page, act):
    """Act, and wait until another run than the one on show is done."""
    old = page.evaluate(f"{VIEW}._view.record.id")
    act()
    page.wait_for_function(f"{VIEW}._view.record.id > {old} && {STATUS} === 'done'")


@pytest.mark.browser
def test_a_person_composes_replays_and_compares(lab):
    page = lab
    formula = page.locator(".tw-formula p").first
    replay = page.locator(".tw-replay").first
    assert formula.inner_text() == "log φ(s) = log 1[token “yes” in s]"

    # Another problem by its title, and nothing but φ heard at the end.
    chooser = page.get_by_label("problem", exact=True)
    done_again(
        page, lambda: chooser.select_option(label="Five days of weather with about two of rain")
    )
    unfold(page, "look-ahead")
    done_again(page, lambda: page.get_by_label("twist ψ").select_option("none: ψ = 1"))

    # A factor's control is moved: re-weighted, and the page says so.
    power = slider(page, "power β")
    power.focus()
    done_again(page, lambda: page.keyboard.press("ArrowRight"))
    assert formula.inner_text() == "log φ(s) = 1.5 (−2 |days of rain − 2|)"
    assert replay.inner_text().startswith("Re-weighted")
    page.keyboard.type("dd")
    assert page.locator(".tw-workbench").count() == 1

    # A factor is added, and one taken away.
    add = page.locator(".tw-add select")
    done_again(page, lambda: add.select_option("contains tokens"))
    assert formula.inner_text().endswith("+ log 1[token “rain” in s]")
    done_again(page, lambda: page.locator(".tw-remove").first.click())
    assert formula.inner_text() == "log φ(s) = log 1[token “rain” in s]"

    # A/B on the same noise.
    page.get_by_role("button", name="Pin this run as A").click()
    page.wait_for_function("document.querySelectorAll('.pv-transport').length >= 2")
    page.get_by_label("twist ψ").select_option("optimal ψ*, enumerated")
    page.get_by_text("twist ψ none → optimal").wait_for()
    assert "on the same noise" in page.get_by_text("A → B").inner_text()


@pytest.mark.browser
def test_errors_are_words_and_texts_stay_texts(lab):
    page = lab
    unfold(page, "well")
    page.get_by_role("button", name="More", exact=True).click()
    prompt = page.get_by_label("prompt s₀")
    prompt.fill(EVIL)
    prompt.press("Enter")
    page.wait_for_function(f"{STATUS} === 'failed'")
    assert (
        "The run shown below is the one before" in page.locator("[role=alert]:visible").inner_text()
    )
    tokens = page.locator(".tw-factor input").first
    tokens.fill(EVIL)
    tokens.press("Enter")
    page.wait_for_function(
        "text => document.querySelector('.tw-formula').textContent.includes(text)", arg=EVIL
    )
    page.get_by_text("Share", exact=True).first.click()
    page.get_by_role("button", name="Show code").first.click()
    page.wait_for_function(
        "text => document.querySelector('.pv-code').textContent.includes(text)", arg=EVIL
    )
    prompt.fill("well")
    prompt.press("Enter")
    tokens.fill("no")
    tokens.press("Enter")
    page.wait_for_function(f"{STATUS} === 'done'")
    assert page.evaluate("globalThis.hacked") is None


CUT = """() => {
    const found = [];
    const all = '.tw-rail, .tw-rail *, .tw-bar, .tw-formula';
    for (const el of document.querySelectorAll(all)) {
        const style = getComputedStyle(el);
        if (!/auto|scroll/.test(style.overflowX + style.overflowY)) continue;
        const wide = el.scrollWidth > el.clientWidth + 1;
        if (wide || el.scrollHeight > el.clientHeight + 1) found.push(`scrolls: ${el.className}`);
    }
    for (const group of document.querySelectorAll('.tw-cockpit > .tw-rail')) {
        const box = group.getBoundingClientRect();
        for (const el of group.querySelectorAll('input, select, button, .widget-label')) {
            const own = el.getBoundingClientRect();
            if (own.width && (own.left < box.left - 1 || own.right > box.right + 1))
                found.push(`out: ${el.className}`);
        }
    }
    return found;
}"""


@pytest.mark.browser
def test_nothing_is_cut_or_scrolls(lab):
    """No control is wider than its group, and no group has a scroll bar of its own."""
    page = lab
    for phrase in ("tokens", "well", "table:eos", "look-ahead", "twist-induced", "below"):
        unfold(page, phrase)
    titles = ("hostility", "leads to a text (infilling)", "length before EOS")
    for count, title in enumerate(titles, start=2):
        page.locator(".tw-add select").select_option(title)
        page.wait_for_function(
            f"document.querySelectorAll('.tw-factor').length === {count}"
            " && document.querySelector('.tw-add select').selectedIndex === 0"
        )
    for width in (1280, 1920):
        page.set_viewport_size({"width": width, "height": 1000})
        page.wait_for_function(f"innerWidth === {width}")
        assert page.evaluate(CUT) == []
