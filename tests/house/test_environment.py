"""pyproject.toml, constraints.txt, environment.yml and what is installed agree."""

import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import dev

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
CONSTRAINT_LINES = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
PINS = {
    canonicalize_name(name): pin
    for name, pin in (line.split("==") for line in CONSTRAINT_LINES if not line.startswith("#"))
}
DECLARED = [
    requirement
    for requirement in map(Requirement, sum(EXTRAS.values(), PROJECT["dependencies"]))
    if requirement.name != PROJECT["name"]
]
# Of the default build of torch on Linux; the pins are for the CPU build.
CUDA = re.compile(r"nvidia-|cuda-|triton")


def installed(name):
    try:
        return Version(version(name)).public
    except PackageNotFoundError:
        return None


def needed_here():
    """Names of the installed packages that this project needs, theirs included."""
    waiting = [Requirement(str(each)) for each in DECLARED]
    seen = set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        key = (name, frozenset(requirement.extras))
        if key in seen or CUDA.match(name) or installed(name) is None:
            continue
        seen.add(key)
        for further in map(Requirement, requires(name) or []):
            extras = requirement.extras or {""}
            if not further.marker or any(further.marker.evaluate({"extra": e}) for e in extras):
                waiting.append(further)
    return {name for name, _ in seen}


def test_constraints_are_bare_pins():
    pin = re.compile(r"[A-Za-z0-9._-]+==[0-9][0-9a-z.]*")
    assert [line for line in CONSTRAINT_LINES[1:] if not pin.fullmatch(line)] == []
    assert sorted(CONSTRAINT_LINES[1:], key=str.lower) == CONSTRAINT_LINES[1:]


@pytest.mark.parametrize("requirement", DECLARED, ids=str)
def test_pin_lies_in_the_declared_range(requirement):
    assert requirement.specifier.contains(PINS[canonicalize_name(requirement.name)])


@pytest.mark.skipif(sys.platform != "linux", reason="the pins were made on Linux")
def test_everything_needed_is_pinned():
    assert needed_here() - set(PINS) == set()


def test_installed_versions_are_the_pinned_ones():
    differing = {
        name: f"{installed(name)} is installed, {pin} is pinned"
        for name, pin in PINS.items()
        if installed(name) not in (None, pin)
    }
    assert differing == {}


def test_pins_admit_the_oldest_python_of_the_project():
    oldest = min(Version(each.version) for each in SpecifierSet(PROJECT["requires-python"]))
    demands = {
        name: metadata(name).get("Requires-Python") or "" for name in PINS if installed(name)
    }
    refusing = {
        name: demanded
        for name, demanded in demands.items()
        if f"{oldest}.0" not in SpecifierSet(demanded)
    }
    assert refusing == {}


def test_declared_packages_are_installed():
    assert [each.name for each in DECLARED if installed(each.name) is None] == []


def test_conda_environment_equals_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    python, pip, packages = environment["dependencies"]
    python = Requirement(python)
    assert environment["name"] == PROJECT["name"]
    assert (python.name, pip) == ("python", "pip")
    assert set(SpecifierSet(PROJECT["requires-python"])) <= set(python.specifier)
    assert packages["pip"] == [
        f"--extra-index-url {dev.TORCH_CPU_INDEX}",
        "-c constraints.txt",
        f"-e .[{dev.EXTRAS}]",
    ]


def test_every_extra_is_installed_by_the_set_up():
    assert set(dev.EXTRAS.split(",")) == set(EXTRAS)
