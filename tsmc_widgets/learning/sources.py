"""Which samples of sigma a training learns from: exact ones, or weighed and replayed batches."""

from __future__ import annotations

from tsmc_widgets.errors import PotentialError
from tsmc_widgets.learning.positives import POOL_SIZE, GrowingPool, Positives
from tsmc_widgets.learning.replay import ReplayedPositives
from tsmc_widgets.targets.exact_draws import ExactDraws
from tsmc_widgets.targets.target import Target

# Exact samples to begin with, and the draws from p0 that looking for them may cost: where these are
# too few, samples are too rare for a pool.
ENOUGH = 50
PILOT_BUDGET = 1024
PLENTY = 0.05
"""Share of p0's texts that are kept, from which on a pool grows about as fast as it is read."""


def choose_positives(target: Target, *, seed: int, size: int = POOL_SIZE) -> Positives:
    """What suits the target, after a pilot that draws from p0; see ``positives_from``."""
    draws = ExactDraws(target, seed)
    try:
        while len(draws) < ENOUGH and draws.proposed < PILOT_BUDGET:
            draws.extend()
    except PotentialError:
        # Without a bound on phi nothing can be rejected.
        return ReplayedPositives(target, seed)
    return positives_from(draws, seed=seed, size=size)


def positives_from(
    draws: ExactDraws, *, seed: int, size: int = POOL_SIZE, held_out: int = 0
) -> Positives:
    """A growing pool where p0 finds samples often, and else replayed batches.

    A pool that grows more slowly than it is learned from would be learned by heart.

    Args:
        draws: what a pilot has found.
        seed: of the orders, and of the batches.
        size: samples after which the pool grows no more.
        held_out: first samples, which are never dealt.
    """
    if len(draws) - held_out < ENOUGH or len(draws) < PLENTY * draws.proposed:
        return ReplayedPositives(draws.target, seed)
    return GrowingPool(draws, seed, held_out=held_out, size=size)
