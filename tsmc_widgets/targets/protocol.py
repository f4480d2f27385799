"""What the package asks of a potential phi, and the base class that adds the algebra."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from numbers import Number
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tsmc_widgets.targets.automata import TokenAutomaton, combine
from tsmc_widgets.targets.checked import as_numbers, check_bound
from tsmc_widgets.targets.context import Context, bracketed, part_log_phi


class Potential:
    """Base class of the package's potentials: describes itself, binds to a target, composes.

    ``phi_a * phi_b`` is the product, ``phi ** beta`` the power; ``Mixture`` the positive mixture.
    A subclass gives ``log_phi`` and whatever else it knows. A potential that may offer log phi of
    all V last tokens at once has a method ``log_phi_next(tokens: (batch, T-1)) -> (batch, V)``;
    others have it as None.
    """

    log_phi_max: float | None = None
    """An upper bound on log phi in nats, where one is known: rejection needs it."""

    log_phi_next: Callable[[Tensor], Tensor] | None = None

    def log_phi(self, tokens: Int[Tensor, "batch steps"]) -> Float[Tensor, " batch"]:
        """Log phi(s_{1:T}) in nats, see ``SupportsLogPhi``."""
        raise NotImplementedError

    def bind(self, context: Context) -> Potential:
        """This potential with whatever it needs from the target (tokens of a word, say)."""
        return self

    def automaton(self) -> TokenAutomaton | None:
        """A finite automaton over tokens that computes log phi, where there is one."""
        return None

    def describe(self) -> str:
        """The potential in a line for people."""
        return type(self).__name__

    def factors(self) -> tuple[Potential, ...]:
        """The factors of a product, each able to ``describe`` itself; of others, just this one."""
        return (self,)

    @property
    def is_conditional(self) -> bool:
        """Whether phi depends on an observation o, so that it needs ``condition(observed)``."""
        return False

    def condition(self, observed: Any) -> Potential:
        """The potential for one observation o; only a conditional potential has one."""
        raise TypeError(f"{self.describe()} depends on no observation: use it as it is.")

    def log_phi_given(
        self, tokens: Int[Tensor, "batch steps"], observed: Int[Tensor, "batch width"]
    ) -> Float[Tensor, " batch"]:
        """Log phi of each row under its own observation; the same where phi depends on none."""
        return self.log_phi(tokens)

    def __init_subclass__(cls, **options: Any) -> None:
        """Let ``describe`` be a plain text in a class that has nothing to add to it."""
        super().__init_subclass__(**options)
        line = vars(cls).get("describe")
        if isinstance(line, str):
            cls.describe = lambda self: line

    def __add__(self, other: Any) -> Potential:
        if not _is_potential(other) and not _is_number(other):
            return NotImplemented
        raise TypeError(
            "Potentials are not added with +: write Mixture([phi_a, phi_b], [1, 1]) for the sum "
            "phi_a + phi_b of potentials, with a positive weight for each."
        )

    __radd__ = __add__

    def __mul__(self, other: Any) -> Potential:
        _refuse_number(other)
        if not _is_potential(other):
            return NotImplemented
        return Product((*self.factors(), *as_potential(other).factors()))

    def __rmul__(self, other: Any) -> Potential:
        _refuse_number(other)
        if not _is_potential(other):
            return NotImplemented
        return Product((*as_potential(other).factors(), *self.factors()))

    def __pow__(self, beta: float | int) -> Potential:
        beta = _check_beta(beta)
        if beta == 0:
            return Constant()
        powers = tuple(_power(factor, beta) for factor in self.factors())
        return powers[0] if len(powers) == 1 else Product(powers)


@dataclass(frozen=True)
class Constant(Potential):
    """The same log phi for every text; 0 makes the target p0 itself.

    Attributes:
        value: log phi, in nats.
    """

    value: float | int = 0.0
    vocab_size: int | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise ValueError(f"value must be a finite number in nats; got {self.value!r}.")

    @property
    def log_phi_max(self) -> float:
        """The value itself."""
        return self.value

    def bind(self, context: Context) -> Constant:
        """Take note of the vocabulary's size."""
        return replace(self, vocab_size=context.lm.vocab_size)

    def log_phi(self, tokens: Int[Tensor, "batch steps"]) -> Float[Tensor, " batch"]:
        """The value, once for each row."""
        return torch.full(tokens.shape[:1], self.value, dtype=torch.float64, device=tokens.device)

    @property
    def log_phi_next(self) -> Callable[[Tensor], Tensor] | None:
        """The value for each row and last token, once bound."""
        if self.vocab_size is None:
            return None
        return lambda tokens: self.log_phi(tokens).unsqueeze(-1).expand(-1, self.vocab_size)

    def automaton(self) -> TokenAutomaton | None:
        """One state."""
        if self.vocab_size is None:
            return None
        return TokenAutomaton(
            initial=0,
            transition=torch.zeros(1, self.vocab_size, dtype=torch.int64),
            log_value=torch.tensor([self.value], dtype=torch.float64),
        )

    def describe(self) -> str:
        """The constant, as e to the power of its log."""
        return "1" if self.value == 0 else f"exp({self.value:g})"


@dataclass(frozen=True)
class Product(Potential):
    """Product of potentials: logs add. Written ``phi_a * phi_b``."""

    parts: tuple[Potential, ...]
    context: Context | None = field(default=None, repr=False, compare=False)

    @property
    def log_phi_max(self) -> float | None:
        """Sum of the factors' bounds; None where one is unknown."""
        bounds = [part.log_phi_max for part in self.parts]
        return None if None in bounds else math.fsum(bounds)

    def bind(self, context: Context) -> Product:
        """Bind every factor."""
        return Product(tuple(part.bind(context) for part in self.parts), context)

    def log_phi(self, tokens: Int[Tensor, "batch steps"]) -> Float[Tensor, " batch"]:
        """Sum of the factors' log phi, each checked under its own name."""
        return torch.stack([part_log_phi(p, tokens, self.context) for p in self.parts]).sum(0)

    @property
    def log_phi_next(self) -> Callable[[Tensor], Tensor] | None:
        """Offered if every factor offers it."""
        offers = [part.log_phi_next for part in self.parts]
        if None in offers:
            return None
        return lambda tokens: torch.stack(
            [as_numbers(offer(tokens)).double() for offer in offers]
        ).sum(0)

    @cached_property
    def _automaton(self) -> TokenAutomaton | None:
        return combine([part.automaton() for part in self.parts], lambda logs: logs.sum(-1))

    def automaton(self) -> TokenAutomaton | None:
        """Product of the factors' automata, over the states that can be reached."""
        return self._automaton

    @property
    def is_conditional(self) -> bool:
        """Whether some factor is."""
        return any(part.is_conditional for part in self.parts)

    def condition(self, observed: Any) -> Product:
        """Condition the one factor that is conditional."""
        if sum(part.is_conditional for part in self.parts) != 1:
            raise TypeError(
                f"{self.describe()} must have exactly one factor that depends on an observation: "
                "condition the factors before they are multiplied."
            )
        return replace(
            self,
            parts=tuple(p.condition(observed) if p.is_conditional else p for p in self.parts),
        )

    def log_phi_given(
        self, tokens: Int[Tensor, "batch steps"], observed: Int[Tensor, "batch width"]
    ) -> Float[Tensor, " batch"]:
        """Sum of the factors' log phi, each row under its own observation."""
        return torch.stack(
            [as_numbers(p.log_phi_given(tokens, observed)).double() for p in self.parts]
        ).sum(0)

    def describe(self) -> str:
        """The factors with × between them."""
        return " × ".join(part.describe() for part in self.parts)

    def factors(self) -> tuple[Potential, ...]:
        """The factors, each able to describe itself."""
        return self.parts


@dataclass(frozen=True)
class Power(Potential):
    """A potential to the power of beta > 0: its log times beta. Written ``phi ** beta``."""

    part: Potential
    beta: float
    context: Context | None = field(default=None, repr=False, compare=False)

    @property
    def log_phi_max(self) -> float | None:
        """The bound times beta."""
        bound = self.part.log_phi_max
        return None if bound is None else self.beta * bound

    def bind(self, context: Context) -> Power:
        """Bind what is raised."""
        return Power(self.part.bind(context), self.beta, context)

    def log_phi(self, tokens: Int[Tensor, "batch steps"]) -> Float[Tensor, " batch"]:
        """Beta times log phi."""
        return self.beta * part_log_phi(self.part, tokens, self.context)

    @property
    def log_phi_next(self) -> Callable[[Tensor], Tensor] | None:
        """Offered if what is raised offers it."""
        offer = self.part.log_phi_next
        return (
            None if offer is None else lambda tokens: self.beta * as_numbers(offer(tokens)).double()
        )

    def automaton(self) -> TokenAutomaton | None:
        """The same automaton with other values."""
        inner = self.part.automaton()
        return None if inner is None else replace(inner, log_value=self.beta * inner.log_value)

    @property
    def is_conditional(self) -> bool:
        """Whether what is raised is."""
        return self.part.is_conditional

    def condition(self, observed: Any) -> Power:
        """Condition what is raised."""
        return replace(self, part=self.part.condition(observed))

    def log_phi_given(
        self, tokens: Int[Tensor, "batch steps"], observed: Int[Tensor, "batch width"]
    ) -> Float[Tensor, " batch"]:
        """Beta times log phi, each row under its own observation."""
        return self.beta * as_numbers(self.part.log_phi_given(tokens, observed)).double()

    def describe(self) -> str:
        """What is raised, ^ and beta."""
        return f"{bracketed(self.part.describe())}^{self.beta:g}"


@dataclass(frozen=True)
class UserPotential(Potential):
    """Anything with a ``log_phi`` method, with the rest of a potential filled in."""

    inner: Any
    context: Context | None = field(default=None, repr=False, compare=False)

    @property
    def log_phi_max(self) -> float | None:
        """The user's own bound, if it has one; PotentialError unless it is a finite number."""
        value = getattr(self.inner, "log_phi_max", None)
        return check_bound(f"log_phi_max of {self.describe()}", value)

    def bind(self, context: Context) -> UserPotential:
        """Bind the user's object if it wants to be bound."""
        bind = getattr(self.inner, "bind", None)
        bound = UserPotential(self.inner if bind is None else bind(context), context)
        _ = bound.log_phi_max  # A bound that is none is best refused before anything is drawn.
        return bound

    def log_phi(self, tokens: Int[Tensor, "batch steps"]) -> Float[Tensor, " batch"]:
        """The user's log phi, checked."""
        return part_log_phi(self.inner, tokens, self.context, name=self.describe())

    @property
    def log_phi_next(self) -> Callable[[Tensor], Tensor] | None:
        """The user's own, if it has one."""
        return getattr(self.inner, "log_phi_next", None)

    def automaton(self) -> TokenAutomaton | None:
        """The user's own, if it has one."""
        automaton = getattr(self.inner, "automaton", None)
        return None if automaton is None else automaton()

    def describe(self) -> str:
        """The user's own description, as a method or a plain text, or the name of its class."""
        describe = getattr(self.inner, "describe", None)
        if isinstance(describe, str) and describe:
            return describe
        return describe() if callable(describe) else type(self.inner).__name__


def as_potential(phi: Any) -> Potential:
    """Give any object with a ``log_phi(tokens)`` method the algebra of the package's potentials."""
    if isinstance(phi, Potential):
        return phi
    if _is_potential(phi):
        return UserPotential(phi)
    hint = "A Python function goes into TextFunction or TokenFunction." if callable(phi) else ""
    if isinstance(phi, type):
        hint = f"That is a class: did you mean {phi.__name__}(...)?"
    raise TypeError(
        f"A potential must be an object with a method log_phi(tokens); got {phi!r}. {hint}".rstrip()
    )


def _is_potential(phi: object) -> bool:
    return not isinstance(phi, type) and callable(getattr(phi, "log_phi", None))


def _is_number(value: object) -> bool:
    return isinstance(value, Number)


def _refuse_number(factor: object) -> None:
    if _is_number(factor):
        raise TypeError(
            f"A potential is not multiplied by a number; got {factor!r}. A constant factor leaves "
            f"sigma as it is: write Mixture([phi], [{factor!r}]) to have it in Z, "
            f"Mixture([phi_a, phi_b], [{factor!r}, 1]) for weights in a sum, and phi ** beta for a "
            "power."
        )


def _check_beta(beta: object) -> float:
    try:
        value = float(beta)
    except (TypeError, ValueError):
        value = math.nan
    if isinstance(beta, bool | str) or not math.isfinite(value) or value < 0:
        raise ValueError(
            f"The power of a potential must be a finite number of at least 0; got {beta!r}."
        )
    return value


def _power(factor: Potential, beta: float) -> Potential:
    if isinstance(factor, Power):
        return replace(factor, beta=factor.beta * beta)
    return Power(factor, beta)


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
