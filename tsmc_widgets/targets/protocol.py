"""What the package asks of a potential phi, its algebra, and how one is made from a description."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from numbers import Number
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tsmc_widgets.errors import PotentialError, check_number, quoted
from tsmc_widgets.targets.automata import TokenAutomaton, combine
from tsmc_widgets.targets.checked import as_numbers, check_bound
from tsmc_widgets.targets.context import Context, bracketed, part_log_phi
from tsmc_widgets.targets.notation import call, code_value, number, times

KINDS: dict[str, type[Potential]] = {}
"""Potentials that a description may name, by the names of their classes; see ``Potential``."""


class Potential:
    """Base class of the package's potentials: describes itself, binds to a target, composes.

    ``phi_a * phi_b`` is the product, ``phi ** beta`` the power; ``Mixture`` the positive mixture.
    A subclass gives ``log_phi`` and whatever else it knows. A potential that may offer log phi of
    all V last tokens at once has a method ``log_phi_next(tokens: (batch, T-1)) -> (batch, V)``;
    one that knows bounds on log phi of a prefix's completions has ``log_phi_bounds``, see
    ``bracket_log_z``; one that knows which prefixes have a completion of phi > 0 has
    ``viable_next(tokens: (batch, t)) -> (batch, V)``, as booleans. Others have these as None.

    A potential keeps the arguments that it was made with. Its JSON description, its Python code
    and its formula are made of them, so that a subclass of a user can be described, stored and
    shown as it is. ``class Base(Potential, kind=False)`` is a class that no description names.
    """

    log_phi_max: float | None = None
    """An upper bound on log phi in nats, where one is known: rejection needs it."""

    log_phi_next: Callable[[Tensor], Tensor] | None = None
    log_phi_bounds: Callable[..., tuple[Tensor, Tensor]] | None = None
    viable_next: Callable[[Tensor], Tensor] | None = None
    _given: tuple[tuple[Any, ...], dict[str, Any]]
    draw_joint: Callable[[int, torch.Generator], tuple[Tensor, Tensor]] | None = None
    """Draws s ~ p0 and o ~ p(. | s), where phi is p(o | s) itself; see ConditionalPotential."""

    def __new__(cls, *args: Any, **options: Any) -> Any:
        """Keep the arguments; copies keep them too."""
        if cls.__init__ is object.__init__ and (args or options):
            raise TypeError(f"{cls.__name__}() takes no arguments")
        made = super().__new__(cls)
        object.__setattr__(made, "_given", (args, options))
        return made

    def __init_subclass__(cls, kind: bool = True, **options: Any) -> None:
        """Register the class, and let ``describe`` be plain text in a class body."""
        super().__init_subclass__(**options)
        line = vars(cls).get("describe")
        if isinstance(line, str):
            cls.describe = lambda self: str(line)
        # A user's class never changes what a stored description of the package's kind means.
        known = KINDS.get(cls.__name__)
        if kind and (known is None or is_packages(cls) or not is_packages(known)):
            KINDS[cls.__name__] = cls

    @property
    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments by name; positional ones without a name as ``args``."""
        args, options = self._given
        signature = inspect.signature(type(self))
        found: dict[str, Any] = {}
        for name, value in signature.bind(*args, **options).arguments.items():
            kind = signature.parameters[name].kind
            if kind is inspect.Parameter.VAR_KEYWORD:
                found.update(value)
            elif kind is not inspect.Parameter.VAR_POSITIONAL:
                found[name] = value
            elif value:
                found["args"] = value
        return found

    @classmethod
    def formula(cls, part: Mapping[str, Any]) -> str:
        """What a factor with this description adds to log phi, before any power."""
        return f"log {cls.__name__}(s)"

    @classmethod
    def code(cls, arguments: Mapping[str, Any]) -> str:
        """The Python expression that makes a potential of the arguments of a description."""
        named = ((name, value) for name, value in arguments.items() if name != "args")
        given: dict[str, Any] = {name: _expression(value) for name, value in named}
        if "args" in arguments:
            given["args"] = [_expression(value) for value in arguments["args"]]
        return call(f"{'tw.' if is_packages(cls) else ''}{cls.__name__}", cls, given)

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

    def unpowered(self) -> tuple[Potential, float]:
        """What a power raises, and its beta; of others, just this one and 1."""
        return self, 1.0

    @property
    def observed_size(self) -> dict[str, int]:
        """What a conditional twist must know of o: ``num_classes`` or ``observed_length``."""
        return {}

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

    def __add__(self, other: Any) -> Potential:
        if not _is_potential(other) and not isinstance(other, Number):
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
        inner = [factor.unpowered() for factor in self.factors()]
        powers = [Power(part, own * beta) for part, own in inner]
        return powers[0] if len(powers) == 1 else Product(powers)


Bound = TypeVar("Bound", bound="BoundOnly")


class BoundOnly(Potential, kind=False):
    """A potential that knows its numbers only after ``bind``; equal to another of equal arguments.

    Each parameter of the constructor is an attribute of the same name, or ``_key`` is overridden.
    """

    _context: Context | None = None

    def bind(self: Bound, context: Context) -> Bound:
        """The same potential for one target, which has what it asks for."""
        bound = copy.copy(self)
        for name in [name for name in vars(bound) if name in _cached_names(type(self))]:
            del bound.__dict__[name]
        bound._context = context
        bound._look_up()
        return bound

    def _look_up(self) -> None:
        """Read at once what it needs of the target, and raise where the target lacks it."""

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
        return tuple(
            _hashable(getattr(self, name)) for name in inspect.signature(type(self)).parameters
        )

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash((type(self), self._key()))

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.describe()}>"


class AutomatonPotential(BoundOnly, kind=False):
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


class ConditionalPotential(BoundOnly, kind=False):
    """Phi = p(o | s) for an observation o that is drawn with s, or given by ``condition``.

    Where s ~ p0 and o ~ p(. | s), s is an exact sample of the target for its own o, at beta = 1.
    A description may give the observation as ``observed``.
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

    def observation(self, observed: Any) -> Any:
        """An observation of a description as a conditional twist takes it."""
        return observed

    def example(self, joint: Callable[[], tuple[Any, Tensor]]) -> Any:
        """Some observation for a description; ``joint`` gives the model and one that p0 drew."""
        raise NotImplementedError

    def draw_joint(
        self, n: int, generator: torch.Generator
    ) -> tuple[Int[Tensor, "n steps"], Int[Tensor, "n width"]]:
        """Draw s ~ p0 and o ~ p(. | s)."""
        raise NotImplementedError


def log_indicator(
    holds: Bool[Tensor, "*shape"], yes: float = 0.0, no: float = -math.inf
) -> Float[Tensor, "*shape"]:
    """Log of 1 where something holds and of 0 elsewhere, in float64."""
    yes_no = torch.tensor([no, yes], dtype=torch.float64, device=holds.device)
    return yes_no[holds.long()]


def _hashable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return tuple(sorted(value.items()))
    return tuple(map(_hashable, value)) if isinstance(value, list | tuple) else value


def _cached_names(cls: type) -> set[str]:
    return {
        name
        for base in cls.__mro__
        for name, value in vars(base).items()
        if isinstance(value, cached_property)
    }


class Constant(AutomatonPotential):
    """The same log phi for every sequence; 0 makes the target p0 itself.

    Args:
        value: log phi, in nats.
    """

    def __init__(self, value: float | int = 0.0) -> None:
        check_number("value", value, "(-inf, inf)")
        self.value = self.log_phi_max = value

    def log_phi(self, tokens: Int[Tensor, "batch steps"]) -> Float[Tensor, " batch"]:
        """The value, once for each row."""
        return torch.full(tokens.shape[:1], self.value, dtype=torch.float64, device=tokens.device)

    @cached_property
    def _automaton(self) -> TokenAutomaton:
        lm = self.context.lm
        return TokenAutomaton(
            initial=0,
            transition=torch.zeros(1, lm.vocab_size, dtype=torch.int64, device=lm.device),
            log_value=torch.tensor([self.value], dtype=torch.float64, device=lm.device),
        )

    def describe(self) -> str:
        """The constant, as e to the power of its log."""
        return "1" if self.value == 0 else f"exp({self.value:g})"

    @classmethod
    def formula(cls, part: Mapping[str, Any]) -> str:
        """``2``."""
        return f"{part.get('value', 0):g}"


class Composed(BoundOnly, kind=False):
    """A potential made of others, its parts; what all of them know, it knows too."""

    parts: tuple[Potential, ...]

    def _of(self, parts: Sequence[Potential]) -> Composed:
        """The same composition of other parts."""
        raise NotImplementedError

    def _combined(self, logs: Sequence[Float[Tensor, "*shape"]]) -> Float[Tensor, "*shape"]:
        """Log phi from that of each part."""
        raise NotImplementedError

    def bind(self, context: Context) -> Composed:
        """Bind every part."""
        bound = self._of([part.bind(context) for part in self.parts])
        bound._context = context
        return bound

    @property
    def log_phi_max(self) -> float | None:
        """The parts' bounds combined; None where one is unknown."""
        bounds = [part.log_phi_max for part in self.parts]
        if None in bounds:
            return None
        return float(self._combined([torch.tensor(bound, dtype=torch.float64) for bound in bounds]))

    def log_phi(self, tokens: Int[Tensor, "batch steps"]) -> Float[Tensor, " batch"]:
        """Log phi of the parts combined, each checked under its own name."""
        return self._combined([part_log_phi(p, tokens, self._context) for p in self.parts])

    @property
    def log_phi_next(self) -> Callable[[Tensor], Tensor] | None:
        """Offered if every part offers it."""
        offers = [part.log_phi_next for part in self.parts]
        if None in offers:
            return None
        return lambda tokens: self._combined(
            [as_numbers(offer(tokens.clone())).double() for offer in offers]
        )

    @cached_property
    def _automaton(self) -> TokenAutomaton | None:
        return combine(
            [part.automaton() for part in self.parts], lambda logs: self._combined(logs.unbind(-1))
        )

    def automaton(self) -> TokenAutomaton | None:
        """The parts' automata side by side, over the states that can be reached."""
        return self._automaton

    @property
    def is_conditional(self) -> bool:
        """Whether some part is."""
        return any(part.is_conditional for part in self.parts)

    @property
    def observed_size(self) -> dict[str, int]:
        """That of the first part that has one."""
        return next(filter(None, (part.observed_size for part in self.parts)), {})

    def condition(self, observed: Any) -> Potential:
        """Condition every part that is conditional on the same observation."""
        if not self.is_conditional:
            return super().condition(observed)
        made = self._of([p.condition(observed) if p.is_conditional else p for p in self.parts])
        made._context = self._context
        return made

    def log_phi_given(
        self, tokens: Int[Tensor, "batch steps"], observed: Int[Tensor, "batch width"]
    ) -> Float[Tensor, " batch"]:
        """Log phi of the parts combined, each row under its own observation."""
        return self._combined(
            [
                as_numbers(part.log_phi_given(tokens.clone(), observed.clone())).double()
                for part in self.parts
            ]
        )


class Product(Composed):
    """Product of potentials: logs add. Written ``phi_a * phi_b``."""

    def __init__(self, parts: Sequence[Potential]) -> None:
        self.parts = tuple(parts)

    def _of(self, parts: Sequence[Potential]) -> Product:
        return Product(parts)

    def _combined(self, logs: Sequence[Float[Tensor, "*shape"]]) -> Float[Tensor, "*shape"]:
        return torch.stack(list(logs)).sum(0)

    @property
    def log_phi_max(self) -> float | None:
        """Sum of the factors' bounds; None where one is unknown."""
        bounds = [part.log_phi_max for part in self.parts]
        return None if None in bounds else math.fsum(bounds)

    def condition(self, observed: Any) -> Potential:
        """Condition the one factor that is conditional."""
        if sum(part.is_conditional for part in self.parts) != 1:
            raise TypeError(
                f"{self.describe()} must have exactly one factor that depends on an observation: "
                "condition the factors before they are multiplied."
            )
        return super().condition(observed)

    def describe(self) -> str:
        """The factors with × between them."""
        return " × ".join(part.describe() for part in self.parts)

    @classmethod
    def formula(cls, part: Mapping[str, Any]) -> str:
        """The factors' terms as a sum in brackets."""
        return f"({' + '.join(map(term_of, part['parts']))})"

    @classmethod
    def code(cls, arguments: Mapping[str, Any]) -> str:
        """The factors with * between them, in brackets."""
        return f"({' * '.join(map(code_of, arguments['parts']))})"

    def factors(self) -> tuple[Potential, ...]:
        """The factors, each able to describe itself."""
        return self.parts


class Power(Composed):
    """A potential to the power of beta > 0: its log times beta. Written ``phi ** beta``."""

    def __init__(self, part: Potential, beta: float) -> None:
        self.part, self.parts, self.beta = part, (part,), beta

    def _of(self, parts: Sequence[Potential]) -> Power:
        return Power(parts[0], self.beta)

    def _combined(self, logs: Sequence[Float[Tensor, "*shape"]]) -> Float[Tensor, "*shape"]:
        return self.beta * logs[0]

    def unpowered(self) -> tuple[Potential, float]:
        """What is raised, and to which power."""
        part, beta = self.part.unpowered()
        return part, beta * self.beta

    def describe(self) -> str:
        """What is raised, ^ and beta."""
        return f"{bracketed(self.part.describe())}^{self.beta:g}"

    @classmethod
    def formula(cls, part: Mapping[str, Any]) -> str:
        """Beta times the term of what is raised."""
        return f"{times(part['beta'])}({term_of(part['part'])})"

    @classmethod
    def code(cls, arguments: Mapping[str, Any]) -> str:
        """What is raised, ** and beta."""
        return f"{code_of(arguments['part'])} ** {code_value(arguments['beta'])}"


class Mixture(Composed):
    """Phi = w_1 phi_1 + w_2 phi_2 + ..., with positive weights.

    Args:
        parts: the potentials, at least one.
        weights: positive numbers, one for each part; they need not sum to 1. All 1 if None.
    """

    def __init__(self, parts: Sequence[Any], weights: Sequence[float | int] | None = None) -> None:
        if not isinstance(parts, list | tuple) or not parts:
            raise ValueError(
                f"parts must be a list of at least one potential; got {quoted(parts)}."
            )
        self.parts = tuple(as_potential(part) for part in parts)
        weights = [1.0] * len(parts) if weights is None else weights
        if np.ndim(weights) != 1 or len(weights) != len(parts):
            raise ValueError(
                f"weights must be {len(parts)} numbers, one for each potential; got "
                f"{quoted(weights)}."
            )
        self.weights = tuple(check_number("weights", weight, "(0, inf)") for weight in weights)

    def _of(self, parts: Sequence[Potential]) -> Mixture:
        return Mixture(parts, self.weights)

    def _combined(self, logs: Sequence[Float[Tensor, "*shape"]]) -> Float[Tensor, "*shape"]:
        stacked = torch.stack(list(logs), dim=-1)
        weights = torch.tensor(self.weights, dtype=torch.float64, device=stacked.device)
        return torch.logsumexp(stacked + weights.log(), dim=-1)

    def describe(self) -> str:
        """Weights and parts with + between them, in brackets."""
        terms = zip(self.weights, self.parts, strict=True)
        return f"({' + '.join(f'{weight:g} {part.describe()}' for weight, part in terms)})"

    @classmethod
    def formula(cls, part: Mapping[str, Any]) -> str:
        """Log of the weighted sum of exponentials of the parts' terms."""
        weights = part.get("weights") or [1] * len(part["parts"])
        terms = zip(weights, part["parts"], strict=True)
        return f"log({' + '.join(f'{number(w)} exp({term_of(p)})' for w, p in terms)})"


def take_apart(
    part: Mapping[str, Any],
) -> tuple[type[Potential], dict[str, Any], Any, Any]:
    """Kind, arguments, observation (or None) and power of a factor's description."""
    options = dict(part)
    kind = KINDS[options.pop("kind")]
    observed = options.pop("observed", None) if kind.draw_joint else None
    # TemperedReward's beta is its own argument, and not a power.
    beta = 1 if "beta" in inspect.signature(kind).parameters else options.pop("beta", 1)
    return kind, options, observed, beta


def term_of(part: Mapping[str, Any]) -> str:
    """What one factor of a description adds to log phi, as plain text."""
    kind, _, _, beta = take_apart(part)
    return f"{times(beta)}{kind.formula(part)}"


def code_of(part: Mapping[str, Any]) -> str:
    """One factor of a description as a Python expression."""
    kind, arguments, observed, beta = take_apart(part)
    condition = "" if observed is None else f".condition({code_value(observed)})"
    power = "" if beta == 1 else f" ** {code_value(beta)}"
    return f"{kind.code(arguments)}{condition}{power}"


def _expression(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_expression, value))}]"
    return code_of(value) if isinstance(value, Mapping) and "kind" in value else code_value(value)


def is_packages(kind: type) -> bool:
    """Whether a class is of this package, and not of a user."""
    return kind.__module__.startswith("tsmc_widgets.")


class UserPotential(BoundOnly, kind=False):
    """Any object with a ``log_phi`` method, with the rest of a potential filled in."""

    log_phi_next = property(lambda self: self._own("log_phi_next"))
    log_phi_bounds = property(lambda self: self._own("log_phi_bounds"))
    viable_next = property(lambda self: self._own("viable_next"))

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def _own(self, name: str) -> Any:
        return getattr(self.inner, name, None)

    @property
    def log_phi_max(self) -> float | None:
        """The user's own bound, if it has one; PotentialError unless it is a finite number."""
        return check_bound(f"log_phi_max of {self.describe()}", self._own("log_phi_max"))

    def bind(self, context: Context) -> UserPotential:
        """Bind the user's object if it wants to be bound."""
        bind = self._own("bind")
        bound = UserPotential(self.inner if bind is None else bind(context))
        bound._context = context
        _ = bound.log_phi_max  # A bound that is none is best refused before anything is drawn.
        return bound

    def log_phi(self, tokens: Int[Tensor, "batch steps"]) -> Float[Tensor, " batch"]:
        """The user's log phi, checked."""
        return part_log_phi(self.inner, tokens, self._context, name=self.describe())

    def automaton(self) -> TokenAutomaton | None:
        """The user's own, if it has one."""
        automaton = self._own("automaton")
        return None if automaton is None else automaton()

    def describe(self) -> str:
        """The user's own description, as a method or a plain text, or the name of its class."""
        describe = self._own("describe")
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
        f"A potential must be an object with a method log_phi(tokens); got {quoted(phi)}. "
        f"{hint}".rstrip()
    )


def _is_potential(phi: object) -> bool:
    return not isinstance(phi, type) and callable(getattr(phi, "log_phi", None))


def _refuse_number(factor: object) -> None:
    if isinstance(factor, Number):
        raise TypeError(
            f"A potential is not multiplied by a number; got {quoted(factor)}. A constant factor "
            "leaves "
            f"sigma as it is: write Mixture([phi], [{quoted(factor)}]) to have it in Z, "
            f"Mixture([phi_a, phi_b], [{quoted(factor)}, 1]) for weights in a sum, and phi ** "
            "beta for a "
            "power."
        )


def _check_beta(beta: Any) -> float:
    try:
        value = float(beta)
    except (TypeError, ValueError):
        value = math.nan
    if isinstance(beta, bool | str) or not math.isfinite(value) or value < 0:
        raise ValueError(
            f"The power of a potential must be a finite number of at least 0; got {quoted(beta)}."
        )
    return value
