"""Bounds on log phi from a prefix alone: how much a text that begins so may yet weigh."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from tsmc_widgets.errors import PotentialError
from tsmc_widgets.targets.automata import TokenAutomaton
from tsmc_widgets.targets.checked import check_bound
from tsmc_widgets.targets.protocol import Power
from tsmc_widgets.targets.target import Target

Bounds = tuple[Float64[Tensor, "n vocab"], Float64[Tensor, "n vocab"]]


@runtime_checkable
class PhiBounds(Protocol):
    """Lower and upper bounds on log phi over all endings of a text."""

    def children(self, prefixes: Int[Tensor, "n t"]) -> Bounds:
        """Bounds for each prefix followed by each token, in nats, on the CPU."""
        ...


@dataclass(frozen=True, slots=True)
class ConstantBounds:
    """The same for every text: 0 below and ``log_phi_max`` above."""

    log_phi_max: float
    vocab_size: int

    def children(self, prefixes: Int[Tensor, "n t"]) -> Bounds:
        """-inf and the bound."""
        shape = (len(prefixes), self.vocab_size)
        return tuple(
            torch.full(shape, value, dtype=torch.float64) for value in (-math.inf, self.log_phi_max)
        )


class AutomatonBounds:
    """The best and the worst value that an automaton can still reach: tight, and exact at T."""

    def __init__(self, automaton: TokenAutomaton, num_steps: int, eos: int | None) -> None:
        """Look ahead from every state.

        Args:
            automaton: gives log phi from its last state.
            num_steps: T.
            eos: the absorbing EOS; None where there is none.
        """
        transition = automaton.transition.cpu()
        self.automaton = TokenAutomaton(automaton.initial, transition, automaton.log_value.cpu())
        self.eos = eos
        value = automaton.log_value.cpu().double()
        lows, highs, ends = [value], [value], [value]
        for _ in range(num_steps):
            end = ends[0] if eos is None else ends[0][transition[:, eos]]
            low, high = lows[0][transition], highs[0][transition]
            if eos is not None:
                low[:, eos] = high[:, eos] = end
            lows.insert(0, low.amin(1))
            highs.insert(0, high.amax(1))
            ends.insert(0, end)
        self._lows, self._highs, self._ends = lows, highs, ends

    def children(self, prefixes: Int[Tensor, "n t"]) -> Bounds:
        """Bounds by the state that each token leads to."""
        t = prefixes.shape[1] + 1
        states = self.automaton.transition[self.automaton.run(prefixes.cpu())]
        low, high = self._lows[t][states], self._highs[t][states]
        if self.eos is not None:
            low[:, self.eos] = high[:, self.eos] = self._ends[t][states[:, self.eos]]
        return low, high


@dataclass(frozen=True, slots=True)
class OwnBounds:
    """A potential's own ``log_phi_bounds(prefixes) -> (low, high)``, one of each a prefix."""

    potential: Any
    vocab_size: int

    def children(self, prefixes: Int[Tensor, "n t"]) -> Bounds:
        """Bounds of every prefix longer by one token; NaN and an upper below a lower refused."""
        vocab = torch.arange(self.vocab_size, device=prefixes.device).repeat(len(prefixes))
        longer = torch.cat(
            [prefixes.repeat_interleave(self.vocab_size, 0), vocab.unsqueeze(1)], dim=1
        )
        low, high = (
            torch.as_tensor(part, dtype=torch.float64).cpu().reshape(len(prefixes), -1)
            for part in self.potential.log_phi_bounds(longer)
        )
        if not bool((low <= high).all()) or bool((high == math.inf).any()):
            raise PotentialError(
                f"log_phi_bounds of {self.potential.describe()} must give low <= high < +inf."
            )
        return low, high


@dataclass(frozen=True, slots=True)
class ScaledSum:
    """Bounds of a product of powers: each factor's, times its power, added up."""

    parts: tuple[tuple[PhiBounds, float | int], ...]

    def children(self, prefixes: Int[Tensor, "n t"]) -> Bounds:
        """Sums of the factors' bounds."""
        low, high = 0.0, 0.0
        for part, beta in self.parts:
            lower, upper = part.children(prefixes)
            low, high = low + beta * lower, high + beta * upper
        return low, high


def phi_bounds(target: Target) -> PhiBounds:
    """The tightest bounds that a target's potential knows of.

    An automaton first, then the potential's own ``log_phi_bounds``, then those of its factors,
    then ``log_phi_max``.

    Raises:
        PotentialError: some factor has no upper bound at all.
    """
    eos = target.eos_token_id if target.absorbs_eos else None
    vocab = target.lm.vocab_size

    def of(potential: Any) -> PhiBounds:
        automaton = potential.automaton()
        if automaton is not None:
            return AutomatonBounds(automaton, target.num_steps, eos)
        if hasattr(getattr(potential, "inner", potential), "log_phi_bounds"):
            return OwnBounds(getattr(potential, "inner", potential), vocab)
        if isinstance(potential, Power):
            return ScaledSum(((of(potential.part), potential.beta),))
        factors = potential.factors()
        if len(factors) > 1:
            return ScaledSum(tuple((of(factor), 1.0) for factor in factors))
        bound = check_bound(f"log_phi_max of {potential.describe()}", potential.log_phi_max)
        if bound is None:
            raise PotentialError(
                f"a certified bracket needs an upper bound on log phi, and none is known for "
                f"{potential.describe()}: give log_phi_max (or reward_max) to the part that has "
                "none."
            )
        return ConstantBounds(bound, vocab)

    return of(target.potential)
