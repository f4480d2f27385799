"""The program ``tsmc-widgets``: what it opens, where, and what it says."""

import os
import shutil
import sys
from pathlib import Path

import pytest

from tsmc_widgets import __main__ as program
from tsmc_widgets.errors import MissingExtraError


def test_lab_opens_the_first_notebook_on_loopback():
    folder = program.own_notebooks()
    command = program.lab_command(folder, ["--no-browser"], root_user=False)
    assert f"--ServerApp.root_dir={folder.parent}" in command
    assert "--ServerApp.ip=127.0.0.1" in command
    assert "--LabApp.extension_manager=readonly" in command
    (page,) = [each for each in command if "default_url" in each]
    assert (folder.parent / page.partition("/lab/tree/")[2]).is_file()
    assert command[-1] == "--no-browser"
    assert "--allow-root" not in command
    assert "--allow-root" in program.lab_command(folder, [], root_user=True)


def test_app_is_served_on_loopback_only():
    command = program.app_command("a.ipynb", ["--no-browser"])
    assert command[0] == sys.executable
    assert Path(command[1]).is_file()
    assert command[2] == "a.ipynb"
    assert "--Voila.ip=127.0.0.1" in command
    assert command[-1] == "--no-browser"
    assert (program.notebooks() / program.APP).is_file()


def test_app_keeps_the_users_jupyter_path():
    assert program.app_path({}) == str(program.notebooks())
    own = program.app_path({"JUPYTER_PATH": "mine"})
    assert own == os.pathsep.join([str(program.notebooks()), "mine"])


def test_installed_notebooks_are_copied_once(tmp_path, monkeypatch):
    installed = tmp_path / "tsmc_widgets" / "notebooks"
    installed.mkdir(parents=True)
    shutil.copy(program.notebooks() / program.FIRST, installed)
    monkeypatch.setattr(program, "notebooks", lambda: installed)
    monkeypatch.chdir(tmp_path)
    copy = program.own_notebooks()
    assert copy == tmp_path / program.COPY
    (copy / program.FIRST).write_text("mine")
    assert program.own_notebooks() == copy
    assert (copy / program.FIRST).read_text() == "mine"


@pytest.mark.parametrize(("arguments", "status"), [([], 0), (["--help"], 0), (["lap"], 2)])
def test_usage_is_shown(capsys, arguments, status):
    assert program.main(arguments) == status
    assert capsys.readouterr().out == program.USAGE


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "jupyterlab", None)
    with pytest.raises(MissingExtraError, match=r"tsmc-widgets\[lab\]"):
        program.main(["lab"])
