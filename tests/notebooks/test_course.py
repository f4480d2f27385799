"""The course as a whole: every lesson has its parts, reads well as saved, and runs alone."""

import re

import nbformat
import pytest
from notebook_support import NOTEBOOKS, check_saved_outputs, outputs, run_notebook

from tsmc_widgets.course import EXERCISES

LESSONS = sorted(NOTEBOOKS.glob("[01]*.ipynb"))
# Lessons that have a test of their own.
ALONE = ("03", "05", "06", "12")
SHORTER = {
    "02": [("num_runs=200", "num_runs=50")],
    "04": [("num_runs=20_000", "num_runs=200"), ("num_runs=12", "num_runs=2")],
    "07": [("exact_samples(200", "exact_samples(20")],
    "08": [("num_runs=20", "num_runs=4"), ("exact_samples(20", "exact_samples(2")],
    "09": [("num_updates=150", "num_updates=5")],
}


def name_of(path):
    return path.stem


def text_of(path):
    cells = nbformat.read(path, 4).cells
    return "\n".join(cell.source for cell in cells)


def test_every_exercise_stands_in_its_lesson():
    asked = []
    for path in LESSONS:
        number = str(int(path.stem[:2]))
        here = re.findall(r'^tw\.check\("([\d.]+)", \.\.\.\)$', text_of(path), flags=re.MULTILINE)
        assert 2 <= len(here) <= 3, path.stem
        assert all(name.split(".")[0] == number for name in here)
        asked += here
    assert asked == [*EXERCISES]


@pytest.mark.parametrize("path", LESSONS, ids=name_of)
def test_a_lesson_has_its_parts(path):
    text = text_of(path)
    assert text.startswith(f"# {int(path.stem[:2])}. ")
    for part in ("**Afterwards you can**", "*Paper: ", "should see", "## Exercises"):
        assert part in text, part
    (minutes,) = re.findall(r"About (\d+) minutes", text)
    assert int(minutes) <= 10
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (path.parent / link).exists(), link


@pytest.mark.parametrize("path", LESSONS, ids=name_of)
def test_a_lesson_reads_well_as_saved(path):
    notebook = check_saved_outputs(path)
    plain = [o.data["text/plain"] for o in outputs(notebook) if "text/plain" in o.get("data", {})]
    assert any(text.startswith("? ") for text in plain)


@pytest.mark.slow
@pytest.mark.parametrize("path", [p for p in LESSONS if p.stem[:2] not in ALONE], ids=name_of)
def test_a_lesson_runs_alone(path, tmp_path):
    notebook = run_notebook(path, tmp_path, replace=SHORTER.get(path.stem[:2], []))
    assert not any(output.output_type == "error" for output in outputs(notebook))
