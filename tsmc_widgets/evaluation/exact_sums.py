"""Sums of probabilities without any rounding: numbers as whole multiples of 2**-1100."""

from __future__ import annotations

import math

BITS = 1100
LOG_UNIT = -BITS * math.log(2.0)


def units(log_value: float, *, up: bool = False) -> int:
    """exp(log_value) in units: the nearest double's value exactly; never 0 if ``up``.

    Values that underflow count as one unit if ``up`` and as none otherwise.
    """
    if log_value == -math.inf:
        return 0
    above, below = math.exp(min(log_value, 700.0)).as_integer_ratio()
    whole = (above << BITS) // below
    return max(1, whole) if up else whole


def log_of_units(count: int) -> float:
    """Log of a number of units, to the last digit wherever a double can hold the number."""
    share = count / (1 << BITS)
    if share > 1e-300:
        return math.log(share)
    return math.log(count) + LOG_UNIT if count > 0 else -math.inf
