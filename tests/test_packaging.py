"""Wheel and source archive build; the wheel alone, in a new environment, runs the tour."""

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

import dev
import tsmc_widgets

ROOT = Path(dev.__file__).parent
TOUR = (ROOT / "docs" / "tour.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", TOUR, flags=re.DOTALL | re.MULTILINE)

pytestmark = pytest.mark.slow


def run(*command, **options):
    """Output of a command that must succeed."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Wheel and source archive."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "-d", folder, cwd=ROOT)
    return next(folder.glob("*.whl")), next(folder.glob("*.tar.gz"))


def test_what_is_in_the_archives(built):
    wheel, source = built
    inside = set(zipfile.ZipFile(wheel).namelist())
    for path in (
        "tsmc_widgets/py.typed",
        "tsmc_widgets/__init__.pyi",
        "tsmc_widgets/notebooks/01_what_you_ask_for.ipynb",
        "tsmc_widgets/notebooks/voila/templates/workbench/index.html.j2",
        "tsmc_widgets/models/storybook/weights/lm/model.safetensors",
    ):
        assert path in inside
    assert not [path for path in inside if path.startswith(("tests", "training"))]
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"README.md", "CHANGELOG.md", "CITATION.cff", "dev.py", "LICENSE"} <= names
    assert {"training/twists.py", "tests/test_packaging.py", "docs/paper_map.md"} <= names


def test_one_version_everywhere(built):
    version = tsmc_widgets.__version__
    assert f"-{version}-" in built[0].name
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == version
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.timeout(1800)
def test_the_tour_runs_where_nothing_but_the_wheel_is_installed(built, tmp_path):
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    python = dev.venv_python(tmp_path / "venv")
    torch = dev.pinned("torch", (ROOT / "constraints.txt").read_text(encoding="utf-8"))
    pip = dev.pip_install(python)
    attempts = dev.torch_attempts("cpu", sys.platform.title(), torch)
    any(subprocess.run([*pip, *each], capture_output=True).returncode == 0 for each in attempts)
    run(*pip, "-c", ROOT / "constraints.txt", f"{built[0]}[lab,grammar,cluster]")
    tour = tmp_path / "tour.py"
    tour.write_text("if __name__ == '__main__':\n    import os\n" + "".join(
        f"    exec({block!r})\n" for block in BLOCKS
    ), encoding="utf-8")  # fmt: skip
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run(python, "-W", "ignore", tour, cwd=tmp_path, env=clean)
    program = python.parent / "tsmc-widgets"
    assert "usage: tsmc-widgets" in run(program, "--help", cwd=tmp_path, env=clean)
    found = run(
        python,
        "-c",
        "from tsmc_widgets.__main__ import *; print(own_notebooks() / FIRST)",
        cwd=tmp_path,
        env=clean,
    )
    assert Path(found.strip()).is_relative_to(tmp_path)
    assert Path(found.strip()).is_file()
