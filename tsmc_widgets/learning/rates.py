"""Adam's learning rate: constant, as in the paper, or falling, which forgets less late noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tsmc_widgets import numerics
from tsmc_widgets.errors import check_integer
from tsmc_widgets.learning.objectives import RECIPES
from tsmc_widgets.learning.samples import Samples


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


LEAST_NO = 0.01
"""Least 1 - psi, about, at which a twist with psi < 1 starts."""


def set_level(
    twist: Any,
    batch: Samples,
    methods: Iterable[str],
    average: Callable[[float], float] = float,
) -> float | None:
    """Start a fresh twist at the mean of phi in its first batch; q stays p0.

    From psi = 1 a regression on phi would first lower psi wherever there are texts, and so raise
    what it has not seen.

    Args:
        twist: one that has learned something stays as it is.
        batch: texts of p0, weighted by phi.
        methods: names of losses; nothing is done where none of them fixes the level.
        average: of a number over processes that share the training.

    Returns:
        The level in nats; None where psi stays as it is, as without a text of phi > 0.
    """
    start_at = getattr(twist, "start_at", None)
    fixed = any(name in RECIPES and RECIPES[name].fixes_level for name in methods)
    if start_at is None or not fixed:
        return None
    levels = numerics.logmeanexp(batch.log_weights_by_group)
    levels = levels[levels.isfinite()]
    share = average(float(len(levels) > 0))
    if share == 0:
        return None
    level = average(float(levels.mean()) if len(levels) else 0.0) / share
    if twist.link == "sigmoid":
        level = min(level, -LEAST_NO)
    return level if start_at(level) else None


DEFAULT_AVERAGING = 0.96
WARM_UP = 10
"""The average is young: update t counts for at least one part in (WARM_UP + t) / WARM_UP."""


def check_averaging(averaging: float | int | None) -> float:
    """The weight of the past in each step of the average; None takes the default.

    Raises:
        ValueError: it is not in [0, 1).
    """
    if averaging is None:
        return DEFAULT_AVERAGING
    if isinstance(averaging, bool) or not isinstance(averaging, float | int):
        raise TypeError(f"averaging must be a number in [0, 1), 0 for none; got {averaging!r}.")
    if not 0 <= averaging < 1:
        raise ValueError(f"averaging must be in [0, 1), 0 for none; got {averaging!r}.")
    return float(averaging)


class RunningAverage:
    """Parameters that hold their exponential average, except while they learn.

    Args:
        parameters: those that are averaged, in place.
        decay: weight of the past in [0, 1); 0 averages nothing. It is less while the average is
            young, so that the values at the start are soon forgotten.

    Attributes:
        learning: where the parameters are in learning; their average is what one reads.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float) -> None:
        self.decay = decay
        self._parameters = [p for p in parameters if p.requires_grad] if decay else []
        self.learning = [p.detach().clone() for p in self._parameters]
        self._shown = [p.detach().clone() for p in self._parameters]

    def next(self) -> list[Tensor]:
        """A copy of where the parameters will be when they next learn."""
        pairs = zip(self._parameters, self._shown, strict=True)
        moved = [not torch.equal(p, shown) for p, shown in pairs]
        here = zip(self._parameters, self.learning, moved, strict=True)
        return [(p.detach() if by_hand else value).clone() for p, value, by_hand in here]

    def load(self, learning: Iterable[Tensor]) -> None:
        """Go on from these; the parameters hold their average."""
        pairs = zip(self._parameters, learning, strict=True)
        self.learning = [value.to(p, copy=True) for p, value in pairs]
        self._shown = [p.detach().clone() for p in self._parameters]

    @contextmanager
    def set_aside(self, done: int) -> Iterator[None]:
        """Let the parameters learn; then move their average, after ``done`` earlier updates.

        Parameters that somebody else has set since are learned from as they stand.
        """
        self._begin()
        yield
        self._end(min(self.decay, (1 + done) / (WARM_UP + done)))

    @torch.no_grad()
    def _begin(self) -> None:
        for p, value, shown in zip(self._parameters, self.learning, self._shown, strict=True):
            if torch.equal(p, shown):
                p.copy_(value)
            else:
                shown.copy_(p)

    @torch.no_grad()
    def _end(self, decay: float) -> None:
        if all(torch.equal(*pair) for pair in zip(self._parameters, self.learning, strict=True)):
            # Nothing was learned: the average stays too.
            decay = 1.0
        for p, value, shown in zip(self._parameters, self.learning, self._shown, strict=True):
            value.copy_(p)
            p.copy_(shown.lerp_(value, 1 - decay))
