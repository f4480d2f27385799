"""The source stays small, and no file names a machine it was written on."""

import re
import subprocess
from pathlib import Path

import pytest

from benchmarks.house import House, Source, figures

ROOT = Path(__file__).parents[2]
CODE = {".py", ".js", ".css"}
MAX_FILE_LINES = 700
MAX_FUNCTION_LINES = 60
# Where the package stands. A change that only moves code must not raise a limit.
LIMITS = {
    "Python lines": 36_050,
    "Python files": 108,
    "JavaScript and CSS lines": 6_950,
    "scripts without ES imports": 1,
    "hand-ordered lists of scripts": 0,
    "files naming one kind of potential *": 4,
    "probes for optional members": 17,
    "base names used more than once": 2,
    "modules with at most one importer": 24,
    "files under 60 lines": 0,
}
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


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_source_is_short(path):
    lines = len(text_of(path).splitlines())
    assert lines <= MAX_FILE_LINES, f"{relative(path)} has {lines} lines: split it by idea"
    if path.suffix == ".py":
        functions = Source(path, ROOT).functions()
        long = {each.name: each.lines for each in functions if each.lines > MAX_FUNCTION_LINES}
        assert not long, f"{relative(path)} has functions over {MAX_FUNCTION_LINES} lines: {long}"


@pytest.fixture(scope="module")
def counted():
    return figures(House(ROOT))


@pytest.mark.parametrize("figure", LIMITS)
def test_the_package_is_within_its_limits(counted, figure):
    count = int(counted[figure].split()[0].replace(",", ""))
    assert count <= LIMITS[figure], f"see `python benchmarks/house.py`: {figure}"


def test_what_is_counted(tmp_path):
    package = tmp_path / "tsmc_widgets" / "targets"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("from tsmc_widgets.targets.words import Long, Short\n")
    (package / "words.py").write_text("class Long(Potential):\n    ...\nclass Short(Long): ...\n")
    (package / "a.py").write_text(
        "from tsmc_widgets.targets.words import Short\n"
        "def f(x):  # why\n"
        '    """One\n    two."""\n'
        "    getattr(x, 'a'), getattr(x, 'b', 0), hasattr(x, 'c'), hasattr(x.config, 'd')\n"
        "    return 'Long'\n"
    )
    house = House(tmp_path)
    assert house.namers() == {"Long": ["targets/a.py"], "Short": ["targets/a.py"]}
    assert len(house.probes()) == 2
    assert len(house.probes(foreign=True)) == 1
    assert house.longest_function() == (3, "tsmc_widgets/targets/a.py:f")
    assert house.lonely() == ["tsmc_widgets.targets.a", "tsmc_widgets.targets.words"]
    assert house.share("comments") == 1 / house.lines()
    assert house.share("docstrings") == 2 / house.lines()


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
