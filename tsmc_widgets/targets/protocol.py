"""What the package asks of a potential phi, and the base class that adds the algebra."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from tsmc_widgets.models.protocol import LanguageModel

if TYPE_CHECKING:
    from tsmc_widgets.targets.automata import TokenAutomaton


@dataclass(frozen=True, slots=True)
class Context:
    """What a potential may need to know of the target that it joins.

    Attributes:
        lm: the base model; gives text from tokens and tokens from text.
        prompt_tokens: s_0.
        num_steps: T.
    """

    lm: LanguageModel
    prompt_tokens: Int[Tensor, " length"]
    num_steps: int


@runtime_checkable
class SupportsLogPhi(Protocol):
    """The least a potential is: one method. Everything else is optional, see ``Potential``."""

    def log_phi(self, tokens: Int[Tensor, "batch steps"]) -> Float[Tensor, " batch"]:
        """Log phi(s_{1:T}) in nats; -inf is allowed, NaN and +inf are not.

        ``tokens`` are the T generated tokens without the prompt; after an absorbing EOS every
        token is EOS.
        """
        ...


class Potential:
    """Base class of the package's potentials: describes itself, binds to a target, composes.

    ``phi_a * phi_b`` is the product, ``phi ** beta`` the power; ``Mixture`` the positive mixture.
    A subclass gives ``log_phi`` and whatever else it knows. A potential that may offer log phi of
    all V last tokens at once has a method ``log_phi_next(tokens: (batch, T-1)) -> (batch, V)``;
    others do not have the attribute, or have it as None.
    """

    log_phi_max: float | None = None
    """An upper bound on log phi in nats, where one is known: rejection needs it."""

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
