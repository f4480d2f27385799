"""Scripts outside the package start, and write where the package reads."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from training.storybook.train import SHIPPED

ROOT = Path(__file__).parents[2]
PARTS = {"fault_events"}
"""Modules of benchmarks that are none themselves."""
BENCHMARKS = sorted({path.stem for path in (ROOT / "benchmarks").glob("*.py")} - PARTS)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_can_be_imported(name):
    assert callable(import_module(f"benchmarks.{name}").main)


@pytest.mark.parametrize("module", ["training.storybook.train", "training.twists"])
def test_a_training_says_its_arguments(module):
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.startswith("usage: "), done.stderr


def test_storybook_is_written_where_it_is_read():
    assert (SHIPPED / "card.json").is_file()
    assert SHIPPED.is_relative_to(ROOT / "tsmc_widgets")
