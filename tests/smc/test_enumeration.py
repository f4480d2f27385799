"""E[Z_hat] = Z and conditional E[1/Z_hat] = 1/Z, by enumerating the algorithm itself."""

import math

import pytest
import torch
from smc.enumeration import (
    enumerate_runs,
    expected_inverse_z,
    expected_measure,
    expected_z,
)
from smc.toys import eos_target, table_target

from tsmc_widgets.models.tabular import TabularLM
from tsmc_widgets.smc.exact import EnumeratedOracle
from tsmc_widgets.smc.proposals import Base, ModelProposal, TwistInduced
from tsmc_widgets.smc.resampling import ESSBelow, EveryNSteps, Never
from tsmc_widgets.twists import TableTwist

RULES = [EveryNSteps(1), EveryNSteps(2), ESSBelow(0.7), ESSBelow(1.0), Never()]
SCHEMES = ["multinomial", "residual", "stratified", "systematic"]
PROPOSALS = {
    "base": Base(),
    "twist": TwistInduced(),
    "other twist": TwistInduced(TableTwist.random(2, 3, seed=8)),
    "model": ModelProposal(TabularLM.random(2, 3, seed=9)),
}
HOW = {"num_particles": 2, "twist": TableTwist.random(2, 3, seed=2)}


def z_of(target):
    return math.exp(EnumeratedOracle(target).log_z)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.describe())
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", PROPOSALS)
def test_forward_smc_is_unbiased(name, scheme, rule):
    target = table_target(2, 3, seed=1)
    z = expected_z(target, resampler=scheme, rule=rule, proposal=PROPOSALS[name], **HOW)
    assert z == pytest.approx(z_of(target), rel=1e-12)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.describe())
@pytest.mark.parametrize("name", PROPOSALS)
def test_conditional_smc_has_the_reciprocal_identity(name, rule):
    target = table_target(2, 3, seed=1)
    oracle = EnumeratedOracle(target)
    inverse = expected_inverse_z(target, oracle, rule=rule, proposal=PROPOSALS[name], **HOW)
    assert inverse == pytest.approx(math.exp(-oracle.log_z), rel=1e-12)


def test_reciprocal_identity_counts_only_forward_runs_that_live():
    """Where phi may be zero the identity is E[1/Z_hat] = P(forward Z_hat > 0) / Z."""
    target = table_target(2, 3, seed=3, zeros=0.5)
    oracle = EnumeratedOracle(target)
    chance, state, _ = enumerate_runs(target, **HOW)
    alive = float(chance[state.log_z > -math.inf].sum())
    assert 0.1 < alive < 0.95
    inverse = expected_inverse_z(target, oracle, **HOW)
    assert inverse == pytest.approx(alive * math.exp(-oracle.log_z), rel=1e-12)


@pytest.mark.parametrize("proposal", [Base(), TwistInduced()], ids=["base", "twist"])
def test_a_twist_may_be_zero_where_sigma_is(proposal):
    target = table_target(2, 3, seed=5, zeros=0.6)
    oracle = EnumeratedOracle(target)
    how = {"num_particles": 2, "twist": oracle.optimal_twist(), "proposal": proposal}
    chance, state, _ = enumerate_runs(target, **how)
    alive = float(chance[state.log_z > -math.inf].sum())
    assert (alive < 0.95) == (proposal == Base())
    inverse = expected_inverse_z(target, oracle, **how)
    assert inverse == pytest.approx(alive * math.exp(-oracle.log_z), rel=1e-12)


def test_a_twist_that_is_zero_where_sigma_is_not_bounds_only_what_it_allows():
    """Z times sigma's mass of texts with psi > 0 takes the place of Z, on both sides."""
    target = table_target(2, 2, seed=1)
    oracle = EnumeratedOracle(target)
    twist = TableTwist([torch.tensor([-math.inf, 0.0]).double(), torch.zeros(2, 2).double()])
    how = {"num_particles": 2, "twist": twist, "proposal": Base()}
    with pytest.raises(ValueError, match="on the retained path at step 1 of run"):
        expected_inverse_z(target, oracle, **how)
    allowed = oracle.tokens[:, 0] == 1
    mass = float(oracle.log_sigma[allowed].exp().sum())
    chance, state, _ = enumerate_runs(target, **how)
    alive = float(chance[state.log_z > -math.inf].sum())
    assert float((chance * state.log_z.exp()).sum()) == pytest.approx(mass * z_of(target))
    chance, state, _ = enumerate_runs(
        target,
        retained=oracle.tokens[allowed],
        retained_chance=oracle.log_sigma[allowed].exp() / mass,
        **how,
    )
    inverse = float((chance * (-state.log_z).exp()).sum())
    assert inverse == pytest.approx(alive / (mass * z_of(target)), rel=1e-12)
    assert inverse * z_of(target) > 1.01


@pytest.mark.parametrize("proposal", [Base(), TwistInduced()], ids=["base", "twist"])
def test_both_identities_hold_with_an_absorbing_eos(proposal):
    target = eos_target(num_steps=2)
    oracle = EnumeratedOracle(target)
    settings = {
        "num_particles": 2,
        "twist": TableTwist.random(3, 2, seed=2, prompt_length=2),
        "proposal": proposal,
    }
    assert expected_z(target, **settings) == pytest.approx(math.exp(oracle.log_z), rel=1e-12)
    inverse = expected_inverse_z(target, oracle, **settings)
    assert inverse == pytest.approx(math.exp(-oracle.log_z), rel=1e-12)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_weighted_samples_are_properly_weighted(scheme):
    """E[Z_hat sum_k W_k f(s^k)] = Z E_sigma[f] for every f: here for each sequence's indicator."""
    target = table_target(2, 3, seed=3, zeros=0.5)
    oracle = EnumeratedOracle(target)
    found = expected_measure(target, resampler=scheme, **HOW)
    expected = oracle.log_sigma.exp() * math.exp(oracle.log_z)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    z = expected_z(target, resampler=scheme, **HOW)
    assert z == pytest.approx(math.exp(oracle.log_z), rel=1e-12)
