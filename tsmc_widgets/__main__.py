"""The program ``tsmc-widgets``: ``lab`` opens the course in JupyterLab, ``app`` the workbench.

More arguments go to JupyterLab and to Voila. The same as ``python -m tsmc_widgets``.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from tsmc_widgets.errors import import_extra

FIRST = "01_what_you_ask_for.ipynb"
APP = "voila/workbench.ipynb"
COPY = "tsmc_notebooks"
"""Folder into which an installed package copies its notebooks, where the user may change them."""
USAGE = f"""usage: tsmc-widgets COMMAND [arguments]

  lab [...]   open the course in JupyterLab, on this machine (more arguments go to JupyterLab);
              the notebooks are copied into ./{COPY}, unless this is a checkout
  app [...]   serve the workbench as a page without code, on this machine and to whoever has the
              token in its address (more arguments go to Voila: --port=8866, --no-browser)
"""


def notebooks() -> Path:
    """The folder of the notebooks: a checkout's own, else what is installed with the package."""
    package = Path(__file__).resolve().parent
    checkout = package.parent / "notebooks"
    return checkout if (checkout / FIRST).is_file() else package / "notebooks"


def own_notebooks() -> Path:
    """The same where the user may write: a copy of installed notebooks in the working folder."""
    folder = notebooks()
    if folder.parent.name != "tsmc_widgets":
        return folder
    copy = Path(COPY).resolve()
    if not copy.exists():
        shutil.copytree(folder, copy)
    return copy


def lab_command(folder: Path, arguments: Iterable[str], *, root_user: bool) -> list[str]:
    """Command that opens JupyterLab, on loopback only, on the first notebook of a folder."""
    options = [
        f"--ServerApp.root_dir={folder.parent}",
        "--ServerApp.ip=127.0.0.1",
        f"--LabApp.default_url=/lab/tree/{folder.name}/{FIRST}",
        "--LabApp.extension_manager=readonly",
    ]
    allow = ["--allow-root"] if root_user else []
    return [sys.executable, "-m", "jupyterlab", *options, *allow, *arguments]


def app_command(notebook: str | Path, arguments: Iterable[str]) -> list[str]:
    """Command that serves a notebook, on loopback and by a token; cells appear as they finish."""
    options = [
        "--Voila.ip=127.0.0.1",
        "--VoilaConfiguration.template=workbench",
        "--VoilaConfiguration.progressive_rendering=True",
    ]
    server = notebooks() / "voila" / "serve.py"
    return [sys.executable, str(server), str(notebook), *options, *arguments]


def app_path(environ: Mapping[str, str]) -> str:
    """JUPYTER_PATH under which Voila finds the app's template, before what it holds already."""
    rest = environ.get("JUPYTER_PATH")
    return os.pathsep.join([str(notebooks()), *([rest] if rest else [])])


def main(arguments: list[str] | None = None) -> int:
    """Run a command line; returns its exit status, unless a server takes this process over."""
    command, *rest = (sys.argv[1:] if arguments is None else arguments) or ["help"]
    if command not in ("lab", "app"):
        sys.stdout.write(USAGE)
        return 0 if command in ("help", "-h", "--help") else 2
    import_extra("jupyterlab" if command == "lab" else "voila", "lab", f"tsmc-widgets {command}")
    if command == "lab":
        root_user = os.name != "nt" and os.geteuid() == 0
        line = lab_command(own_notebooks(), rest, root_user=root_user)
    else:
        os.environ["JUPYTER_PATH"] = app_path(os.environ)
        line = app_command(notebooks() / APP, rest)
    sys.stdout.write(
        f"Serving on this machine; press Ctrl-C {'twice ' * (command == 'lab')}to end.\n"
    )
    sys.stdout.flush()
    if os.name == "nt":
        import subprocess

        return subprocess.run(line).returncode
    os.execv(line[0], line)


if __name__ == "__main__":
    sys.exit(main())
