"""How many exact samples a lesson waits for."""

from __future__ import annotations

from tsmc_widgets.targets.exact_draws import ExactDraws

HELD_OUT = 40
POOL = 500
MOST_DRAWS = 5000


def enough(draws: ExactDraws) -> bool:
    """Whether training can begin: the pool is full, or filling it would take too long."""
    if len(draws) < HELD_OUT:
        return False
    return len(draws) >= HELD_OUT + POOL or draws.proposed >= MOST_DRAWS
