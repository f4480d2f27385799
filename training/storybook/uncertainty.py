"""Standard errors of the card's numbers: texts are independent, the tokens of one are not."""

from __future__ import annotations

import math

import torch
from torch import Tensor

CALIBRATION_BINS = 15
RESAMPLES = 1000


def ratio(totals: Tensor, counts: Tensor) -> tuple[float, float]:
    """Sum of ``totals`` over sum of ``counts``, both one a text, and its standard error.

    The error is of first order (delta method): a text's weight is its number of tokens.
    """
    totals, counts = totals.double(), counts.double()
    value = (totals.sum() / counts.sum()).item()
    _, error = mean((totals - value * counts) / counts.mean())
    return value, error


def exponential(estimate: tuple[float, float]) -> tuple[float, float]:
    """Exponential of a value and its standard error (delta method)."""
    value, error = estimate
    return math.exp(value), math.exp(value) * error


def mean(values: Tensor) -> tuple[float, float]:
    """Mean of one number a text, and its standard error; for 0 and 1 that of a proportion."""
    values = values.double()
    error = values.std(correction=0).item() / math.sqrt(len(values))
    return values.mean().item(), error


def root_mean_square(errors: Tensor) -> tuple[float, float]:
    """Root of the mean square of one error a text, and its standard error (delta method)."""
    square, error = mean(errors.double().square())
    value = math.sqrt(square)
    return value, error / (2.0 * value) if value else 0.0


def calibration_error(confidence: Tensor, correct: Tensor) -> tuple[float, float]:
    """Expected calibration error over bins of equal width, and its bootstrap standard error.

    The error is the mean distance of confidence from frequency by bins, each bin weighed by its
    share of the texts. Chance alone makes it positive: a perfect forecast has about the size of
    the noise in a bin, not 0. The bootstrap draws texts with replacement, from a fixed seed.
    """
    count = len(confidence)
    bins = (confidence * CALIBRATION_BINS).long().clamp(max=CALIBRATION_BINS - 1)
    gaps = torch.zeros(count, CALIBRATION_BINS, dtype=torch.float64)
    gaps[torch.arange(count), bins] = confidence.double() - correct.double()
    generator = torch.Generator().manual_seed(0)
    resampled = torch.empty(RESAMPLES, dtype=torch.float64)
    for i in range(RESAMPLES):
        rows = torch.randint(count, (count,), generator=generator)
        resampled[i] = gaps[rows].sum(0).abs().sum() / count
    return (gaps.sum(0).abs().sum() / count).item(), resampled.std().item()


def significant(error: float) -> float:
    """An error with two significant digits: more would be noise."""
    return float(f"{error:.2g}")
