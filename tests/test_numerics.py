"""Arithmetic of log weights over hundreds of nats, with weights of zero."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import logsumexp as scipy_logsumexp
from strategies import LOG_WEIGHT, log_weights

from tsmc_widgets.numerics import (
    ess,
    group_logsumexp,
    log1mexp,
    logmeanexp,
    logsumexp,
    normalise,
)

NOTHING = torch.full((2, 3), -math.inf, dtype=torch.float64)


@given(log_weights())
def test_sums_and_means_are_those_of_scipy(row):
    expected = scipy_logsumexp(row.numpy())
    assert float(logsumexp(row)) == pytest.approx(expected, rel=1e-14, abs=1e-13)
    mean = expected - math.log(len(row))
    assert float(logmeanexp(row)) == pytest.approx(mean, rel=1e-14, abs=1e-13)


@given(log_weights(), st.data())
def test_sums_of_groups_are_those_of_each_alone(row, data):
    size = len(row)
    places = st.lists(st.integers(0, 2), min_size=size, max_size=size)
    group = torch.unique(torch.tensor(data.draw(places)), return_inverse=True)[1]
    both = group_logsumexp(torch.stack([row, row.flip(0)], dim=1), group)
    for column, values in enumerate((row, row.flip(0))):
        alone = [float(logsumexp(values[group == g])) for g in range(len(both))]
        assert both[:, column].tolist() == pytest.approx(alone, rel=1e-14, abs=1e-13)
        assert torch.equal(both[:, column], group_logsumexp(values, group))


@given(log_weights())
def test_normalised_weights(row):
    weights = normalise(row)
    assert float(weights.sum()) == pytest.approx(1, abs=1e-14)
    assert bool((weights >= 0).all())
    assert bool((weights[row == -math.inf] == 0).all())
    expected = np.exp(row.numpy() - scipy_logsumexp(row.numpy()))
    # Below the smallest normal number there are no digits to compare.
    assert weights.numpy() == pytest.approx(expected, rel=1e-12, abs=np.finfo(float).tiny)


@given(log_weights())
def test_ess_lies_between_1_and_the_number_of_particles(row):
    size = float(ess(row))
    assert 1 - 1e-14 <= size <= len(row)
    weights = normalise(row)
    assert size == pytest.approx(1 / float((weights**2).sum()), rel=1e-14)


@given(log_weights(), st.floats(-800, 800))
def test_a_constant_factor_changes_log_sums_only(row, shift):
    # Adding the shift rounds each entry by itself, by up to 2e-13 at 1600.
    assert float(logsumexp(row + shift) - logsumexp(row)) == pytest.approx(shift, abs=1e-12)
    assert normalise(row + shift).numpy() == pytest.approx(normalise(row).numpy(), abs=1e-12)
    assert float(ess(row + shift)) == pytest.approx(float(ess(row)), rel=1e-11)


@given(st.integers(1, 1000), st.floats(-800, 800))
def test_equal_weights(size, value):
    row = torch.full((size,), value, dtype=torch.float64)
    assert float(ess(row)) == pytest.approx(size, rel=1e-12)
    assert float(ess(row)) <= size
    assert float(logmeanexp(row)) == pytest.approx(value, abs=1e-12)


@given(st.floats(-800, 800), st.integers(0, 4))
def test_one_particle_that_carries_all(value, place):
    row = torch.full((5,), -math.inf, dtype=torch.float64)
    row[place] = value
    assert normalise(row).tolist() == [float(k == place) for k in range(5)]
    assert float(ess(row)) == 1
    assert float(logsumexp(row)) == value


@given(st.lists(st.lists(LOG_WEIGHT, min_size=4, max_size=4), min_size=1, max_size=3))
def test_rows_of_a_batch_are_apart(rows):
    table = torch.tensor(rows, dtype=torch.float64)
    for function in (logsumexp, logmeanexp, normalise, ess):
        alone = torch.stack([function(row) for row in table])
        assert torch.equal(function(table), alone)
        assert not bool(alone.isnan().any())


def test_all_weights_zero():
    assert logsumexp(NOTHING).tolist() == [-math.inf] * 2
    assert logmeanexp(NOTHING).tolist() == [-math.inf] * 2
    assert normalise(NOTHING).tolist() == [[0.0] * 3] * 2
    assert ess(NOTHING).tolist() == [0.0] * 2


def test_weights_are_float64_whatever_comes():
    row = torch.tensor([-800.0, 0.0, 1e-3])
    assert normalise(row).dtype == ess(row).dtype == torch.float64


def test_log_weights_are_left_as_they_are():
    row = torch.tensor([-800.0, 3.0, -math.inf], dtype=torch.float64)
    for function in (logsumexp, logmeanexp, normalise, ess):
        function(row)
    assert row.tolist() == [-800.0, 3.0, -math.inf]


@given(st.floats(-700, -1e-300))
def test_log1mexp_is_accurate_at_both_ends(log_p):
    expected = math.log(-math.expm1(log_p)) if log_p > -0.5 else math.log1p(-math.exp(log_p))
    found = float(log1mexp(torch.tensor(log_p, dtype=torch.float64)))
    assert found == pytest.approx(expected, rel=1e-13, abs=0)


def test_log1mexp_at_the_ends():
    assert log1mexp(torch.tensor([0.0, -math.inf])).tolist() == [-math.inf, 0.0]
    both = torch.tensor([-1e-12, -math.log(2.0), -50.0], dtype=torch.float64)
    assert torch.expm1(log1mexp(both)).neg().log().tolist() == pytest.approx(both.tolist())


def test_log1mexp_has_a_gradient_everywhere():
    log_p = torch.tensor([-1e-9, -0.7, -800.0], dtype=torch.float64, requires_grad=True)
    log1mexp(log_p).sum().backward()
    assert log_p.grad.tolist() == pytest.approx([-1e9, -1 / math.expm1(0.7), 0.0], rel=1e-6)
