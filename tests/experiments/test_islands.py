"""One population split over workers: the same numbers without resampling, unbiased with it."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from smc.toys import z_score

import tsmc_widgets as tw
from tsmc_widgets.experiments.runs import SpecError, island_specs


def spec(**changes):
    usual = {"problem": "rainy-week", "num_particles": 12, "num_runs": 7, "seed": 3}
    return tw.RunSpec(**{**usual, **changes})


@pytest.mark.parametrize("num_islands", [1, 2, 3, 4, 12])
@pytest.mark.parametrize("method", ["none", "optimal"])
def test_without_resampling_islands_are_one_batch(method, num_islands):
    target = tw.load_problem("rainy-week").target()
    twist = tw.exact(target).optimal_twist() if method == "optimal" else None
    proposal = tw.Base() if twist is None else tw.TwistInduced()
    whole = tw.run_smc(
        target, num_particles=12, num_runs=7, twist=twist, proposal=proposal, rule="never", seed=3
    )
    pooled = tw.run_islands(spec(method=method, rule="never"), num_islands)
    assert pooled.island_log_z.shape == (num_islands, 7)
    assert (pooled.log_z - whole.log_z).abs().max() < 1e-12
    assert pooled.bounds.lower.mean == pytest.approx(float(whole.log_z.mean()), abs=1e-12)
    assert pooled.num_particles == 12


def test_islands_differ_from_each_other():
    pooled = tw.run_islands(spec(rule="never", num_runs=20), 4)
    assert len({tuple(row) for row in pooled.island_log_z.tolist()}) == 4


@pytest.mark.parametrize("rule", ["always", "ess"])
def test_with_resampling_the_pool_is_unbiased(rule):
    target = tw.load_problem("rainy-week").target()
    pooled = tw.run_islands(
        spec(rule=rule, method="look-ahead", num_particles=8, num_runs=20_000), 2
    )
    log_z = tw.exact(target).log_z
    assert abs(z_score((pooled.log_z - log_z).exp(), 1.0)) < 4.5
    # Looser than the mean of logs over all islands, as Jensen has it.
    assert pooled.log_z.mean() > pooled.island_log_z.mean()


def test_conditional_islands_share_their_observations():
    one = spec(problem="one-token-infilling", num_exact=9, rule="never")
    whole, pooled = (tw.run_islands(one, parts) for parts in (1, 3))
    assert pooled.log_z.shape == (9,)
    assert (pooled.log_z - whole.log_z).abs().max() < 1e-12


def test_islands_run_on_an_executor_and_are_stored(tmp_path):
    with ThreadPoolExecutor(2) as executor:
        first = tw.run_islands(spec(), 3, executor, tmp_path)
    stored = list(tw.map_runs(island_specs(spec(), 3), None, tmp_path))
    assert all(result.stored for result in stored)
    assert torch.equal(tw.run_islands(spec(), 3, None, tmp_path).log_z, first.log_z)


def test_dead_islands_count_as_zero():
    pooled = tw.run_islands(spec(problem="rare-event", num_runs=400), 3)
    dead = torch.isinf(pooled.island_log_z)
    assert bool(dead.any(0).any())
    assert (torch.isinf(pooled.log_z) == dead.all(0)).all()


@pytest.mark.parametrize(
    ("changes", "parts", "message"),
    [
        ({}, 5, "num_particles must be a multiple of the 5 islands; got 12"),
        ({"num_particles": (4, 8)}, 2, "islands are of one K and one rule"),
        ({"rule": ("ess", "never")}, 2, "islands are of one K and one rule"),
        ({}, 0, "num_islands must be an integer of at least 1"),
    ],
)
def test_what_can_not_be_split_is_told(changes, parts, message):
    with pytest.raises(ValueError, match=message):
        tw.run_islands(spec(**changes), parts)


def test_a_failed_island_is_told():
    with pytest.raises(SpecError, match="hidden state"):
        tw.run_islands(spec(method="ctl", training=tw.Training(form="MLP head")), 2)
