"""How many exact samples a lesson waits for, and what it learns from."""

from __future__ import annotations

from tsmc_widgets.learning.positives import GrowingPool, Positives, WeightedPositives
from tsmc_widgets.targets.exact_draws import ExactDraws

HELD_OUT = 40
POOL = 500
MOST_DRAWS = 5000


def enough(draws: ExactDraws) -> bool:
    """Whether training can begin: the pool is full, or filling it would take too long."""
    if len(draws) < HELD_OUT:
        return False
    expected = draws.proposed * (HELD_OUT + POOL) / len(draws)
    return len(draws) >= HELD_OUT + POOL or expected > MOST_DRAWS


def choose_source(draws: ExactDraws, seed: int) -> Positives:
    """The samples that are not held out, or the weighted batch where they are few."""
    few = len(draws) - HELD_OUT < POOL // 2
    return WeightedPositives() if few else GrowingPool(draws, seed, held_out=HELD_OUT)
