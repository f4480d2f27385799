"""Every block of Python in README and docs runs as it stands, page by page."""

import contextlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tsmc_widgets as tw
from tsmc_widgets.learning import objectives

ROOT = Path(__file__).parents[2]
# The tour has tests of its own, in tests/test_readme.py.
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = [path for path in PAGES if path.stem != "tour" and "```python" in path.read_text("utf-8")]


def run_page(path, folder):
    """Names after all blocks of a page have run in a folder of their own, beside the notebooks."""
    (folder / "docs").mkdir()
    (folder / "notebooks").symlink_to(ROOT / "notebooks")
    names = {"__name__": "page"}
    with contextlib.chdir(folder / "docs"):
        for block in re.findall(r"^```python\n(.*?)^```", path.read_text("utf-8"), re.S | re.M):
            if "marimo.App" in block:  # marimo reads the source of its cells
                Path("notebook.py").write_text(block, "utf-8")
                subprocess.run([sys.executable, "notebook.py"], check=True)
            else:
                exec(compile(block, path.name, "exec"), names)
    return names


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_every_block_runs(path, tmp_path):
    before = dict(objectives.RECIPES)
    try:
        names = run_page(path, tmp_path)
    finally:
        objectives.RECIPES.clear()
        objectives.RECIPES.update(before)
    if path.stem == "cluster":
        check_the_sweep(names)


def check_the_sweep(names):
    assert names["stored"] == [True] * 6
    frame = names["frame"]
    best = frame[(frame.method == "optimal") & (frame.quantity == "log Z")]
    assert (best.value - best.exact).abs().max() < 1e-10
    log_z = tw.exact(tw.load_problem("late-evidence").target()).log_z
    ratio = (names["islands"].log_z - log_z).exp()
    assert abs(float((ratio.mean() - 1) / (ratio.std() / 20**0.5))) < 4.5


@pytest.mark.parametrize("path", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.stem)
def test_links_of_a_page_lead_somewhere(path):
    made = {"course/index.md"}  # by docs/build.py
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", path.read_text("utf-8")):
        assert link in made or (path.parent / link).exists(), link
