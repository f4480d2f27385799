"""A twist to a power keeps the contract, the estimate's mean, and what is impossible."""

import math

import pytest
import torch

import tsmc_widgets as tw
from tsmc_widgets.models.tabular import TabularLM
from tsmc_widgets.testing import check_twist
from tsmc_widgets.twists import TableTwist
from tsmc_widgets.twists.lookahead import TemperedTwist


@pytest.fixture
def target():
    lm = TabularLM.markov([0.6, 0.4], [[0.7, 0.3], [0.5, 0.5]], symbols="ab")
    return tw.Target(lm, tw.ContainsToken("b"), prompt="a", num_steps=3)


@pytest.mark.parametrize("beta", [1, 0.5, 0.0, -1.0])
def test_contract(target, beta):
    twist = TemperedTwist(TableTwist.random(2, 4, seed=4, prompt_length=1), beta)
    check_twist(twist, target.lm, prompt_length=1, num_steps=4)


@pytest.mark.parametrize("beta", [0.5, -0.5])
def test_values_are_those_of_the_other_twist_times_beta(target, beta):
    inner = TableTwist.random(2, 3, seed=4, prompt_length=1)
    tokens = torch.tensor([[0, 1, 0, 1], [0, 0, 0, 1]])
    expected = beta * inner.log_psi(tokens, 1)
    assert torch.equal(TemperedTwist(inner, beta).log_psi(tokens, 1), expected)


@pytest.mark.parametrize("beta", [1.0, 0.0, -1.0])
def test_impossible_stays_impossible(beta):
    table = TableTwist([torch.tensor([-math.inf, -2.0])], prompt_length=1)
    log_psi = TemperedTwist(table, beta).log_psi(torch.tensor([[0, 0], [0, 1]]), 1)
    assert log_psi.tolist() == [[-math.inf], [-2.0 * beta]]


@pytest.mark.parametrize("beta", [math.inf, math.nan])
def test_power_must_be_finite(beta):
    with pytest.raises(ValueError, match=r"beta must be a number in \(-inf, inf\)"):
        TemperedTwist(TableTwist.random(2, 3, seed=0), beta)
