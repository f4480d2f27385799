"""Runs whose weights are all zero: kept and counted among several, an error when alone."""

import math
import warnings

import pytest
import torch
from smc.toys import TablePhi, chain, table_target, z_score

import tsmc_widgets as tw
from tsmc_widgets.errors import AllParticlesDeadError
from tsmc_widgets.smc.exact import EnumeratedOracle
from tsmc_widgets.twists import TableTwist

RUNS = 50
SETTINGS = {"num_particles": 2, "num_runs": RUNS, "seed": 1}


@pytest.fixture(scope="module")
def target():
    return tw.Target(chain(), tw.ContainsToken("c"), prompt="", num_steps=2)


@pytest.fixture(scope="module")
def trace(target):
    with pytest.warns(RuntimeWarning, match=rf"^\d+ of {RUNS} runs died") as caught:
        trace = tw.run_smc(target, **SETTINGS)
    assert len(caught) == 1
    dead = int((trace.log_z == -math.inf).sum())
    assert 0 < dead < RUNS
    assert str(caught[0].message).startswith(f"{dead} of {RUNS} runs")
    return trace


def test_the_other_runs_are_what_they_are_alone(target, trace):
    for run in range(RUNS):
        settings = SETTINGS | {"num_runs": 1, "first_run": run}
        if trace.log_z[run] == -math.inf:
            with pytest.raises(AllParticlesDeadError, match="run 0: the potential is -inf") as died:
                tw.run_smc(target, **settings)
            assert died.value.trace.log_z == -math.inf
            continue
        alone, kept = tw.run_smc(target, **settings), trace.run(run)
        for name in ("tokens", "ancestors", "log_p", "log_q", "log_psi", "log_weights", "log_z"):
            assert torch.equal(getattr(alone.columns, name), getattr(kept.columns, name))
        assert alone.texts() == kept.texts()


def test_what_is_asked_for_is_done(target, trace):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kept = tw.run_smc(target, **SETTINGS, dead_runs="keep")
        tw.run_smc(target, **SETTINGS | {"num_particles": 500})
    assert torch.equal(kept.log_z, trace.log_z)
    with pytest.raises(AllParticlesDeadError, match=r"of run \d+: the potential is -inf"):
        tw.run_smc(target, **SETTINGS, dead_runs="raise")
    never = tw.Target(chain(), tw.CountToken("c", at_least=3), prompt="", num_steps=2)
    with pytest.warns(RuntimeWarning, match="1 of 1 runs died"):
        tw.run_smc(never, num_particles=3, dead_runs="warn")


def test_a_dead_run_has_texts_rows_and_no_weight(trace):
    dead = int((trace.log_z == -math.inf).nonzero()[0, 0])
    one = trace.run(dead)
    assert float(one.ess[-1]) == 0
    assert one.weights.tolist() == [0.0, 0.0]
    assert all(len(text) == 2 and "c" not in text for text in one.texts())
    frame = trace.to_frame()
    assert len(frame) == 2 * RUNS
    assert (frame[frame.run == dead].weight == 0).all()
    assert (frame[frame.run == dead].log_phi == -math.inf).all()
    drawn = trace.resampled_frame(3, seed=0)
    alive = (trace.log_z > -math.inf).nonzero().squeeze(1).tolist()
    assert drawn.run.tolist() == [run for run in alive for _ in range(3)]
    assert drawn.text.str.contains("c").all()


@pytest.mark.parametrize("rule", ["always", "never"])
def test_the_mean_counts_dead_runs_as_zero(rule):
    target = table_target(3, 3, seed=4, zeros=0.7)
    log_z = EnumeratedOracle(target).log_z
    with pytest.warns(RuntimeWarning, match="runs died"):
        trace = tw.run_smc(
            target, num_particles=2, num_runs=20_000, rule=rule,
            twist=TableTwist.random(3, 3, seed=2),
        )  # fmt: skip
    assert int((trace.log_z == -math.inf).sum()) > 100
    assert abs(z_score(trace.log_z.exp(), math.exp(log_z))) < 4.5
    alive = trace.log_z[trace.log_z > -math.inf]
    assert z_score(alive.exp(), math.exp(log_z)) > 4.5


@pytest.mark.parametrize("dead_runs", [None, "keep"])
@pytest.mark.parametrize("size", [1, 2, 64])
def test_a_twist_that_is_zero_on_an_exact_sample_is_an_error(size, dead_runs):
    """No bound is left, whether or not other particles live on."""
    target = tw.Target(chain(), tw.Constant(), prompt="", num_steps=3)
    twist = TableTwist([torch.zeros((3,) * t, dtype=torch.float64) for t in (1, 2, 3)])
    twist.log_tables[1][1, 2] = -math.inf
    how = {"num_particles": size, "twist": twist, "proposal": tw.Base(), "dead_runs": dead_runs}
    tw.run_conditional_smc(target, retained=[[0, 1, 2], [1, 1, 1]], **how)
    with pytest.raises(ValueError, match="step 2 of run 1, 'bc': conditional SMC bounds"):
        tw.run_conditional_smc(target, retained=[[0, 1, 2], [1, 2, 1]], **how)


def test_all_may_die():
    nothing = TablePhi(torch.full((3,) * 3, -math.inf, dtype=torch.float64))
    target = tw.Target(chain(), nothing, prompt="", num_steps=3)
    with pytest.warns(RuntimeWarning, match="3 of 3 runs died"):
        trace = tw.run_smc(target, num_particles=4, num_runs=3, resampler="multinomial")
    assert trace.log_z.tolist() == [-math.inf] * 3
    assert bool((trace.weights == 0).all())
    assert bool(trace.k_hat().isnan().all())
    assert bool(trace.log_z_variance().isnan().all())
    assert len(trace.to_frame()) == 3 * 4
    with pytest.raises(ValueError, match="weights are all zero"):
        trace.resampled_frame(seed=0)
