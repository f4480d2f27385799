"""A running average of what is learned: the noise of single updates is left out of the twist."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

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
