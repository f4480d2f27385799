"""Adam's learning rate: constant, as in the paper, or falling, which forgets less late noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tsmc_widgets.errors import check_integer


def _check(rate: float | int) -> None:
    if not (rate > 0 and math.isfinite(rate)):
        raise ValueError(f"learning_rate must be positive; got {rate!r}.")


@dataclass(frozen=True, slots=True)
class ConstantRate:
    """The same rate at every update (paper, section 6).

    Attributes:
        rate: Adam's learning rate.
    """

    rate: float | int

    def __post_init__(self) -> None:
        """Refuse rates that cannot be."""
        _check(self.rate)

    def at(self, update: int) -> float:
        """The rate of an update, counted from 0."""
        return float(self.rate)


@dataclass(frozen=True, slots=True)
class FallingRate:
    """rate / sqrt(1 + update / after): no end of the training needs to be known.

    Attributes:
        rate: of the first update.
        after: updates after which it has fallen to 0.7 of that.
    """

    rate: float | int
    after: int = 20

    def __post_init__(self) -> None:
        """Refuse rates that cannot be."""
        _check(self.rate)
        check_integer("after", self.after)

    def at(self, update: int) -> float:
        """The rate of an update, counted from 0."""
        return float(self.rate) / math.sqrt(1 + update / self.after)


Rate = ConstantRate | FallingRate

# What trains the shipped problems well without tuning.
DEFAULT_RATES: dict[str, Rate] = {
    "LinearHeadTwist": FallingRate(3e-3),
    "MLPHeadTwist": FallingRate(2e-3),
    "BodyTwist": FallingRate(2e-3),
    "LoRATwist": FallingRate(2e-3),
    "ConditionalHeadTwist": FallingRate(3e-3),
    "ConditionalBodyTwist": FallingRate(1e-3),
    "TableHeadTwist": ConstantRate(5e-2),
}
DEFAULT_RATE = FallingRate(1e-3)


def resolve_rate(learning_rate: Any, twist: Any) -> Rate:
    """The rate that was asked for; a number is constant, None takes the form's default."""
    if learning_rate is None:
        return DEFAULT_RATES.get(type(twist).__name__, DEFAULT_RATE)
    if isinstance(learning_rate, ConstantRate | FallingRate):
        return learning_rate
    if isinstance(learning_rate, bool) or not isinstance(learning_rate, float | int):
        raise TypeError(
            "learning_rate must be a number (constant), ConstantRate(rate) or "
            f"FallingRate(rate, after=20); got {learning_rate!r}."
        )
    return ConstantRate(learning_rate)
