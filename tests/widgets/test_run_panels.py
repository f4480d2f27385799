"""What the panels are sent, against the trace that it was made of."""

import math

import numpy as np
import pytest
import torch
from smc.observed import infilling
from smc.toys import chain, eos_target
from widgets.conftest import column

import tsmc_widgets as tw
from tsmc_widgets.evaluation.bracket import Bracket
from tsmc_widgets.evaluation.estimates import PooledOverRuns
from tsmc_widgets.widgets.particle_view import RunPanels
from tsmc_widgets.widgets.record import unpack

SETTINGS = {"num_particles": 16, "num_runs": 5, "seed": 4}


@pytest.fixture(scope="module")
def target():
    return eos_target(5)


@pytest.fixture(scope="module")
def trace(target):
    return tw.run_smc(target, **SETTINGS)


def test_log_z_of_every_run_and_of_all_together(trace):
    sent = RunPanels(trace).get_state()
    every = torch.from_numpy(column(sent, "every_log_z").reshape(5, 5).copy())
    assert torch.equal(every, trace.columns.log_z.T)
    for step in range(5):
        pooled = PooledOverRuns.of(trace.columns.log_z[:, step])
        found = [column(sent, name)[step] for name in ("pooled", "pooled_low", "pooled_high")]
        assert found == [pooled.value, *pooled.interval()]


def test_conditional_runs_are_pooled_as_upper_estimates(target):
    retained = tw.run_smc(target, num_particles=4, seed=1).tokens
    trace = tw.run_conditional_smc(target, retained=retained, num_particles=8, seed=2)
    panels = RunPanels(trace)
    expected = PooledOverRuns.of(trace.columns.log_z[:, -1], reciprocal=True)
    assert column(panels.get_state(), "pooled")[-1] == expected.value
    assert panels.header["conditional"]


def test_runs_of_different_observations_are_not_pooled():
    trace = tw.run_smc(infilling(), num_particles=8, observed=[[2], [0]], seed=1)
    panels = RunPanels(trace)
    assert not panels.header["one_target"]
    assert np.isnan(column(panels.get_state(), "pooled")).all()
    assert RunPanels(trace.run(1)).header["one_target"]


@pytest.mark.parametrize("run", [0, 3])
def test_samples_are_the_trace_of_that_run(trace, run):
    facts, columns = unpack(RunPanels(trace, run=run).samples)
    frame = trace.to_frame().query("run == @run").set_index("particle")
    paths = trace.paths("tokens")[run]
    assert columns["weight"].sum() == pytest.approx(1.0)
    assert list(columns["weight"]) == sorted(columns["weight"], reverse=True)
    assert columns["copies"].sum() == 16
    for i, slot in enumerate(columns["slot"]):
        same = (paths == paths[slot]).all(1).numpy()
        assert facts["texts"][i] == frame.text[slot]
        assert columns["weight"][i] == pytest.approx(frame.weight[same].sum())
        assert columns["copies"][i] == same.sum()
        assert columns["log_phi"][i] == frame.log_phi[slot]
        assert columns["log_p0"][i] == pytest.approx(frame.log_p[slot])
        ends = (paths[slot] == trace.info.eos_token_id).nonzero()
        assert columns["ended"][i] == (int(ends[0]) + 1 if len(ends) else 0)


def test_factors_come_with_the_target_once_the_run_is_done(target):
    potential = tw.AvoidsToken("c") * tw.ContainsToken("b")
    target = tw.Target(chain(), potential, prompt="ab", num_steps=4)
    session = tw.start_smc(target, num_particles=16, seed=3)
    session.step()
    panels = RunPanels(session.trace, target=target)
    assert panels.header["factors"] == []
    assert panels.samples == b""
    trace = session.run()
    panels.update(trace, target=target)
    shares = tw.factor_breakdown(trace, target)
    assert [each["name"] for each in panels.header["factors"]] == [s.name for s in shares]
    assert [each["killed"] for each in panels.header["factors"]] == [s.killed for s in shares]


@pytest.mark.parametrize("bracket", [(-3, -2.5), Bracket(-3.0, -2.5, 0.1, 1, 1, 1, 1, 0.0, False)])
def test_a_bracket_has_two_ends(trace, bracket):
    assert RunPanels(trace, bracket=bracket).header["bracket"] == [-3.0, -2.5]
    assert RunPanels(trace, bracket=(-math.inf, 1)).header["bracket"] == ["-Infinity", 1.0]


@pytest.mark.parametrize("bracket", [(-2.5, -3), (1, 2, 3), "ab", 3.0, (math.nan, 1)])
def test_anything_else_is_refused_and_what_was_shown_stays(trace, bracket):
    panels = RunPanels(trace)
    with pytest.raises(ValueError, match="the lower one first"):
        panels.update(trace, bracket=bracket)
    assert panels.header["bracket"] is None
