"""Learning rates: what was asked for, at every update, and after a resumption too."""

import math

import pytest
from learning.trainers import make_trainer, resumed

from tsmc_widgets.learning import ConstantRate, FallingRate
from tsmc_widgets.learning.rates import DEFAULT_RATE, DEFAULT_RATES, resolve_rate
from tsmc_widgets.twists.storage import FORMS


def adam_rates(trainer, updates):
    rates = []
    for _ in trainer.updates(updates):
        (group,) = trainer._optimiser.param_groups
        rates.append(group["lr"])
    return rates


def test_a_number_is_constant():
    assert adam_rates(make_trainer(learning_rate=0.1), 4) == [0.1] * 4
    assert resolve_rate(1, None) == ConstantRate(1)
    with pytest.raises(TypeError, match=r"FallingRate\(rate, after=20\); got 'fast'"):
        resolve_rate("fast", None)


def test_a_falling_rate_falls_by_the_root():
    rates = adam_rates(make_trainer(learning_rate=FallingRate(0.1, after=2)), 7)
    assert rates == [0.1 / math.sqrt(1 + update / 2) for update in range(7)]
    assert rates[2] == pytest.approx(0.1 / math.sqrt(2))


def test_a_resumed_training_goes_on_falling(tmp_path):
    def make():
        return make_trainer(learning_rate=FallingRate(0.1, after=1))

    _, rest = resumed(make, tmp_path / "training", 2, 4)
    assert rest._optimiser.param_groups[0]["lr"] == FallingRate(0.1, after=1).at(5)


def test_every_default_names_a_form():
    assert set(DEFAULT_RATES) <= set(FORMS)
    assert resolve_rate(None, object()) == DEFAULT_RATE


@pytest.mark.parametrize("rate", [0.0, -1.0, math.inf, math.nan])
def test_impossible_rates(rate):
    for kind in (ConstantRate, FallingRate):
        with pytest.raises(ValueError, match=r"learning_rate must be a number in \(0, inf\)"):
            kind(rate)
    with pytest.raises(ValueError, match="after"):
        FallingRate(0.1, after=0)
