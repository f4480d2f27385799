"""The notebook of docs/marimo.md: marimo shows the particle view, and a person plays it."""

import os
import re
import sys
from pathlib import Path

import pytest

from browser_support import free_port, served

ROOT = Path(__file__).parents[2]

pytest.importorskip("marimo")
pytestmark = [pytest.mark.browser, pytest.mark.slow]


def test_a_view_plays_in_marimo(page, tmp_path):
    text = (ROOT / "docs" / "marimo.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    notebook = tmp_path / "notebook.py"
    notebook.write_text(block, encoding="utf-8")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "marimo", "-q", "run", str(notebook), "--headless"]
    command += ["--no-token", "--host=127.0.0.1", f"--port={port}"]
    quiet = {"MARIMO_SKIP_UPDATE_CHECK": "1", "XDG_CONFIG_HOME": str(tmp_path)}
    with served(url, command, os.environ | quiet, tmp_path / "marimo.log"):
        page.set_default_timeout(240_000)
        page.goto(url)
        page.wait_for_selector(".pv")
        page.locator(".pv-scroller").first.focus()
        page.keyboard.press("Home")
        page.get_by_text("step 0 of 5").first.wait_for()
        page.keyboard.press("End")
        page.get_by_text("step 5 of 5").first.wait_for()
        page.close()
