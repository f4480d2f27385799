"""How many exact samples a lesson waits for, by which it measures."""

from __future__ import annotations

from tsmc_widgets.targets.exact_draws import ExactDraws

HELD_OUT = 40
MOST_HELD_OUT = 160
PLENTY = 300
MOST_DRAWS = 5000


def enough(draws: ExactDraws) -> bool:
    """Whether training can begin: log Z is known well, or knowing it better would take too long."""
    if len(draws) < HELD_OUT:
        return False
    return len(draws) >= PLENTY or draws.proposed >= MOST_DRAWS
