"""Bounds on log Z stand on their sides, meet where they must, and their intervals cover."""

import math

import torch
from smc.toys import chain

import tsmc_widgets as tw
from tsmc_widgets.evaluation import LogZBounds, log_z_bounds
from tsmc_widgets.evaluation.bounds import MeanOverRuns
from tsmc_widgets.twists import TableTwist


def test_they_bracket_log_z(target):
    oracle = tw.exact(target)
    bounds = log_z_bounds(
        target,
        num_particles=4,
        num_runs=20_000,
        exact_samples=oracle.sample(20_000, seed=1),
        twist=TableTwist.random(3, 4, seed=12),
    )
    assert bounds.lower.mean + 4.5 * bounds.lower.standard_error < oracle.log_z
    assert bounds.upper.mean - 4.5 * bounds.upper.standard_error > oracle.log_z
    assert bounds.gap > 0
    assert 0 < bounds.gap_standard_error < 0.05


def test_they_meet_at_the_optimal_twist(target):
    oracle = tw.exact(target)
    bounds = log_z_bounds(
        target,
        num_particles=4,
        num_runs=10,
        exact_samples=oracle.sample(10, seed=1),
        twist=oracle.optimal_twist(),
        proposal=tw.TwistInduced(),
    )
    assert abs(bounds.gap) < 1e-10
    assert abs(bounds.lower.mean - oracle.log_z) < 1e-10


def test_without_exact_samples_there_is_no_upper_bound(target):
    bounds = log_z_bounds(target, num_particles=4, num_runs=10)
    assert bounds.upper is None
    assert math.isnan(bounds.gap)


def test_a_run_that_died_bounds_nothing():
    rare = tw.Target(chain(), tw.MatchesRegex("c{7}"), prompt="a", num_steps=7)
    bounds = log_z_bounds(rare, num_particles=2, num_runs=5)
    assert bounds.lower.mean == -math.inf
    assert bounds.lower.interval() == (-math.inf, math.inf)


def test_one_run_has_no_interval(target):
    lower = log_z_bounds(target, num_particles=4, num_runs=1).lower
    assert math.isnan(lower.standard_error)
    assert lower.interval() == (-math.inf, math.inf)


def test_intervals_cover():
    """2,000 normal samples of five: 95 % within 4.5 standard errors of a share."""
    values = torch.randn(2000, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    covered = [
        low <= 0 <= high for low, high in (MeanOverRuns.of(row).interval() for row in values)
    ]
    spread = math.sqrt(0.95 * 0.05 / 2000)
    assert abs(sum(covered) / 2000 - 0.95) < 4.5 * spread


def test_the_types_are_plain(target):
    assert isinstance(log_z_bounds(target, num_particles=2, num_runs=2), LogZBounds)
