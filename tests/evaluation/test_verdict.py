"""What a run is worth: several signals, none of which alone is enough."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import tsmc_widgets as tw
from tsmc_widgets.evaluation.run_quality import judge_run


@pytest.fixture(scope="module")
def target():
    return tw.load_problem("late-evidence").target()


def run(target, **options):
    return tw.run_smc(target, num_particles=64, seed=3, **{"dead_runs": "keep", **options})


def test_families_are_the_ess_of_a_run_that_never_resampled(target):
    trace = run(target, ess_threshold=0.0)
    assert judge_run(trace).families == pytest.approx(float(trace.ess[-1]))


def test_families_of_an_enumerated_genealogy(target):
    trace = run(target, ess_threshold=1.0)
    ancestors = trace.columns.ancestors[0].tolist()
    shares = [0.0] * 64
    for slot, weight in enumerate(trace.weights.tolist()):
        for row in reversed(ancestors[1:]):
            slot = row[slot]
        shares[slot] += weight
    assert judge_run(trace).families == pytest.approx(1 / sum(share**2 for share in shares))


def test_a_full_ess_just_after_resampling_does_not_make_a_run_good(target):
    twist = tw.exact(target).optimal_twist()
    best = run(target, twist=twist, proposal=tw.TwistInduced())
    assert judge_run(best, spread=0.0).level == "good"
    fresh = run(
        target, twist=twist, proposal=tw.TwistInduced(), rule="always", resampler="multinomial"
    )
    found = judge_run(fresh, spread=0.0)
    assert float(fresh.ess[-1]) == pytest.approx(64)
    assert found.fresh_at == fresh.num_steps
    assert any("is fresh from resampling" in reason for reason in found.reasons)
    assert found.families < 64


def test_levels(target):
    twist = tw.exact(target).optimal_twist()
    best = run(target, twist=twist, proposal=tw.TwistInduced())
    levels = [judge_run(best, spread=spread).level for spread in (0.5, 0.6, 1.1, math.nan)]
    assert levels == ["good", "fair", "poor", "open"]
    nothing = torch.full_like(best.columns.log_weights, -math.inf)
    columns = replace(best.columns, log_weights=nothing)
    dead = SimpleNamespace(columns=columns, num_steps=best.num_steps, num_particles=64)
    assert judge_run(dead).reasons == ("all weights are 0",)
