"""Divergences under observations: one set of o for everything, compared within each."""

import math

import pytest
import torch
from evaluation.enumerated import divergences, log_q_of_all, near, twist_psi
from smc.observed import ConditionalTables, infilling
from smc.toys import table_target

import tsmc_widgets as tw
from tsmc_widgets.evaluation import kl_divergences, log_z_bounds_given
from tsmc_widgets.targets import JointSamples


@pytest.fixture(scope="module")
def target():
    return infilling(3, 2, seed=8)


@pytest.fixture(scope="module")
def twist():
    return ConditionalTables(3, 2, seed=31, scale=1.0)


@pytest.fixture(scope="module")
def joint(target):
    return target.exact_samples(4000, seed=6, progress=False)


def first(joint, count):
    return JointSamples(joint.tokens[:count], joint.observed[:count])


def enumerated_given(target, twist):
    """Log Z(o), both divergences for each o, and p(o), all by enumeration."""
    values = {}
    for code in range(9):
        observed = torch.tensor([code // 3, code % 3])
        fixed = target.condition(observed)
        oracle = tw.exact(fixed)
        log_q = log_q_of_all(fixed, oracle, twist_psi(fixed, oracle, twist.condition(observed)))
        values[tuple(observed.tolist())] = (oracle.log_z, *divergences(oracle, log_q))
    return values


def test_observations_are_paired(target, twist, joint):
    values = enumerated_given(target, twist)
    assert math.fsum(math.exp(log_z) for log_z, _, _ in values.values()) == pytest.approx(1.0)
    log_z = torch.tensor([values[tuple(o)][0] for o in joint.observed.tolist()]).double()
    found = kl_divergences(target, twist=twist, exact_samples=joint, log_z=log_z)
    forward = math.fsum(math.exp(z) * kl for z, kl, _ in values.values())
    backward = math.fsum(math.exp(z) * kl for z, _, kl in values.values())
    assert near(found.q_sigma.value, forward, found.q_sigma.standard_error)
    assert near(found.sigma_q.value, backward, found.sigma_q.standard_error)
    assert found.q_sigma.value + found.sigma_q.value == pytest.approx(
        found.symmetrised.value, abs=1e-10
    )
    assert found.num_observations == 9
    # Unpaired, the spread of log Z(o) and of F over o would add up; within o they cancel in part.
    apart = math.hypot(found.f.standard_error, float(log_z.std()) / math.sqrt(len(log_z)))
    assert found.q_sigma.standard_error < apart


def test_bounds_of_each_observation(target, twist, joint):
    few = first(joint, 400)
    given = log_z_bounds_given(
        target, few, num_particles=16, twist=twist, proposal=tw.TwistInduced()
    )
    values = enumerated_given(target, twist)
    exact = torch.tensor([values[tuple(o)][0] for o in few.observed.tolist()]).double()
    below, above = exact - given.lower, given.upper - exact
    for side in (below, above):
        assert float(side.mean()) > -4.5 * float(side.std()) / 20
    found = kl_divergences(target, twist=twist, exact_samples=few, log_z=given)
    truth = math.fsum(math.exp(z) * kl for z, kl, _ in values.values())
    low, high = found.q_sigma.interval(0.99999)
    assert low < truth < high
    assert "observations" in found.log_z.source


def test_observations_are_an_argument(target, twist, joint):
    few = first(joint, 6)
    how = {"num_particles": 3, "twist": twist, "rule": "always"}
    given = log_z_bounds_given(target, few, **how)
    bounds = tw.log_z_bounds(target, exact_samples=few, **how)
    assert torch.equal(bounds.lower, given.lower)
    assert torch.equal(bounds.upper, given.upper)
    table = tw.log_z_bounds(target, exact_samples=few, **{**how, "num_particles": [1, 3]})
    assert [row.num_particles for row in table] == [1, 3]
    assert table[1].lower == given.bounds.lower
    for more in ({"num_runs": 5}, {"exact_log_z": 0.0}):
        with pytest.raises(ValueError, match="leave num_runs and exact_log_z out"):
            tw.log_z_bounds(target, exact_samples=few, **how, **more)
    with pytest.raises(ValueError, match="give joint samples"):
        tw.log_z_bounds(target, num_runs=5, **how)


def test_batches_and_parts_change_nothing(target, twist, joint):
    few = first(joint, 30)
    how = {"num_particles": 3, "twist": twist}
    whole = log_z_bounds_given(target, few, **how)
    batches = log_z_bounds_given(target, few, **how, max_rows=12)
    assert torch.equal(whole.lower, batches.lower)
    assert torch.equal(whole.upper, batches.upper)
    given = {"twist": twist, "exact_samples": few, "log_z": whole}
    assert kl_divergences(target, **given) == kl_divergences(target, **given, max_rows=7)


def test_one_particle_bounds_are_f_and_g(target, twist, joint):
    few = first(joint, 30)
    bounds = log_z_bounds_given(
        target, few, num_particles=1, twist=twist, proposal=tw.TwistInduced()
    ).bounds
    found = kl_divergences(target, twist=twist, exact_samples=few)
    assert abs(bounds.lower.mean - found.f.mean) < 1e-10
    assert abs(bounds.upper.mean - found.g.mean) < 1e-10


def test_the_gap_of_one_particle_is_both_divergences(target, twist, joint):
    values = enumerated_given(target, twist)
    both = math.fsum(math.exp(z) * (there + back) for z, there, back in values.values())
    given = log_z_bounds_given(
        target, joint, num_particles=1, twist=twist, proposal=tw.TwistInduced(), rule="never"
    )
    assert near(given.gap, both, given.gap_standard_error)
    assert given.gap == pytest.approx(given.bounds.gap, abs=1e-12)


def test_observations_need_joint_samples(target, joint):
    with pytest.raises(ValueError, match="give joint samples"):
        kl_divergences(target, exact_samples=joint.tokens)
    with pytest.raises(ValueError, match="one value for each of the"):
        kl_divergences(target, exact_samples=joint, log_z=[0.0, 1.0])
    with pytest.raises(ValueError, match="waits for no observation"):
        log_z_bounds_given(table_target(2, 2, seed=0), joint, num_particles=2)
