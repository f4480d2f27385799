"""Bounds on log Z stand on their sides, meet where they must, and are the same however computed."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from smc.toys import chain, z_score

import tsmc_widgets as tw
from tsmc_widgets.evaluation import BoundsTable, LogZBounds, PooledOverRuns, log_z_bounds
from tsmc_widgets.targets import JointSamples
from tsmc_widgets.twists import TableTwist

SIZES = (1, 2, 5)


@pytest.fixture(scope="module")
def table(target, oracle):
    return log_z_bounds(
        target,
        num_particles=SIZES,
        num_runs=8000,
        exact_samples=oracle.sample(8000, seed=1),
        twist=TableTwist.random(3, 4, seed=12),
        exact_log_z=oracle.log_z,
    )


def test_every_cell_stands_on_its_side(table, oracle):
    for row in table:
        assert row.lower.mean + 4.5 * row.lower.standard_error < oracle.log_z, row
        assert row.upper.mean - 4.5 * row.upper.standard_error > oracle.log_z, row
        assert 0 < row.gap_standard_error < 0.05


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


def test_pooled_estimates_are_log_z(table, oracle):
    for row in table:
        for pooled, mean in ((row.pooled_lower, row.lower), (row.pooled_upper, row.upper)):
            assert abs(pooled.value - oracle.log_z) < 4.5 * pooled.standard_error
            assert abs(pooled.value - oracle.log_z) < abs(mean.mean - oracle.log_z)


def test_reciprocal_identity(table, oracle):
    """E_cSMC[Z / Z_hat] = 1 with positive weights, for every K and rule."""
    for row in table:
        assert abs(z_score((oracle.log_z - row.upper_log_z).exp(), 1.0)) < 4.5
        assert abs(z_score((row.lower_log_z - oracle.log_z).exp(), 1.0)) < 4.5


def test_the_frame_is_tidy(table, oracle):
    frame = table.to_frame()
    assert len(frame) == len(SIZES) * 3 * 2
    assert set(frame["method"]) == {"SMC, every step", "SMC, ESS < 0.5 K", "IWAE"}
    assert set(frame["kind"]) == {"bound"}
    assert (frame["exact"] == oracle.log_z).all()
    assert ((frame["low"] < frame["mean"]) & (frame["mean"] < frame["high"])).all()
    assert (
        (frame["pooled_low"] < frame["pooled"]) & (frame["pooled"] < frame["pooled_high"])
    ).all()
    assert ((frame["effective_runs"] >= 1) & (frame["effective_runs"] <= 8000)).all()
    runs = table.runs_frame()
    assert len(runs) == len(SIZES) * 3 * 2 * 8000
    cell = runs.query("num_particles == 2 and rule == 'never' and side == 'upper'")
    row = next(row for row in table if (row.num_particles, row.rule) == (2, "never"))
    assert cell["log_z"].mean() == pytest.approx(row.upper.mean, abs=1e-12)


def test_the_gap_frame_is_the_gaps(table):
    frame = table.gap_frame()
    assert frame["gap"].tolist() == [row.gap for row in table]
    assert ((frame["low"] < frame["gap"]) & (frame["gap"] < frame["high"])).all()


def test_the_tightest_is_found(table):
    assert table.tightest().gap == min(row.gap for row in table)


def test_a_table_without_upper_bounds_has_none_that_is_tightest(target):
    with pytest.raises(ValueError, match="give exact_samples"):
        log_z_bounds(target, num_particles=[2], num_runs=3, rule="ess").tightest()


def test_never_resampling_with_one_particle_is_every_other_rule(table):
    alone = [row for row in table if row.num_particles == 1]
    for row in alone[1:]:
        assert torch.allclose(row.lower_log_z, alone[0].lower_log_z, rtol=0, atol=1e-12)
        assert torch.allclose(row.upper_log_z, alone[0].upper_log_z, rtol=0, atol=1e-12)


@pytest.mark.parametrize("max_rows", [1, 7, 30])
def test_batches_change_no_byte(target, oracle, max_rows):
    how = {"num_particles": 4, "num_runs": 23, "exact_samples": oracle.sample(11, seed=2)}
    whole, parts = (log_z_bounds(target, **how, max_rows=rows) for rows in (None, max_rows))
    assert torch.equal(whole.lower_log_z, parts.lower_log_z)
    assert torch.equal(whole.upper_log_z, parts.upper_log_z)
    assert whole == parts


def test_parts_of_a_job_make_the_whole(target, oracle):
    samples = oracle.sample(10, seed=2)
    whole = log_z_bounds(target, num_particles=3, num_runs=10, exact_samples=samples)
    parts = [
        log_z_bounds(
            target, num_particles=3, num_runs=5, exact_samples=samples[at : at + 5], first_run=at
        )
        for at in (0, 5)
    ]
    joined = LogZBounds.of(
        torch.cat([part.lower_log_z for part in parts]),
        torch.cat([part.upper_log_z for part in parts]),
        num_particles=3,
        rule=whole.rule,
    )
    assert joined == whole


def test_both_sides_draw_their_noise_apart(target, oracle):
    """Runs and samples of equal number share no noise: their log Z_hat are uncorrelated."""
    bounds = log_z_bounds(
        target, num_particles=3, num_runs=8000, exact_samples=oracle.sample(8000, seed=5)
    )
    pairs = torch.stack([bounds.lower_log_z, bounds.upper_log_z])
    assert abs(float(torch.corrcoef(pairs)[0, 1])) < 4.5 / math.sqrt(8000)


def test_approximate_samples_give_an_estimate(target, oracle):
    samples = oracle.sample(4, seed=2)
    bounds = log_z_bounds(target, num_particles=2, num_runs=4, approximate_samples=samples)
    assert bounds.upper_kind == "estimate"
    frame = BoundsTable((bounds,)).to_frame()
    assert list(frame["kind"]) == ["bound", "estimate"]
    with pytest.raises(ValueError, match="not both"):
        log_z_bounds(
            target, num_particles=2, num_runs=4, exact_samples=samples, approximate_samples=samples
        )


def test_samples_of_many_observations_are_refused(target):
    joint = JointSamples(torch.zeros(2, 4, dtype=torch.int64), torch.zeros(2, 1).long())
    with pytest.raises(ValueError, match="observations o, each"):
        log_z_bounds(target, num_particles=2, num_runs=4, exact_samples=joint)


def test_a_proposal_that_only_proposes_is_tabulated_without_resampling(target):
    twist = TableTwist.random(3, 4, seed=12)
    twist.proposal_only = True
    table = log_z_bounds(target, num_particles=[1, 2], num_runs=3, proposal=tw.TwistInduced(twist))
    assert [row.rule for row in table] == ["never", "never"]


LOGS = st.lists(st.floats(-300, 300), min_size=2, max_size=9)


@given(LOGS, st.booleans())
def test_the_jackknife_is_the_jackknife(logs, reciprocal):
    values = torch.tensor(logs, dtype=torch.float64)
    sign = -1.0 if reciprocal else 1.0

    def pool(x):
        return sign * float(torch.logsumexp(sign * x, 0) - math.log(len(x)))

    pooled = PooledOverRuns.of(values, reciprocal=reciprocal)
    assert pooled.value == pytest.approx(pool(values), abs=1e-9)
    count = len(logs)
    left_out = [pool(torch.cat([values[:i], values[i + 1 :]])) for i in range(count)]
    spread = math.sqrt(
        (count - 1) * float(torch.tensor(left_out, dtype=torch.float64).var(correction=0))
    )
    assert pooled.standard_error == pytest.approx(spread, rel=1e-9, abs=1e-9)
    assert 1 - 1e-9 <= pooled.effective_runs <= count + 1e-9


def test_dead_runs_pool_and_one_survivor_says_nothing_of_its_error():
    dead = -math.inf
    pooled = PooledOverRuns.of(torch.tensor([0.0, dead, 0.0, dead]).double())
    assert pooled.value == pytest.approx(math.log(0.5))
    assert math.isfinite(pooled.standard_error)
    alone = PooledOverRuns.of(torch.tensor([0.0, dead, dead]).double())
    assert alone.interval() == (-math.inf, math.inf)
    assert PooledOverRuns.of(torch.tensor([dead, dead]).double()).value == dead


def test_the_gap_has_an_interval(table):
    row = table.tightest()
    low, high = row.gap_interval()
    assert low < row.gap < high
    assert high - low == pytest.approx(2 * 1.96 * row.gap_standard_error, rel=1e-2)


@pytest.mark.parametrize("bad", [[0], [2, -1], [True]])
def test_bad_sizes_are_refused(target, bad):
    with pytest.raises(ValueError, match="num_particles"):
        log_z_bounds(target, num_particles=bad, num_runs=2)
