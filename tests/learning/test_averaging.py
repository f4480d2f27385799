"""The twist holds the running average of what is learned, and nothing else changes."""

import math

import pytest
import torch
from learning.tables import unit_target
from learning.trainers import divergence, make_trainer, parameters

from tsmc_widgets.learning.positives import ReplayedPositives
from tsmc_widgets.learning.rates import WARM_UP, ConstantRate


def test_parameters_are_the_average_of_those_that_learn():
    plain, averaged = (make_trainer(seed=3, averaging=decay) for decay in (0.0, 0.9))
    expected = parameters(plain).double()
    for done in range(120):
        plain.update()
        averaged.update()
        assert plain.history[-1].losses == averaged.history[-1].losses
        learned = parameters(plain)
        assert torch.equal(torch.cat([p.reshape(-1) for p in averaged._average.learning]), learned)
        decay = min(0.9, (1 + done) / (WARM_UP + done))
        expected = decay * expected + (1 - decay) * learned.double()
        assert torch.allclose(parameters(averaged).double(), expected, rtol=0, atol=1e-6)
    assert not torch.equal(parameters(averaged), learned)


def test_the_average_is_nearer_to_sigma():
    """At a constant rate Adam never comes to rest; its average does."""
    gains = []
    for seed in range(8):
        trainer = make_trainer(
            seed=seed,
            averaging=0.96,
            learning_rate=ConstantRate(0.2),
            # Two batches, whose noise stays.
            positives=ReplayedPositives(unit_target(), seed, on_policy_ess=2.0),
        )
        list(trainer.updates(80))
        averaged = divergence(trainer.target, trainer.twist)
        # Where a training without an average ends, to the bit, as the test above says.
        with torch.no_grad():
            for own, learned in zip(
                trainer.twist.parameters(), trainer._average.learning, strict=True
            ):
                own.copy_(learned)
        gains.append(divergence(trainer.target, trainer.twist) - averaged)
    gains = torch.tensor(gains)
    assert float(gains.mean() / gains.std() * math.sqrt(len(gains))) > 4.0


def test_what_somebody_set_is_learned_from():
    trainer, fresh = (make_trainer(seed=5) for _ in range(2))
    list(trainer.updates(5))
    start = {
        name: torch.full_like(value, 0.25) for name, value in trainer.twist.state_dict().items()
    }
    for each in (trainer, fresh):
        each.twist.load_state_dict(start)
    assert all(bool((p == 0.25).all()) for p in trainer.twist.parameters())
    with trainer._average.set_aside(5):
        assert all(bool((p == 0.25).all()) for p in trainer.twist.parameters())


def test_a_skipped_update_leaves_the_average():
    trainer = make_trainer(seed=2)
    list(trainer.updates(5))
    before = parameters(trainer)
    with trainer._average.set_aside(5):
        assert not torch.equal(parameters(trainer), before)
    assert torch.equal(parameters(trainer), before)


@pytest.mark.parametrize("averaging", [1.0, -0.1, math.nan, True])
def test_values_that_cannot_be(averaging):
    with pytest.raises(ValueError, match=r"averaging must be a number in \[0, 1\); got"):
        make_trainer(averaging=averaging)
