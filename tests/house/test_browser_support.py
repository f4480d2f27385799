"""The browser fixtures see what they promise to see."""

import nbformat
import pytest

from browser_support import leaves_machine, run_all_cells, watched_page

pytestmark = pytest.mark.browser


@pytest.mark.parametrize(
    ("url", "leaves"),
    [
        ("http://127.0.0.1:8888/lab", False),
        ("ws://localhost:8888/api/kernels", False),
        ("data:text/html,<p>", False),
        ("blob:http://127.0.0.1/1", False),
        ("https://example.com/", True),
        ("wss://127.0.0.1.example.com/", True),
    ],
)
def test_only_loopback_stays_on_the_machine(url, leaves):
    assert leaves_machine(url) == leaves


def test_page_runs_a_script(page):
    page.set_content("<p></p><script>document.querySelector('p').textContent = 6 * 7</script>")
    assert page.text_content("p") == "42"


@pytest.mark.parametrize(
    "script",
    [
        "throw new Error('planted')",
        "Promise.reject(new Error('planted'))",
        "fetch('https://planted.example').catch(() => {})",
        "new WebSocket('wss://planted.example')",
        "new Image().src = 'https://planted.example/pixel.png'",
    ],
)
def test_page_tells_of_errors_and_outside_requests(browser, script):
    def visit():
        with watched_page(browser) as page:
            page.set_content(f"<script>{script}</script>")
            page.wait_for_timeout(200)

    with pytest.raises(AssertionError, match="planted"):
        visit()


@pytest.mark.slow
def test_notebook_runs_in_jupyterlab(open_notebook, tmp_path):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("print(6 * 7)")])
    path = tmp_path / "trivial.ipynb"
    nbformat.write(notebook, path)
    page = open_notebook(path)
    run_all_cells(page)
    assert page.locator(".jp-OutputArea-output").inner_text().strip() == "42"
