"""What the tests of every notebook need: its outputs, and a run of it without a person."""

from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
WIDGET = "application/vnd.jupyter.widget-view+json"
PLOTLY = "application/vnd.plotly.v1+json"


def outputs(notebook):
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [output for cell in cells for output in cell.outputs]


def printed(notebook):
    return "".join(o.text for o in outputs(notebook) if o.output_type == "stream")


def check_saved_outputs(path):
    """The notebook as saved, which reads well without a kernel.

    A saved widget without its kernel shows an error in place of the picture, so that none may be
    saved.
    """
    notebook = nbformat.read(path, 4)
    bundles = [output.get("data", {}) for output in outputs(notebook)]
    assert any("image/png" in bundle for bundle in bundles)
    assert not any(WIDGET in bundle for bundle in bundles)
    assert not any(output.output_type == "error" for output in outputs(notebook))
    assert path.stat().st_size < 600_000
    return notebook


def run_notebook(path, folder, *, replace=()):
    """The notebook run from top to bottom in ``folder``, with texts of its cells replaced.

    It shows a widget, and neither a warning nor a progress bar.
    """
    notebook = nbformat.read(path, 4)
    for old, new in replace:
        assert any(old in cell.source for cell in notebook.cells), f"no cell says {old!r}"
        for cell in notebook.cells:
            cell.source = cell.source.replace(old, new)
    NotebookClient(
        notebook, timeout=240, resources={"metadata": {"path": str(folder)}}, kernel_name="python3"
    ).execute()
    shown = outputs(notebook)
    assert any({WIDGET, PLOTLY} & {*output.get("data", {})} for output in shown)
    streams = [output for output in shown if output.output_type == "stream"]
    assert [output.text for output in streams if output.name == "stderr"] == []
    return notebook


def first_live_cell(path, folder, *, replace=()):
    """Path of a copy that ends with its first cell of code, its widget, with texts replaced."""
    notebook = nbformat.read(path, 4)
    last = next(i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code")
    notebook.cells = notebook.cells[: last + 1]
    cell = notebook.cells[last]
    for old, new in replace:
        assert old in cell.source, f"the cell does not say {old!r}"
        cell.source = cell.source.replace(old, new)
    nbformat.write(notebook, folder / path.name)
    return folder / path.name
