"""The main notebook as an app: Voila serves it, and the particle view works in it."""

import nbformat
import pytest

import dev
from browser_support import voila_app

pytestmark = [pytest.mark.slow, pytest.mark.browser]

VIEW = "document.querySelector('.pv')"


@pytest.fixture
def live_part(tmp_path):
    """The app's notebook up to its first widget."""
    path = dev.ROOT / dev.APP_NOTEBOOK
    notebook = nbformat.read(path, 4)
    last = next(i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code")
    notebook.cells = notebook.cells[: last + 1]
    nbformat.write(notebook, tmp_path / path.name)
    return tmp_path / path.name


def test_a_person_scrubs_the_app(page, tmp_path, live_part):
    """The page itself fails the test where anything is asked of another machine."""
    home = tmp_path / "home"
    home.mkdir()
    with voila_app(home, live_part) as url:
        page.set_default_timeout(120_000)
        page.goto(url)
        page.wait_for_selector(".pv-status[data-state='done']")
        assert page.locator(".jp-InputArea-editor:visible").count() == 0
        last = page.evaluate(f"{VIEW}._stats.steps")
        page.locator(".pv-scroller").first.focus()
        for key, step in [("Home", 0), ("ArrowRight", 1), ("ArrowRight", 2), ("End", last)]:
            page.keyboard.press(key)
            page.wait_for_function(f"{VIEW}._stats.t === {step}")
        assert page.locator(".pv-lost").first.is_hidden()
        page.close()
