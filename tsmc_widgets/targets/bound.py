"""Potentials that learn their numbers from the target they join."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tsmc_widgets.errors import PotentialError
from tsmc_widgets.targets.automata import TokenAutomaton
from tsmc_widgets.targets.context import Context
from tsmc_widgets.targets.protocol import Potential


class BoundOnly(Potential):
    """A potential that knows its numbers only after ``bind``."""

    _context: Context | None = None

    def bind(self, context: Context) -> BoundOnly:
        """The same potential for one target."""
        bound = copy.copy(self)
        for name in [name for name in vars(bound) if name in _cached_names(type(self))]:
            del bound.__dict__[name]
        bound._context = context
        return bound

    @property
    def context(self) -> Context:
        """What the target says; an error before ``bind``."""
        if self._context is None:
            raise ValueError(
                f"The potential {self.describe()} belongs to no model yet: put it in a Target, "
                "or call bind(context) first."
            )
        return self._context

    def _key(self) -> tuple:
        """What makes two potentials equal, their target aside."""
        raise NotImplementedError

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash((type(self), self._key()))

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.describe()}>"


class AutomatonPotential(BoundOnly):
    """A potential that a finite automaton over tokens computes; it offers log phi of all V."""

    def automaton(self) -> TokenAutomaton | None:
        """The automaton, built once for each target; None before ``bind``."""
        return None if self._context is None else self._automaton

    @cached_property
    def _automaton(self) -> TokenAutomaton | None:
        raise NotImplementedError

    @property
    def log_phi_next(self) -> Callable[[Tensor], Tensor] | None:
        """Log phi of every row with every last token, from the automaton."""
        automaton = self.automaton()
        return None if automaton is None else automaton.log_phi_next


def log_indicator(
    holds: Bool[Tensor, "*shape"], yes: float = 0.0, no: float = -math.inf
) -> Float[Tensor, "*shape"]:
    """Log of 1 where something holds and of 0 elsewhere, in float64."""
    yes_no = torch.tensor([no, yes], dtype=torch.float64, device=holds.device)
    return yes_no[holds.long()]


def _cached_names(cls: type) -> set[str]:
    return {
        name
        for base in cls.__mro__
        for name, value in vars(base).items()
        if isinstance(value, cached_property)
    }


class ConditionalPotential(BoundOnly):
    """Phi = p(o | s) for an observation o that is drawn with s, or given by ``condition``.

    Where s ~ p0 and o ~ p(. | s), s is an exact sample of the target for its own o, at beta = 1.
    """

    log_phi_max = 0.0
    is_conditional = True

    def log_phi(self, tokens: Int[Tensor, "batch steps"]) -> Float[Tensor, " batch"]:
        """Refused: there is no phi before there is an observation."""
        raise PotentialError(
            f"{self.describe()} depends on an observation o that is not given: use "
            "condition(observed) of the potential or target, or log_phi_given(tokens, observed)."
        )

    def log_phi_given(
        self, tokens: Int[Tensor, "batch steps"], observed: Int[Tensor, "batch width"]
    ) -> Float[Tensor, " batch"]:
        """Log p(o | s) of each row under its own observation, in nats."""
        raise NotImplementedError

    def condition(self, observed: Any) -> Potential:
        """The potential p(o | .) for one observation."""
        raise NotImplementedError

    def draw_joint(
        self, n: int, generator: torch.Generator
    ) -> tuple[Int[Tensor, "n steps"], Int[Tensor, "n width"]]:
        """Draw s ~ p0 and o ~ p(. | s)."""
        raise NotImplementedError
