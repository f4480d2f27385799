"""The core starts without Jupyter, plots or transformers, as on a worker."""

import subprocess
import sys

HEAVY = {"IPython", "anywidget", "ipywidgets", "jupyterlab", "pandas", "plotly", "transformers"}


def test_import_loads_nothing_heavy():
    code = "import sys, tsmc_widgets; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "tsmc_widgets" in loaded
    assert not HEAVY.intersection(loaded)
