"""How many exact samples a lesson waits for, and what it learns from."""

from __future__ import annotations

from tsmc_widgets.learning.positives import COMMON, GrowingPool, Positives
from tsmc_widgets.learning.replay import ReplayedPositives
from tsmc_widgets.targets.exact_draws import ExactDraws

HELD_OUT = 40
POOL = 500


def enough(draws: ExactDraws) -> bool:
    """Whether training can begin: the pool is full, or filling it would take too long."""
    if len(draws) < HELD_OUT:
        return False
    rare = len(draws) < COMMON * draws.proposed
    return rare or len(draws) >= HELD_OUT + POOL


def choose_source(draws: ExactDraws, seed: int) -> Positives:
    """The samples that are not held out, or what training draws itself where they are rare."""
    common = len(draws) >= max(COMMON * draws.proposed, HELD_OUT + 1)
    if common:
        return GrowingPool(draws, seed, held_out=HELD_OUT)
    return ReplayedPositives(draws.target, seed)
