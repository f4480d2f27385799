"""Which samples of sigma a training learns from."""

import pytest
import torch
from learning.test_trainer import unit_target

from tsmc_widgets.learning.positives import GrowingPool
from tsmc_widgets.learning.replay import ReplayedPositives
from tsmc_widgets.learning.sources import PLENTY, choose_positives, positives_from
from tsmc_widgets.targets.exact_draws import ExactDraws


def rarer(drop):
    """The toy with phi smaller by a factor exp(-drop) than its known bound."""
    target = unit_target()
    target.potential.log_table -= drop
    return target


@pytest.mark.parametrize(
    ("drop", "kind"), [(0.0, GrowingPool), (3.0, ReplayedPositives), (12.0, ReplayedPositives)]
)
def test_a_pool_where_rejection_is_cheap(drop, kind):
    assert type(choose_positives(rarer(drop), seed=0)) is kind


def test_without_a_bound_nothing_is_rejected():
    target = unit_target()
    target.potential.log_phi_max = None
    assert isinstance(choose_positives(target, seed=0), ReplayedPositives)


def test_held_out_samples_are_not_dealt():
    draws = ExactDraws(unit_target(), 0)
    while len(draws) < 120:
        draws.extend()
    assert len(draws) >= PLENTY * draws.proposed
    pool = positives_from(draws, seed=0, held_out=30)
    assert pool.held_out == 30
    assert torch.equal(pool.tokens, draws.tokens[30:])
    few = positives_from(draws, seed=0, held_out=len(draws) - 10)
    assert isinstance(few, ReplayedPositives)
