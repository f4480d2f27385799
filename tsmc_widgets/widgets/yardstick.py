"""How many exact samples a lesson waits for, and what it learns from."""

from __future__ import annotations

from tsmc_widgets.learning.positives import ENOUGH, GrowingPool, Positives
from tsmc_widgets.learning.replay import ReplayedPositives
from tsmc_widgets.targets.exact_draws import ExactDraws

HELD_OUT = 40
POOL = 500
MOST_DRAWS = 5000


def enough(draws: ExactDraws) -> bool:
    """Whether training can begin: the pool is full, or filling it would take too long."""
    if len(draws) < HELD_OUT:
        return False
    return len(draws) >= HELD_OUT + POOL or draws.proposed >= MOST_DRAWS


def choose_source(draws: ExactDraws, seed: int) -> Positives:
    """The samples that are not held out, or what training draws itself where they are few."""
    if len(draws) >= HELD_OUT + ENOUGH:
        return GrowingPool(draws, seed, held_out=HELD_OUT)
    return ReplayedPositives(draws.target, seed)
