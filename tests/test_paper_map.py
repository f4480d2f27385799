"""Each name in the map from the paper to the code is where the map says."""

import re
from functools import reduce
from importlib import import_module
from pathlib import Path

import pytest

from tsmc_widgets.learning import objectives

ROOT = Path(__file__).parents[1]
MAP = (ROOT / "docs" / "paper_map.md").read_text(encoding="utf-8")
ROWS = [
    line for line in MAP.splitlines() if line.startswith("| ") and "| in the code |" not in line
]
PLACES = sorted(set(re.findall(r"`([\w/]+\.py):([\w.]+)`", MAP)))


@pytest.mark.parametrize(("path", "name"), PLACES, ids=lambda part: part)
def test_a_place_exists(path, name):
    assert (ROOT / path).is_file()
    module = import_module(path.removesuffix(".py").replace("/", "."))
    home = reduce(getattr, name.split(".")[:-1], module)
    value = getattr(home, name.split(".")[-1])
    assert getattr(value, "__module__", module.__name__) == module.__name__, "defined elsewhere"


@pytest.mark.parametrize("row", ROWS)
def test_each_row_has_a_place_and_says_what_it_is(row):
    _, what, place, exactly, _ = re.split(r"(?<!\\)\|", row)
    assert what.strip()
    assert re.fullmatch(r"`[\w/]+\.py:[\w.]+`", place.strip())
    assert exactly.strip()


def test_each_loss_has_a_row():
    losses = {name for name in vars(objectives) if name.endswith("_loss")}
    assert losses <= {name for _, name in PLACES}


@pytest.mark.parametrize("path", re.findall(r"`([\w/]+\.(?:md|csv))`", MAP))
def test_named_files_exist(path):
    assert (ROOT / path).is_file()
