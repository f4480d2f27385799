"""Positive mixtures of potentials; products and powers stand beside the operators."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tsmc_widgets.targets.automata import TokenAutomaton, combine
from tsmc_widgets.targets.checked import as_numbers
from tsmc_widgets.targets.context import Context, part_log_phi
from tsmc_widgets.targets.protocol import Potential, as_potential


@dataclass(frozen=True, init=False)
class Mixture(Potential):
    """Phi = w_1 phi_1 + w_2 phi_2 + ..., with positive weights.

    Args:
        parts: the potentials, at least one.
        weights: positive numbers, one for each part; they need not sum to 1. All 1 if None.
    """

    parts: tuple[Potential, ...]
    weights: tuple[float, ...]
    context: Context | None = field(repr=False, compare=False)

    def __init__(
        self,
        parts: Sequence[Any],
        weights: Sequence[float | int] | None = None,
        *,
        context: Context | None = None,
    ) -> None:
        if not parts:
            raise ValueError("A mixture needs at least one potential; got none.")
        weights = [1.0] * len(parts) if weights is None else list(weights)
        if len(weights) != len(parts):
            raise ValueError(
                f"weights must be {len(parts)} numbers, one for each potential; got {weights}."
            )
        if not all(math.isfinite(weight) and weight > 0 for weight in weights):
            raise ValueError(f"weights must be positive finite numbers; got {weights}.")
        object.__setattr__(self, "parts", tuple(as_potential(part) for part in parts))
        object.__setattr__(self, "weights", tuple(float(weight) for weight in weights))
        object.__setattr__(self, "context", context)

    @property
    def log_phi_max(self) -> float | None:
        """Log of the weighted sum of the parts' bounds; None where one is unknown."""
        bounds = [part.log_phi_max for part in self.parts]
        if None in bounds:
            return None
        return float(self._mix(torch.tensor(bounds, dtype=torch.float64)))

    def bind(self, context: Context) -> Mixture:
        """Bind every part."""
        parts = [part.bind(context) for part in self.parts]
        return Mixture(parts, self.weights, context=context)

    def log_phi(self, tokens: Int[Tensor, "batch steps"]) -> Float[Tensor, " batch"]:
        """Log of the weighted sum, each part checked under its own name."""
        logs = [part_log_phi(part, tokens, self.context) for part in self.parts]
        return self._mix(torch.stack(logs, dim=-1))

    @property
    def log_phi_next(self) -> Callable[[Tensor], Tensor] | None:
        """Offered if every part offers it."""
        offers = [part.log_phi_next for part in self.parts]
        if None in offers:
            return None
        return lambda tokens: self._mix(
            torch.stack([as_numbers(offer(tokens)).double() for offer in offers], dim=-1)
        )

    @cached_property
    def _automaton(self) -> TokenAutomaton | None:
        return combine([part.automaton() for part in self.parts], self._mix)

    def automaton(self) -> TokenAutomaton | None:
        """Product of the parts' automata, over the states that can be reached."""
        return self._automaton

    @property
    def is_conditional(self) -> bool:
        """Whether some part is."""
        return any(part.is_conditional for part in self.parts)

    def condition(self, observed: Any) -> Potential:
        """Condition every part that is conditional on the same observation."""
        if not self.is_conditional:
            return super().condition(observed)
        parts = [p.condition(observed) if p.is_conditional else p for p in self.parts]
        return Mixture(parts, self.weights, context=self.context)

    def log_phi_given(
        self, tokens: Int[Tensor, "batch steps"], observed: Int[Tensor, "batch width"]
    ) -> Float[Tensor, " batch"]:
        """Log of the weighted sum, each row under its own observation."""
        logs = [as_numbers(part.log_phi_given(tokens, observed)).double() for part in self.parts]
        return self._mix(torch.stack(logs, dim=-1))

    def describe(self) -> str:
        """Weights and parts with + between them, in brackets."""
        terms = zip(self.weights, self.parts, strict=True)
        return f"({' + '.join(f'{weight:g} {part.describe()}' for weight, part in terms)})"

    def _mix(self, logs: Float[Tensor, "*shape parts"]) -> Float[Tensor, "*shape"]:
        log_weights = torch.tensor(self.weights, dtype=torch.float64, device=logs.device).log()
        return torch.logsumexp(logs + log_weights, dim=-1)
