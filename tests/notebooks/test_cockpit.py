"""The pages as a person sees and clicks them, served by Voila."""

import nbformat
import pytest
from models.checkpoints import make_checkpoint, word_tokenizer

from browser_support import TOKEN, accessibility_faults, voila_app
from tsmc_widgets.widgets.watch import PRESETS

pytestmark = [pytest.mark.slow, pytest.mark.browser]


@pytest.fixture
def show(page, tmp_path):
    """Function that serves a cell, and gives the page once its first run is done."""
    servers = []

    def serve(cell, width=1440, height=900, theme="light"):
        home = tmp_path / "home"
        home.mkdir()
        cells = [nbformat.v4.new_code_cell(f"import tsmc_widgets as tw\n{cell}")]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "page.ipynb")
        servers.append(voila_app(home, tmp_path / "page.ipynb", f"--theme={theme}"))
        url = servers[0].__enter__()
        page.set_viewport_size({"width": width, "height": height})
        page.set_default_timeout(120_000)
        page.goto(f"{url}/?token={TOKEN}")
        page.wait_for_selector(".pv-status[data-state='done']")
        return page

    yield serve
    for server in servers:
        page.goto("about:blank")
        server.__exit__(None, None, None)


def run_after(page, act):
    """Act, and wait until the run that follows is done."""
    old = page.evaluate("document.querySelector('.pv')._view.record.id")
    act()
    page.wait_for_function(
        f"document.querySelector('.pv')._view.record.id > {old}"
        " && document.querySelector('.pv-status').dataset.state === 'done'"
    )


def test_every_lesson_keeps_its_text_and_every_slider_has_a_name(show):
    page = show("tw.Workbench()")
    for number, (name, preset) in enumerate(PRESETS.items(), 1):
        lesson = page.get_by_role("button", name=f"{number} {name}", exact=True)
        run_after(page, lesson.click)
        # Sliders answer a little later, with numbers that were added up in steps.
        page.wait_for_timeout(500)
        assert page.get_by_text(preset.question).count() == 1, name
    names = "handles => handles.map(handle => handle.getAttribute('aria-label'))"
    assert all(page.locator(".noUi-handle").evaluate_all(names))


def test_a_checkpoint_of_fifty_thousand_tokens_is_chosen_and_steered(show, tmp_path):
    folder = make_checkpoint("llama", tmp_path / "large", tokenizer=word_tokenizer(50_000))
    page = show("tw.Workbench('eos', method='none', num_particles=32)")
    page.locator(".tw-phrase", has_text="well").first.click()
    prompt = page.get_by_label("prompt s₀")
    prompt.fill("once upon")
    prompt.press("Enter")
    page.locator(".tw-phrase", has_text="table:eos").first.click()
    model = page.get_by_label("model p₀")
    model.fill(str(folder))
    model.press("Enter")
    page.get_by_text("The model's vocabulary lacks 'yes'").wait_for()
    assert page.get_by_text("llama, 50,062 tokens").is_visible()
    assert page.locator(".tw-phrase", has_text="large").inner_text() == "large"
    tokens = page.locator(".tw-factor input").first
    tokens.fill("fox")
    run_after(page, lambda: tokens.press("Enter"))
    size = page.locator(".widget-slider", has_text="particles K").get_by_role("slider").first
    size.focus()
    run_after(page, lambda: page.keyboard.press("ArrowRight"))
    assert page.locator(".tw-phrase").first.inner_text() == "64 particles"
    assert page.evaluate("document.querySelector('.pv')._view.record.K") == 64
    page.get_by_text("All 64 weights are zero from step 6 on").wait_for()
    page.locator(".pv-row .pv-cell").first.click()
    assert page.locator(".pv-inspector").inner_text().count("word") > 8


@pytest.mark.parametrize(
    "cell",
    [
        "tw.Workbench()",
        "tw.WatchSMC()",
        "page = tw.TrainSession('rainy-week', num_updates=5)\npage.start()\npage",
        "page = tw.CompareSession('rainy-week', folder=None)\npage.start()\npage",
        'tw.TwistDebugger.from_run(tw.RunSpec(problem="rainy-week", method="look-ahead"))',
    ],
)
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_element_shuts_anybody_out(show, cell, theme):
    assert accessibility_faults(show(cell, theme=theme)) == []
