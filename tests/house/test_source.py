"""Files and functions stay short, and no file names a machine it was written on."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE = {".py", ".js", ".css"}
MAX_FILE_LINES = 700
MAX_FUNCTION_LINES = 60
PRIVATE_FOLDERS = ["home", "opt", "root", "tmp", "Users", "work"]
MACHINE = re.compile(rf"(?<![\w./~-])(?:/|[A-Z]:\\+)(?:{'|'.join(PRIVATE_FOLDERS)})(?![\w.-])")


def tracked_files():
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        return [path for path in ROOT.rglob("*") if ".venv" not in path.parts]
    return [ROOT / name for name in listed.stdout.split("\0") if name]


def text_of(path):
    try:
        return path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError):
        return ""


FILES = [path for path in tracked_files() if path.is_file()]
SOURCES = [path for path in FILES if path.suffix in CODE]


def relative(path):
    return path.relative_to(ROOT).as_posix()


def functions(path):
    """Name and number of lines, without the docstring, of each function of a file."""
    for node in ast.walk(ast.parse(text_of(path))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            documented = ast.get_docstring(node) is not None
            first = node.body[0]
            docstring = first.end_lineno - first.lineno + 1 if documented else 0
            yield node.name, node.end_lineno - node.lineno + 1 - docstring


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_source_is_short(path):
    lines = len(text_of(path).splitlines())
    assert lines <= MAX_FILE_LINES, f"{relative(path)} has {lines} lines: split it by idea"
    if path.suffix == ".py":
        long = {name: size for name, size in functions(path) if size > MAX_FUNCTION_LINES}
        assert not long, f"{relative(path)} has functions over {MAX_FUNCTION_LINES} lines: {long}"


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_file_names_no_machine(path):
    found = [line for line in text_of(path).splitlines() if MACHINE.search(line)]
    assert not found, f"{relative(path)} names a path of one machine: {found[:3]}"


@pytest.mark.parametrize("text", ["cd {}work/x", "'{}root'", "{}home/someone"])
def test_machine_paths_are_seen(text):
    assert MACHINE.search(text.format("/"))


@pytest.mark.parametrize("text", ["./root/a", "a/work", "https://example.com/work", "/worker"])
def test_other_paths_are_not(text):
    assert not MACHINE.search(text)
