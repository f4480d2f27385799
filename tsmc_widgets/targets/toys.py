"""Models and potentials of the enumerable toys: each small enough to know everything about it."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from tsmc_widgets.models.tabular import TabularLM
from tsmc_widgets.targets.protocol import BoundOnly
from tsmc_widgets.targets.tokens import ContainsToken

WEATHER = ("sun", "cloud", "rain")
RAIN = WEATHER.index("rain")


class DaysOfRain(BoundOnly, kind=False):
    """Phi = exp(-2 |days of rain - 2|): soft, so that every week is possible."""

    log_phi_max = 0.0

    def log_phi(self, tokens: Int[Tensor, "batch steps"]) -> Float64[Tensor, " batch"]:
        """Two nats less for each day of rain more or fewer than two."""
        return -2.0 * ((tokens == RAIN).sum(1) - 2).abs().double()

    def describe(self) -> str:
        """``exp(−2 |days of rain − 2|)``."""
        return "exp(−2 |days of rain − 2|)"


class LastStop(BoundOnly, kind=False):
    """Phi = exp(-worth) of the last symbol alone; all before it is free.

    Args:
        worth: log phi of a text that ends with a symbol, in nats; of other symbols 0.
    """

    log_phi_max = 0.0

    def __init__(self, **worth: float) -> None:
        self.worth = worth

    def log_phi(self, tokens: Int[Tensor, "batch steps"]) -> Float64[Tensor, " batch"]:
        """What the last symbol is worth; nothing before there is one."""
        if not tokens.shape[1]:
            return torch.zeros(len(tokens), dtype=torch.float64)
        return _worths(self)[tokens[:, -1]]

    def describe(self) -> str:
        """``exp(−6 [ends with meadow or brook])``."""
        parts: dict[float, list[str]] = {}
        for name, value in self.worth.items():
            parts.setdefault(value, []).append(name)
        terms = [f"{value:+g} [ends with {' or '.join(names)}]" for value, names in parts.items()]
        return f"exp({' '.join(terms)})".replace("-", "−").replace("(+", "(")


class SumOfWorths(BoundOnly, kind=False):
    """Phi = exp(sum of what each symbol is worth): phi of a prefix is known as it is written.

    Args:
        worth: in nats for each occurrence; of other symbols 0.
    """

    def __init__(self, **worth: float) -> None:
        self.worth = worth

    @property
    def log_phi_max(self) -> float:
        """Every symbol the best one."""
        return self.context.num_steps * max(0.0, *self.worth.values())

    def log_phi(self, tokens: Int[Tensor, "batch steps"]) -> Float64[Tensor, " batch"]:
        """Sum over the text."""
        return _worths(self)[tokens].sum(1)

    def describe(self) -> str:
        """``exp(1.5 × glitter − 5 × mud)``, with the numbers of symbols."""
        terms = " ".join(f"{value:+g} × {name}" for name, value in self.worth.items())
        return f"exp({terms})".replace("-", "−").replace("(+", "(")


def _worths(potential: Any) -> Float64[Tensor, " vocab"]:
    """What each symbol of a potential's model is worth, in nats."""
    symbols = potential.context.lm.symbols
    return torch.tensor([potential.worth.get(name, 0.0) for name in symbols]).double()


def weather() -> TabularLM:
    """Three kinds of day."""
    return TabularLM.markov(
        torch.tensor([0.6, 0.3, 0.1]),
        torch.tensor([[0.7, 0.2, 0.1], [0.4, 0.4, 0.2], [0.2, 0.4, 0.4]]),
        symbols=WEATHER,
        separator=" ",
    )


def seas() -> TabularLM:
    """A sea on which storms are rare and short."""
    return TabularLM.markov(
        [0.8, 0.18, 0.02],
        [[0.8, 0.18, 0.02], [0.6, 0.34, 0.06], [0.5, 0.42, 0.08]],
        symbols=("calm", "breeze", "storm"),
        separator=" ",
    )


def three_storms() -> ContainsToken:
    """Three storms in a row."""
    return ContainsToken(["storm", "storm", "storm"])


def roads() -> TabularLM:
    """A gate from which two roads lead that never meet; few take the one over the hill."""
    names = ("gate", "meadow", "brook", "hill", "peak")
    return TabularLM.markov(
        [1.0, 0.0, 0.0, 0.0, 0.0],
        [
            [0.0, 0.6, 0.37, 0.02, 0.01],
            [0.0, 0.7, 0.3, 0.0, 0.0],
            [0.0, 0.4, 0.6, 0.0, 0.0],
            [0.0, 0.0, 0.0, 0.6, 0.4],
            [0.0, 0.0, 0.0, 0.5, 0.5],
        ],
        symbols=names,
        separator=" ",
    )


def mine() -> TabularLM:
    """A mine in which glitter pays at once and mostly ends in mud, which is absorbing."""
    return TabularLM.markov(
        [0.9, 0.1, 0.0],
        [[0.85, 0.15, 0.0], [0.0, 0.05, 0.95], [0.0, 0.0, 1.0]],
        symbols=("rock", "glitter", "mud"),
        separator=" ",
    )


def answers() -> TabularLM:
    """Short answers of yes, no and well, which end at the full stop."""
    return TabularLM.markov(
        [0.2, 0.4, 0.35, 0.05],
        [[0.2, 0.2, 0.2, 0.4], [0.1, 0.4, 0.2, 0.3], [0.15, 0.35, 0.3, 0.2], [0.0, 0.0, 0.0, 1.0]],
        symbols=("yes", "no", "well", "."),
        separator=" ",
        eos=".",
    )


def rhymes() -> TabularLM:
    """Four words of which each calls for another."""
    return TabularLM.markov(
        [0.4, 0.3, 0.2, 0.1],
        [[0.1, 0.6, 0.2, 0.1], [0.2, 0.1, 0.6, 0.1], [0.3, 0.1, 0.1, 0.5], [0.7, 0.1, 0.15, 0.05]],
        symbols=("fox", "box", "sock", "clock"),
        separator=" ",
    )
