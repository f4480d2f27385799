"""The standard errors on the storybook's card, and measuring without training."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from training.storybook.train import trained
from training.storybook.uncertainty import (
    calibration_error,
    exponential,
    mean,
    ratio,
    root_mean_square,
)


def spread_of(
    estimate: Callable[[torch.Generator], tuple[float, float]], data_sets: int = 300
) -> tuple[float, float]:
    """Standard deviation of an estimate over data sets, and the mean error that it states."""
    values, errors = [], []
    for seed in range(data_sets):
        value, error = estimate(torch.Generator().manual_seed(seed))
        values.append(value)
        errors.append(error)
    return torch.tensor(values).std().item(), torch.tensor(errors).mean().item()


def test_standard_errors_are_the_spread_over_data_sets():
    def nats(generator: torch.Generator) -> tuple[float, float]:
        # Texts of unequal length with a level of their own: tokens are far from independent.
        counts = torch.randint(10, 100, (200,), generator=generator)
        level = 0.6 + 0.2 * torch.randn(200, generator=generator)
        return ratio(level * counts, counts)

    def logit(generator: torch.Generator) -> tuple[float, float]:
        return root_mean_square(0.3 * torch.randn(200, generator=generator))

    def hits(generator: torch.Generator) -> tuple[float, float]:
        return mean(torch.rand(200, generator=generator) < 0.8)

    # A standard deviation of 300 values has a standard error of 1 in 24.
    for estimate in (nats, logit, hits, lambda generator: exponential(nats(generator))):
        spread, stated = spread_of(estimate)
        assert abs(stated / spread - 1) * math.sqrt(2 * 299) < 4.5


def test_calibration_error_and_its_bootstrap():
    confidence = torch.tensor([0.90, 0.91, 0.92, 0.10], dtype=torch.float64)
    correct = torch.tensor([True, True, False, False])
    expected = (abs(0.90 + 0.91 + 0.92 - 2) + 0.10) / 4
    value, error = calibration_error(confidence, correct)
    assert math.isclose(value, expected)
    assert error > 0.0
    assert calibration_error(confidence, correct) == (value, error)

    def overconfident(generator: torch.Generator) -> tuple[float, float]:
        given = 0.5 + 0.5 * torch.rand(400, generator=generator, dtype=torch.float64)
        return calibration_error(given, torch.rand(400, generator=generator) < given - 0.2)

    spread, stated = spread_of(overconfident, data_sets=40)
    assert abs(stated / spread - 1) * math.sqrt(2 * 39) < 4.5


def test_measuring_alone_needs_a_card(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"--parts go on from a folder"):
        trained(tmp_path)
    (tmp_path / "card.json").write_text(json.dumps({"training": {"seed": 3}}))
    assert trained(tmp_path) == {"seed": 3}
