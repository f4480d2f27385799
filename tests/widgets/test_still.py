"""What a notebook keeps of a page: it reads without kernel, widgets and scripts."""

import re

import nbformat
import pytest
from nbconvert import HTMLExporter
from nbformat.v4 import new_code_cell, new_notebook, new_output

import tsmc_widgets as tw
from browser_support import execute_command, run_all_cells
from tsmc_widgets.widgets import front_end
from tsmc_widgets.widgets.particle_view import ParticleView, RunPanels

SECONDS = 60


class Screen:
    """Outputs of a cell as a notebook would keep them; those with a name can be replaced."""

    def __init__(self):
        self.outputs = []

    def display(self, data, *, raw, display_id=False):
        at = len(self.outputs)
        self.outputs.append(data)
        return Place(self, at) if display_id else None

    def exported(self):
        """The notebook as nbconvert writes it, without any state of widgets."""
        outputs = [new_output("display_data", data) for data in self.outputs]
        notebook = new_notebook(cells=[new_code_cell("page", outputs=outputs)])
        nbformat.validate(notebook)
        return HTMLExporter().from_notebook_node(notebook)[0].split("<body")[1]


class Place:
    def __init__(self, screen, at):
        self.screen, self.at = screen, at

    def update(self, data, *, raw):
        self.screen.outputs[self.at] = data


@pytest.fixture
def screen(monkeypatch):
    screen = Screen()
    monkeypatch.setattr(front_end, "display", screen.display)
    return screen


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [ParticleView, RunPanels])
def test_a_saved_view_shows_its_texts_and_escapes_them(kind, screen, evil_trace):
    view = kind(evil_trace, run=1)
    view._ipython_display_()
    assert front_end.WIDGET_VIEW in screen.outputs[1]
    kept = screen.outputs[0]["text/html"]
    assert len(kept) < 200_000
    assert f"log Ẑ {float(evil_trace.log_z[1]):.2f} nats".replace("-", "−") in kept
    assert "&lt;/script&gt;&lt;script&gt;" in kept
    assert not re.search(r"<script|<img/|onerror=\"", kept.replace("&lt;", ""))
    shown = screen.exported()
    assert "Run this cell again" in shown
    assert "日本" in shown
    view.close()


@pytest.mark.filterwarnings("ignore")
def test_a_page_keeps_its_newest_run(screen):
    page = tw.Workbench("rainy-week", num_particles=8)
    page._ipython_display_()
    assert page.wait(SECONDS)
    page.set(num_particles=16)
    assert page.wait(SECONDS)
    page.close()
    shown = screen.exported()
    assert "16 particles, step 5 of 5" in shown
    assert "<table>" in shown
    assert "model not found" not in shown


def test_training_and_comparison_keep_their_tables(screen):
    training = tw.TrainSession("rainy-week", num_updates=1, batch_size=10)
    training._ipython_display_()
    assert training.train(1, timeout=SECONDS)
    training.close()
    assert "<td>ctl</td>" in screen.outputs[0]["text/html"]
    comparison = tw.CompareSession(
        "rainy-week", ("none",), folder=None, workers=1, num_particles=(1,), seeds=1, num_runs=2,
        num_exact=4, num_samples=4,
    )  # fmt: skip
    comparison._ipython_display_()
    assert "0 of 1 done" in screen.outputs[2]["text/html"]
    comparison.start()
    assert comparison.wait(SECONDS)
    tables = [comparison.comparison.to_html(which) for which in ("KL(q||σ)", "gap")]
    comparison.close()
    shown = screen.outputs[2]["text/html"]
    assert "1 of 1 done" in shown
    assert all(table in shown for table in tables)
    assert len(shown) < 200_000
    assert "Run this cell again" in screen.exported()


NOTEBOOK = """import tsmc_widgets as tw
page = tw.Workbench("rainy-week", num_particles=16, num_runs=2)
page"""


@pytest.mark.slow
@pytest.mark.browser
def test_a_notebook_opened_without_its_kernel_shows_the_last_state(open_notebook, tmp_path):
    path = tmp_path / "kept.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell(NOTEBOOK)]), path)
    page = open_notebook(path)
    run_all_cells(page)
    page.locator(".tsmc-watch .pv-row").first.wait_for()
    page.locator(".pv-status-text", has_text="done in").wait_for()
    assert page.locator(".tsmc-still").is_hidden()
    execute_command(page, "docmanager:save")
    execute_command(page, "kernelmenu:shutdown")
    page.reload()
    page.wait_for_function("globalThis.jupyterapp !== undefined")
    page.evaluate("jupyterapp.restored.then(() => null)")
    kept = page.locator(".tsmc-still")
    kept.wait_for()
    lost = page.get_by_text("model not found")
    lost.wait_for(state="attached")
    assert lost.is_hidden()
    assert "run 0 of 2" in kept.inner_text()
