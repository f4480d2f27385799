"""Adam's learning rate, the initial level of psi, and the running average of parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tsmc_widgets import numerics
from tsmc_widgets.errors import NoSignalError, check_integer, check_number, quoted
from tsmc_widgets.learning.objectives import RECIPES
from tsmc_widgets.learning.samples import Samples
from tsmc_widgets.twists.protocol import as_twist


@dataclass(frozen=True, slots=True)
class ConstantRate:
    """The same rate at every update (paper, section 6).

    Attributes:
        rate: Adam's learning rate.
    """

    rate: float | int

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_number("learning_rate", self.rate, "(0, inf)")

    def at(self, update: int) -> float:
        """The rate of an update, counted from 0."""
        return float(self.rate)


@dataclass(frozen=True, slots=True)
class FallingRate:
    """rate / sqrt(1 + update / after): needs no number of updates in advance.

    Attributes:
        rate: of the first update.
        after: updates after which it has fallen to 0.7 of that.
    """

    rate: float | int
    after: int = 20

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_number("learning_rate", self.rate, "(0, inf)")
        check_integer("after", self.after)

    def at(self, update: int) -> float:
        """The rate of an update, counted from 0."""
        return float(self.rate) / math.sqrt(1 + update / self.after)


Rate = ConstantRate | FallingRate

# What trains the shipped problems well without tuning.
DEFAULT_RATES: dict[str, Rate] = {
    "LinearHeadTwist": FallingRate(3e-3),
    "MLPHeadTwist": FallingRate(2e-3),
    "TiedHeadTwist": FallingRate(0.1, after=50),
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
    if isinstance(learning_rate, float | int):
        return ConstantRate(learning_rate)
    if not isinstance(learning_rate, ConstantRate | FallingRate):
        raise TypeError(
            "learning_rate must be a number (constant), ConstantRate(rate) or "
            f"FallingRate(rate, after=20); got {quoted(learning_rate)}."
        )
    return learning_rate


TIED_STEPS = 16
"""Steps of path consistency for each batch of a tied head: see docs/learning_on_real_models.md."""


def resolve_steps(steps: int | None, twist: Any, methods: Iterable[str]) -> int:
    """The steps on each batch that were asked for, or the usual ones."""
    if steps is not None:
        return check_integer("steps", steps)
    twist = as_twist(twist)
    return TIED_STEPS if twist.is_tied and twist.link == "log" and {*methods} == {"rl"} else 1


MIN_COMPLEMENT = 0.01
"""Smallest 1 - psi / bound, about, at which a twist with a bound starts."""


def set_level(
    twist: Any,
    batch: Samples,
    methods: Iterable[str],
    *,
    log_bound: float | None = None,
    average: Callable[[float], float] = float,
) -> None:
    """Start a fresh twist at the mean of phi in its first batch; q stays p0.

    Losses that read phi take this as its scale. From psi = 1 they would first move psi at the
    sequences of the batch, relative to all others.

    Args:
        twist: one that has learned something stays as it is.
        batch: texts of p0, weighted by phi.
        methods: names of losses; nothing is done where none of them reads phi.
        log_bound: of phi, in nats, for a twist with the sigmoid link; None for phi <= 1.
        average: of a number over processes that share the training.

    Raises:
        NoSignalError: no text of any process has phi > 0, so that its scale is not known yet.
    """
    twist = as_twist(twist)
    if not (twist.is_fresh and any(RECIPES[name].reads_phi for name in methods)):
        return
    levels = numerics.logmeanexp(batch.log_weights_by_group)
    levels = levels[levels.isfinite()]
    share = average(float(len(levels) > 0))
    if share == 0:
        raise NoSignalError("no text so far has phi > 0, so that the scale of phi is not known.")
    level = average(float(levels.mean()) if len(levels) else 0.0) / share
    if twist.link == "sigmoid":
        bound = 0.0 if log_bound is None else log_bound
        twist.start_at(min(level, bound - MIN_COMPLEMENT), bound)
    else:
        twist.start_at(level)


DEFAULT_AVERAGING = 0.96
WARM_UP = 10
"""Update t counts for at least (WARM_UP - 1) / (WARM_UP + t) of the average, t from 0."""


class RunningAverage:
    """Parameters that hold their exponential average, except while they learn.

    Args:
        parameters: those that are averaged, in place.
        decay: weight of the past in [0, 1); 0 averages nothing, None is ``DEFAULT_AVERAGING``. It
            is less in the first updates, so that the values at the start soon count for little.

    Attributes:
        learning: where the parameters are in learning; their average is what one reads.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float | int | None) -> None:
        decay = DEFAULT_AVERAGING if decay is None else decay
        check_number("averaging", decay, "[0, 1)")
        self.decay = float(decay)
        self._parameters = [p for p in parameters if p.requires_grad] if decay else []
        self.learning = [p.detach().clone() for p in self._parameters]
        self._shown = [p.detach().clone() for p in self._parameters]

    def next(self) -> list[Tensor]:
        """A copy of where the parameters will be when they next learn."""
        pairs = zip(self._parameters, self._shown, strict=True)
        moved = [not torch.equal(p, shown) for p, shown in pairs]
        here = zip(self._parameters, self.learning, moved, strict=True)
        return [(p.detach() if was_set else value).clone() for p, value, was_set in here]

    def load(self, learning: Iterable[Tensor]) -> None:
        """Go on from these; the parameters hold their average."""
        pairs = zip(self._parameters, learning, strict=True)
        self.learning = [value.to(p, copy=True) for p, value in pairs]
        self._shown = [p.detach().clone() for p in self._parameters]

    @contextmanager
    def set_aside(self, done: int) -> Iterator[None]:
        """Let the parameters learn; then move their average, after ``done`` earlier updates.

        Parameters that were set from outside since then are learned from as they stand.
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
