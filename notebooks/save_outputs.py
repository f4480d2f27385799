"""Run a notebook and keep outputs that read well where no kernel is: a picture for each widget.

python notebooks/save_outputs.py 03_resampling.ipynb

Needs Chromium. Some pictures also go to docs/images.
"""

import base64
import io
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image
from playwright.sync_api import Page, sync_playwright

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "tests")]

from notebook_support import WIDGET

import browser_support as support
from dev import find_chromium

IMAGES = HERE.parent / "docs" / "images"
WIDTH = 1568
STEP = 16
FOLLOWED = 5
DONE = ".pv-status[data-state=done]"


def small(picture: bytes) -> bytes:
    """The same picture in 128 colours: a page has hardly more, and its file is half as large."""
    made = io.BytesIO()
    colours = Image.open(io.BytesIO(picture)).convert("RGB").quantize(128, dither=Image.Dither.NONE)
    colours.save(made, "PNG", optimize=True)
    return made.getvalue()


def open_copy(page: Page, url: str, name: str) -> None:
    """Show a notebook alone, with its kernel ready."""
    page.goto(f"{url}/doc/tree/{name}?reset")
    page.wait_for_function("globalThis.jupyterapp !== undefined")
    page.evaluate("jupyterapp.restored.then(() => null)")
    page.wait_for_function(support.NOTEBOOK_SHOWN, arg=name)
    page.wait_for_function(support.KERNEL_IDLE)


def follow_a_particle(page: Page) -> None:
    """Show a run at a step where one particle is followed."""
    page.wait_for_selector(DONE, state="attached")
    page.get_by_role("button", name="Rewind to the prompt").click()
    for _ in range(STEP):
        page.get_by_role("button", name="One step on").click()
    page.locator(".pv-row").nth(FOLLOWED).click()
    page.mouse.move(0, 0)
    page.wait_for_selector('.pv-row[aria-selected="true"]')


def see_it_learned(page: Page) -> None:
    """Show a training at its end; the notebook's later cells have started it."""
    page.wait_for_selector(DONE, state="attached", timeout=600_000)


def see_it_compared(page: Page) -> None:
    """Show a comparison at its end, with one method brought out."""
    page.wait_for_selector(DONE, state="attached", timeout=600_000)
    page.get_by_label("problem", exact=True).select_option("one-star-review")
    page.locator(".cm-method", has_text="shipped").click()
    page.mouse.move(0, 0)
    page.wait_for_selector('.cm-method[aria-pressed="true"]')


def see_a_run(page: Page) -> None:
    """Show a page whose first run is done."""
    page.wait_for_selector(DONE, state="attached")


def see_the_end(page: Page) -> None:
    """Show a view of a run on record at its last step."""
    page.wait_for_selector(".pv-row")
    page.locator(".pv-scroller").first.focus()
    page.keyboard.press("End")


WIDGETS = {
    "02_importance_sampling.ipynb": ("ParticleView", "", see_the_end),
    "03_resampling.ipynb": ("WatchSMC", "watch_smc.png", follow_a_particle),
    "04_twists.ipynb": ("Workbench", "", see_a_run),
    "05_learn_a_twist.ipynb": ("TrainSession", "learn_a_twist.png", see_it_learned),
    "06_bounds_and_kl.ipynb": ("CompareSession", "bounds_and_kl.png", see_it_compared),
    "07_infilling.ipynb": ("ParticleView", "", see_the_end),
    "08_red_teaming.ipynb": ("Workbench", "", see_a_run),
    "09_soft_rl.ipynb": ("TrainSession", "", see_it_learned),
    "10_real_models.ipynb": ("Workbench", "", see_a_run),
    "11_debug_a_twist.ipynb": ("TwistDebugger", "", see_a_run),
    "12_bring_your_own.ipynb": ("Workbench", "workbench.png", see_a_run),
}
"""Of each notebook its widget, the file that keeps its picture, if any, and what it shows."""
PLOTLY = "application/vnd.plotly.v1+json"


def run_in_lab(path: Path, show: Callable[[Page], None]) -> tuple[nbformat.NotebookNode, bytes]:
    """A notebook run from top to bottom in JupyterLab, and a picture of its first widget (PNG)."""
    with tempfile.TemporaryDirectory() as home, sync_playwright() as playwright:
        folder = Path(home) / "notebooks"
        folder.mkdir()
        shutil.copy(path, folder)
        shutil.copytree(HERE / "tables", folder / "tables")
        browser = playwright.chromium.launch(
            executable_path=find_chromium(), args=support.CHROMIUM_FLAGS
        )
        with support.jupyter_lab(Path(home), folder) as url:
            page = browser.new_page(viewport={"width": WIDTH, "height": 3200})
            page.set_default_timeout(600_000)
            open_copy(page, url, path.name)
            support.run_all_cells(page)
            show(page)
            page.evaluate("document.activeElement.blur()")
            picture = small(page.locator(".jp-OutputArea-output:has(.pv)").first.screenshot())
            support.execute_command(page, "docmanager:save")
            notebook = nbformat.read(folder / path.name, 4)
        browser.close()
    return notebook, picture


def picture_of_figure(described: dict) -> bytes:
    """A plotly figure as PNG."""
    import plotly.graph_objects as go

    # What the renderer adds is no part of a figure.
    figure = go.Figure({part: described[part] for part in ("data", "layout")})
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=find_chromium(), args=support.CHROMIUM_FLAGS
        )
        page = browser.new_page(viewport={"width": 900, "height": 700}, device_scale_factor=1.25)
        page.set_content(figure.to_html(include_plotlyjs=True, config={"displayModeBar": False}))
        page.wait_for_selector(".js-plotly-plot .main-svg")
        picture = page.locator(".js-plotly-plot").screenshot()
        browser.close()
    return picture


def main(name: str) -> None:
    """Execute, picture, write."""
    path = HERE / name
    widget, image, show = WIDGETS.get(name, ("", "", None))
    picture = b""
    if widget:
        notebook, picture = run_in_lab(path, show)
    else:
        notebook = nbformat.read(path, 4)
        NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(HERE)}}).execute()
    for cell in notebook.cells:
        assert not any(each.output_type == "error" for each in cell.get("outputs", [])), cell.source
    if image:
        (IMAGES / image).write_bytes(picture)
    for cell in notebook.cells:
        cell.metadata.clear()
        if cell.cell_type == "code":
            # Without its kernel a live view is an error in place of a picture.
            cell.outputs = [each for each in cell.outputs if WIDGET not in each.get("data", {})]
        for output in cell.get("outputs", []):
            if widget and output.get("data", {}).get("text/plain", "").startswith(widget):
                output["data"] = {
                    "image/png": base64.b64encode(picture).decode(),
                    "text/plain": f"{widget}: run this cell for the live view",
                }
            elif PLOTLY in output.get("data", {}):
                drawn = picture_of_figure(output["data"][PLOTLY])
                output["data"] = {
                    "image/png": base64.b64encode(drawn).decode(),
                    "text/plain": "a figure: run this cell to point at its marks",
                }
    kept = ("kernelspec", "language_info")
    notebook.metadata = {name: notebook.metadata[name] for name in kept}
    nbformat.write(notebook, path)
    print(f"{name}: {path.stat().st_size // 1000} kB, picture {len(picture) // 1000} kB")


if __name__ == "__main__":
    main(*sys.argv[1:])
