"""Over 500 repetitions, 95 % intervals hold the truth 92 to 98 times in 100."""

import math
import re
from functools import cache
from pathlib import Path

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
from tsmc_widgets.evaluation.divergences import (
    Q_SIGMA,
    SIGMA_Q,
    Sampler,
    draw_from,
    kl_estimate,
    score_sequences,
)
from tsmc_widgets.evaluation.estimates import t_interval, welch

REPEATS, RUNS = 500, 40


@pytest.fixture(scope="module")
def target():
    """Half of a hard log phi: log Z_hat of one particle spreads by 0.3 to 0.6 nats."""
    hard = table_target(3, 3, seed=3)
    return hard.with_potential(hard.potential**0.5)


@pytest.fixture(scope="module")
def bounds_of_all(target, oracle):
    """Function of the number of particles: all repetitions in one run axis."""
    samples = oracle.sample(REPEATS * RUNS, seed=4)
    how = {"num_runs": REPEATS * RUNS, "exact_samples": samples, "seed": 17}
    return cache(lambda num_particles: log_z_bounds(target, num_particles=num_particles, **how))


def share(intervals, truth):
    return sum(low <= truth <= high for low, high in intervals) / len(intervals)


def test_means_of_both_sides(oracle, bounds_of_all):
    """With one particle, E[log Z_hat] is F_q or G_q, a sum over all texts."""
    bounds = bounds_of_all(1)
    f = float((oracle.log_p.exp() * oracle.log_phi).sum())
    g = float((oracle.log_sigma.exp() * oracle.log_phi).sum())
    for values, truth in ((bounds.lower_log_z, f), (bounds.upper_log_z, g)):
        rows = values.reshape(REPEATS, RUNS)
        assert 0.92 <= share([MeanOverRuns.of(row).interval() for row in rows], truth) <= 0.98


@pytest.mark.parametrize("num_particles", [8, 32])
def test_pooled_estimates_of_both_sides(oracle, bounds_of_all, num_particles):
    bounds = bounds_of_all(num_particles)
    for values, reciprocal in ((bounds.lower_log_z, False), (bounds.upper_log_z, True)):
        rows = values.reshape(REPEATS, RUNS)
        intervals = [PooledOverRuns.of(row, reciprocal=reciprocal).interval() for row in rows]
        assert 0.92 <= share(intervals, oracle.log_z) <= 0.98


@pytest.mark.parametrize("known", [True, False])
def test_divergences(target, oracle, bounds_of_all, known):
    """Both KLs of p0; the midpoint of bounds brings its gap along, so it covers more often."""
    drawn = draw_from(target, Sampler.of(None, None), REPEATS * RUNS, seed=9, first_run=0)
    scores = score_sequences(target, oracle.sample(REPEATS * RUNS, seed=4), Sampler.of(None, None))
    bounds = bounds_of_all(8)
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


@pytest.fixture(scope="module")
def rejected(target, oracle):
    """Exact samples of each repetition, with the draws that found them."""
    phi = tw.TokenFunction(target.potential.log_phi, log_phi_max=float(oracle.log_phi.max()))
    bounded = target.with_potential(phi)
    return [bounded.exact_samples(100, seed=n, progress=False) for n in range(REPEATS)]


@pytest.mark.parametrize("name", ["p0", "p0 phi squared"])
def test_divergence_from_sigma_where_rejection_gives_both_parts(target, oracle, rejected, name):
    """G and log Z rest on the same draws: their covariance is what the interval lives by."""
    if name == "p0":
        log_q, sampler = oracle.log_p, Sampler.of(None, None)
    else:
        log_q = oracle.log_p + 2 * oracle.log_phi
        log_q = log_q - torch.logsumexp(log_q, 0)
        squared = target.with_potential(target.potential**2)
        sampler = Sampler.of(None, tw.exact(squared).optimal_twist())
    truth = divergences(oracle, log_q)[1]
    tokens = torch.cat([found.tokens for found in rejected])
    weights = score_sequences(target, tokens, sampler).log_weight.split(100)
    intervals = []
    for found, g in zip(rejected, weights, strict=True):
        parts = (MeanOverRuns.of(g), LogZ.of(found))
        intervals.append(kl_estimate(SIGMA_Q, *parts, estimator="", shared=g).interval())
    assert 0.92 <= share(intervals, truth) <= 0.98


@pytest.mark.parametrize("read", [LogZ.of, LogZ.pooled], ids=["means", "pooled"])
def test_divergence_from_sigma_where_bounds_rest_on_its_samples(
    target, oracle, bounds_of_all, read
):
    """The upper bound and G read the same exact samples."""
    tokens = oracle.sample(REPEATS * RUNS, seed=4)
    bounds = bounds_of_all(2)
    g = score_sequences(target, tokens, Sampler.of(None, None)).log_weight
    errors, values = [], []
    for at in range(REPEATS):
        rows = slice(at * RUNS, (at + 1) * RUNS)
        some = LogZBounds.of(bounds.lower_log_z[rows], bounds.upper_log_z[rows], num_particles=2)
        parts = (MeanOverRuns.of(g[rows]), read(some))
        found = kl_estimate(SIGMA_Q, *parts, estimator="", shared=g[rows])
        values.append(found.value)
        errors.append(found.standard_error**2)
    # A variance of 500 normal values is known to 6 %.
    ratio = torch.tensor(errors).mean() / torch.tensor(values).var()
    assert abs(float(ratio) - 1) < 4.5 * math.sqrt(2 / REPEATS)


@pytest.mark.parametrize("num_runs", [1, 5, 20])
def test_certified_bounds(oracle, bounds_of_all, num_runs):
    """They hold log Z at 95 % at least, also with one particle and one run."""
    bounds = bounds_of_all(1)
    ends = [
        LogZBounds.of(low, high, num_particles=1).certified()
        for low, high in zip(
            bounds.lower_log_z.split(num_runs), bounds.upper_log_z.split(num_runs), strict=True
        )
    ]
    assert share(ends, oracle.log_z) >= 0.95
    assert all(low < high for low, high in ends)


def test_certified_bounds_where_runs_die():
    """Half of the runs are dead: the others still say something, and it is true."""
    log_z = torch.tensor([-math.inf, 0.0] * 10, dtype=torch.float64)
    low, high = LogZBounds.of(log_z, None, num_particles=1).certified()
    assert low == pytest.approx(math.log(0.5) - math.log(80))
    assert high == math.inf


def test_runs_that_agree_do_not_prove_what_none_has_shown():
    """Log Z_hat is 0, and -1 in one run of fifty: twenty runs mostly agree, and are not certain."""
    generator = torch.Generator().manual_seed(0)
    rare = -(torch.rand(4000, 20, generator=generator) < 0.02).double()
    intervals = [MeanOverRuns.of(row).interval() for row in rare]
    assert share(intervals, -0.02) >= 0.9
    agreed = MeanOverRuns.of(torch.zeros(20, dtype=torch.float64)).interval()
    assert agreed == pytest.approx((-math.log(40) / 20, math.log(40) / 20))


def test_docstrings_say_what_the_table_of_coverage_says():
    """At least 92 % at up to 0.71 nats, 73 % at up to 1.71; a mean where no run may die."""
    page = (Path(__file__).parents[2] / "docs" / "coverage.md").read_text("utf-8")
    cells = [line.strip("| ").split(" | ") for line in page.splitlines() if line.endswith("% |")]
    rows = [row for row in cells if 5 <= int(row[2]) <= 20]
    assert len(rows) == 30
    for kind, column in ((MeanOverRuns, 6), (PooledOverRuns, 5)):
        text = " ".join(kind.__doc__.split())
        about = r"at least (\d+) % .* up to ([\d.]+) nats .*at least (\d+) % at up to ([\d.]+)"
        said = re.search(about, text)
        narrow, wide = ((int(said[at]), float(said[at + 1])) for at in (1, 3))
        alive = [r for r in rows if kind is PooledOverRuns or r[0] != "eos, p0, K = 8"]
        for share, spread in (narrow, wide):
            measured = [int(row[column].split()[0]) for row in alive if float(row[1]) <= spread]
            assert min(measured) == share
    assert max(float(row[1]) for row in rows) == 1.71
    readme = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
    least = min(int(row[4].split()[0]) for row in rows if row[2] == "8")
    assert f"at least {least} % on each" in readme
