"""How PPO is set: clipping, epochs, and what leaving p0 costs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from tsmc_widgets.errors import check_integer


@dataclass(frozen=True, slots=True)
class FixedKL:
    """A nat of KL(q || p0) costs always the same.

    The optimum is q proportional to p0 phi^(1 / coefficient): sigma itself at 1, and another
    distribution at every other value.

    Attributes:
        coefficient: nats of log phi that a nat of KL costs.
    """

    coefficient: float | int = 1.0

    def __post_init__(self) -> None:
        """Refuse what is no cost."""
        _check_positive("coefficient", self.coefficient)

    @property
    def first(self) -> float:
        """The coefficient of the first update."""
        return float(self.coefficient)

    def after(self, coefficient: float, kl: float) -> float:
        """The coefficient of the next update: the same."""
        return coefficient


@dataclass(frozen=True, slots=True)
class AdaptiveKL:
    """The cost of a nat is steered so that KL(q || p0) comes to ``target`` (Ziegler et al. 2019).

    This changes what is optimised: phi is raised to whatever power has that divergence, and sigma
    is the optimum only where ``target`` happens to be KL(sigma || p0).

    Attributes:
        target: KL(q || p0) of whole texts that is wanted, in nats.
        initial: coefficient of the first update.
        rate: relative change of the coefficient for a relative error of the KL, in each update.
        most_error: relative errors are clipped to this.
    """

    target: float | int
    initial: float | int = 1.0
    rate: float | int = 0.1
    most_error: float | int = 0.2

    def __post_init__(self) -> None:
        """Refuse what cannot be steered to."""
        for name in ("target", "initial", "rate", "most_error"):
            _check_positive(name, getattr(self, name))

    @property
    def first(self) -> float:
        """The coefficient of the first update."""
        return float(self.initial)

    def after(self, coefficient: float, kl: float) -> float:
        """The coefficient of the next update: higher where the KL is too large."""
        error = (kl - self.target) / self.target
        clipped = min(max(error, -self.most_error), self.most_error)
        return coefficient * (1 + self.rate * clipped)


@dataclass(frozen=True, slots=True)
class PPOSettings:
    """Settings of ``method="ppo"``.

    Attributes:
        clip: how far the ratio of q to the q that drew a text counts, from 1.
        epochs: steps on each batch.
        decay: lambda of the advantage estimates; 1 is Monte Carlo.
        kl: ``FixedKL(1.0)``, whose optimum is sigma, or ``AdaptiveKL(target=...)``.
    """

    clip: float | int = 0.2
    epochs: int = 4
    decay: float | int = 0.95
    kl: FixedKL | AdaptiveKL = field(default_factory=FixedKL)

    def __post_init__(self) -> None:
        """Check the numbers."""
        _check_positive("clip", self.clip)
        check_integer("epochs", self.epochs)
        if not 0 <= self.decay <= 1:
            raise ValueError(f"decay must lie in [0, 1]; got {self.decay!r}.")
        if not isinstance(self.kl, FixedKL | AdaptiveKL):
            raise TypeError(
                "kl must be FixedKL(coefficient) or AdaptiveKL(target=nats); got "
                f"{type(self.kl).__name__}."
            )


def _check_positive(name: str, value: Any) -> None:
    number = isinstance(value, float | int) and not isinstance(value, bool)
    if not number or not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name} must be a positive finite number; got {value!r}.")
