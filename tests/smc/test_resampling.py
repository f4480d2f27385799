"""Resampling schemes and the rules that say when."""

import math

import pytest
import torch
from hypothesis import given, settings
from smc.enumeration import cuts_of_weights, pieces
from strategies import log_weights, weights_and_uniforms

from tsmc_widgets.numerics import normalise
from tsmc_widgets.smc.resampling import (
    SCHEMES,
    Always,
    ESSBelow,
    EveryNSteps,
    Never,
    ResampleRule,
    invert_cdf,
    resample,
    resolve_rule,
)
from tsmc_widgets.testing import check_resampler

NAMES = sorted(SCHEMES)


def copies(ancestors):
    """How often each particle is an ancestor."""
    counts = torch.zeros(ancestors.shape, dtype=torch.int64)
    return counts.scatter_add(1, ancestors, torch.ones_like(ancestors))


def mean_copies(name, weights):
    """The expected number of copies, by integrating over the uniforms.

    A slot's ancestor depends on one uniform and changes at the cuts only, and a mean of sums needs
    no joint distribution: one uniform for all slots gives it.
    """
    middles, lengths = pieces(cuts_of_weights(weights.unsqueeze(0)))
    uniforms = middles[0].unsqueeze(1).expand(-1, len(weights))
    ancestors = SCHEMES[name](weights.expand(len(uniforms), -1), uniforms)
    return lengths[0] @ copies(ancestors).double()


@pytest.mark.parametrize("name", NAMES)
def test_contract(name):
    for size, seed in ((2, 0), (5, 1), (16, 2)):
        check_resampler(SCHEMES[name], num_particles=size, seed=seed)


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None)
@given(log_weights())
def test_expected_copies_are_k_w(name, row):
    weights = normalise(row)
    size = len(row)
    # Residual resampling rounds K w where it is within 1e-13 K of an integer.
    torch.testing.assert_close(mean_copies(name, weights), size * weights, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None)
@given(weights_and_uniforms())
def test_ancestors_are_alive_and_runs_are_apart(name, case):
    row, uniforms = case
    ancestors = resample(row, uniforms, name)
    runs, size = row.shape
    assert ancestors.shape == (runs, size)
    assert ancestors.dtype == torch.int64
    for run in range(runs):
        alone = resample(row[run : run + 1], uniforms[run : run + 1], name)
        assert torch.equal(alone[0], ancestors[run])
        if row[run].max() == -math.inf:
            assert ancestors[run].tolist() == list(range(size))
        else:
            # A weight hundreds of nats below the others is zero in float64.
            assert bool((normalise(row[run])[ancestors[run]] > 0).all())


@pytest.mark.parametrize("name", ["residual", "stratified", "systematic"])
@settings(deadline=None)
@given(weights_and_uniforms())
def test_low_variance_schemes_stay_near_k_w(name, case):
    row, uniforms = case
    alive = row.max(1).values > -math.inf
    weights = normalise(row)[alive]
    found = copies(resample(row, uniforms, name))[alive]
    expected = weights * row.shape[1]
    if name == "residual":
        assert bool((found >= torch.floor(expected - 1e-8)).all())
    else:
        reach = 2 if name == "stratified" else 1
        assert bool(((found - expected).abs() < reach + 1e-8).all())


@pytest.mark.parametrize("name", ["residual", "stratified", "systematic"])
@pytest.mark.parametrize("size", [1, 3, 7, 49, 1000])
def test_equal_weights_copy_each_particle_once(name, size):
    """Also where K * (1 / K) is a rounding error below 1."""
    generator = torch.Generator().manual_seed(0)
    uniforms = torch.rand(20, size, generator=generator, dtype=torch.float64)
    ancestors = resample(torch.zeros(20, size, dtype=torch.float64), uniforms, name)
    assert torch.equal(ancestors.sort(1).values, torch.arange(size).expand(20, size))


def test_residual_resampling_owes_whole_copies():
    tenths = torch.tensor([[0.1, 0.2, 0.7, 0, 0, 0, 0, 0, 0, 0]], dtype=torch.float64)
    for value in (0.0, 0.3, 1 - 2.0**-53):
        found = copies(SCHEMES["residual"](tenths, torch.full_like(tenths, value)))
        assert found.tolist() == [[1, 2, 7, 0, 0, 0, 0, 0, 0, 0]]


def test_by_hand():
    weights = torch.tensor([[0.5, 0.0, 0.25, 0.25]], dtype=torch.float64)
    uniforms = torch.tensor([[0.6, 0.4, 0.0, 0.999]], dtype=torch.float64)
    found = {name: SCHEMES[name](weights, uniforms)[0].tolist() for name in NAMES}
    assert found == {
        "multinomial": [2, 0, 0, 3],
        "residual": [0, 0, 2, 3],
        "stratified": [0, 0, 2, 3],
        "systematic": [0, 0, 2, 3],
    }


def test_inversion_at_its_edges():
    mass = torch.tensor([[0.0, 2.0, 0.0, 6.0, 0.0]])
    uniforms = torch.tensor([[0.0, 0.25 - 1e-12, 0.25, 1 - 2.0**-53]], dtype=torch.float64)
    assert invert_cdf(mass, uniforms).tolist() == [[1, 1, 3, 3]]
    tiny = torch.full((1, 10), 0.1, dtype=torch.float64)
    assert int(invert_cdf(tiny, torch.tensor([[1 - 2.0**-53]], dtype=torch.float64))) == 9


def due(rule, step, ess, num_particles=10):
    assert isinstance(rule, ResampleRule)
    return rule.due(step, torch.tensor(ess, dtype=torch.float64), num_particles).tolist()


def test_ess_rule():
    assert due(ESSBelow(), 2, [1.0, 4.999, 5.0, 10.0]) == [True, True, False, False]
    assert due(ESSBelow(0.0), 2, [1.0, 10.0]) == [False, False]
    assert due(ESSBelow(1.0), 2, [9.999, 10.0, 10 * (1 - 1e-15)]) == [True, False, False]


def test_rules_by_step():
    assert [due(EveryNSteps(3), t, [1.0])[0] for t in range(2, 9)] == [
        False, False, True, False, False, True, False,
    ]  # fmt: skip
    assert all(due(Always(), t, [10.0, 1.0]) == [True, True] for t in range(2, 6))
    assert due(Never(), 5, [1.0, 10.0]) == [False, False]


def test_rules_describe_themselves():
    rules = (ESSBelow(0.25), Always(), EveryNSteps(2), Never())
    assert [rule.describe() for rule in rules] == [
        "ESS < 0.25 K", "every step", "every 2 steps", "never",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "threshold", "expected"),
    [
        (None, None, ESSBelow(0.5)),
        (None, 0.8, ESSBelow(0.8)),
        ("ess", None, ESSBelow(0.5)),
        ("always", None, EveryNSteps(1)),
        ("never", None, Never()),
        (EveryNSteps(2), None, EveryNSteps(2)),
    ],
)
def test_rules_by_name(rule, threshold, expected):
    assert resolve_rule(rule, threshold) == expected


@pytest.mark.parametrize(
    ("n", "message"), [(0, "n must be an integer of at least 1; got 0"), (1.5, "1.5")]
)
def test_wrong_periods_are_refused(n, message):
    with pytest.raises((ValueError, TypeError), match=message):
        EveryNSteps(n)
