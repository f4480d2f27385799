"""Over 500 repetitions, 95 % intervals hold the truth 92 to 98 times in 100."""

import math

import pytest
import torch
from evaluation.enumerated import divergences
from smc.toys import table_target

import tsmc_widgets as tw
from tsmc_widgets.evaluation import (
    LogZ,
    LogZBounds,
    MeanOverRuns,
    PooledOverRuns,
    log_z_bounds,
)
from tsmc_widgets.evaluation.divergences import Sampler, draw_from, score_sequences
from tsmc_widgets.evaluation.estimates import Q_SIGMA, SIGMA_Q, kl_estimate, t_interval, welch

REPEATS, RUNS = 500, 40


@pytest.fixture(scope="module")
def target():
    """Half of a hard log phi: log Z_hat of one particle spreads by 0.3 to 0.6 nats."""
    hard = table_target(3, 3, seed=3)
    return tw.Target(hard.lm, hard.potential**0.5, prompt="", num_steps=3)


def bounds_of_all(target, oracle, num_particles, seed=17):
    """All repetitions in one run axis."""
    return log_z_bounds(
        target,
        num_particles=num_particles,
        num_runs=REPEATS * RUNS,
        exact_samples=oracle.sample(REPEATS * RUNS, seed=4),
        seed=seed,
    )


def share(intervals, truth):
    return sum(low <= truth <= high for low, high in intervals) / len(intervals)


def test_means_of_both_sides(target, oracle):
    """With one particle, E[log Z_hat] is F_q or G_q, a sum over all texts."""
    bounds = bounds_of_all(target, oracle, 1)
    f = float((oracle.log_p.exp() * oracle.log_phi).sum())
    g = float((oracle.log_sigma.exp() * oracle.log_phi).sum())
    for values, truth in ((bounds.lower_log_z, f), (bounds.upper_log_z, g)):
        rows = values.reshape(REPEATS, RUNS)
        assert 0.92 <= share([MeanOverRuns.of(row).interval() for row in rows], truth) <= 0.98


@pytest.mark.parametrize("num_particles", [8, 32])
def test_pooled_estimates_of_both_sides(target, oracle, num_particles):
    bounds = bounds_of_all(target, oracle, num_particles)
    for values, reciprocal in ((bounds.lower_log_z, False), (bounds.upper_log_z, True)):
        rows = values.reshape(REPEATS, RUNS)
        intervals = [PooledOverRuns.of(row, reciprocal=reciprocal).interval() for row in rows]
        assert 0.92 <= share(intervals, oracle.log_z) <= 0.98


@pytest.mark.parametrize("known", [True, False])
def test_divergences(target, oracle, known):
    """Both KLs of p0; the midpoint of bounds brings its gap along, so it covers more often."""
    drawn = draw_from(target, Sampler.of(None, None), REPEATS * RUNS, seed=9, first_run=0)
    scores = score_sequences(target, oracle.sample(REPEATS * RUNS, seed=4), Sampler.of(None, None))
    bounds = bounds_of_all(target, oracle, 8)
    truth = divergences(oracle, oracle.log_p)
    found = ([], [])
    for at in range(REPEATS):
        rows = slice(at * RUNS, (at + 1) * RUNS)
        log_z = LogZ.of(oracle)
        if not known:
            log_z = LogZ.of(
                LogZBounds.of(bounds.lower_log_z[rows], bounds.upper_log_z[rows], num_particles=8)
            )
        f, g = MeanOverRuns.of(drawn.log_weight[rows]), MeanOverRuns.of(scores.log_weight[rows])
        for name, parts, intervals in zip(
            (Q_SIGMA, SIGMA_Q), ((log_z, f), (g, log_z)), found, strict=True
        ):
            intervals.append(kl_estimate(name, *parts, estimator="").interval())
    for intervals, exact in zip(found, truth, strict=True):
        assert 0.92 <= share(intervals, exact) <= (0.98 if known else 1.0)


def test_sums_of_unequal_parts():
    """Welch's interval for a sum of 4 and of 30 normal numbers of unequal spread."""
    generator = torch.Generator().manual_seed(0)
    few = torch.randn(4000, 4, generator=generator, dtype=torch.float64)
    many = 3 * torch.randn(4000, 30, generator=generator, dtype=torch.float64)
    intervals = []
    for a, b in zip(few, many, strict=True):
        parts = [MeanOverRuns.of(a), MeanOverRuns.of(b)]
        intervals.append(t_interval(parts[0].mean + parts[1].mean, *welch(*parts)))
    spread = math.sqrt(0.95 * 0.05 / 4000)
    assert abs(share(intervals, 0.0) - 0.95) < 4.5 * spread
