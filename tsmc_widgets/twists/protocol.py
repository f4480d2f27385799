"""What the package asks of a twist psi_t: it steps along with the base model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tsmc_widgets.errors import check_kind
from tsmc_widgets.models.protocol import Carry, LMStep, Table, TeacherForced


@dataclass(frozen=True, slots=True)
class TwistStep:
    """A twist's answer for a batch of prefixes s_{<t}.

    Attributes:
        log_psi_next: log psi_t(s_{<t}, v) for every v, in nats; -inf is allowed.
        carry: goes into the next ``advance``; None where the twist keeps nothing.
    """

    log_psi_next: Table
    carry: Carry | None


@runtime_checkable
class Twist(Protocol):
    """A twist psi_t, t = 1..T-1 (paper, section 3). ``testing.check_twist`` checks the contract.

    psi_T is never used as a weight: at T the sampler puts phi in its place.
    """

    def prefill(self, tokens: Int[Tensor, "batch length"], lm_step: LMStep) -> TwistStep:
        """Read the prompts; ``lm_step`` is the base model's answer for the same rows."""
        ...

    def advance(self, tokens: Int[Tensor, " batch"], carry: Any, lm_step: LMStep) -> TwistStep:
        """Read one more token for each row; ``carry``, of its own last step, stays unchanged."""
        ...

    def log_psi(
        self, tokens: Int[Tensor, "batch length"], prompt_length: int
    ) -> Float[Tensor, "batch steps"]:
        """Log psi_t(s_{1:t}), t = 1..T, along the tokens after the prompt, with gradients."""
        ...


@runtime_checkable
class TrainableTwist(Twist, Protocol):
    """A twist that learns: a ``torch.nn.Module`` whose parameters are its own, never p0's.

    Conditional forms also have ``condition(observed)``, which gives the twist of one observation,
    and their ``prefill`` takes each row's ``observed`` as a third argument, which the carry keeps;
    others have no such method and take no observation.

    Attributes:
        link: "log" where log psi is what the network gives, "sigmoid" where it is the log-sigmoid
            of that (psi <= 1, for FUDGE).
        method: who trained it ("ctl", "rl", ...); None if untrained.
    """

    link: str
    method: str | None

    @property
    def proposal_only(self) -> bool:
        """Whether psi is known only up to a function of the prefix, so that it cannot weigh."""
        ...

    def log_psi_next(
        self,
        tokens: Int[Tensor, "batch length"],
        prompt_length: int,
        base: TeacherForced | None = None,
        observed: Int[Tensor, "batch ..."] | None = None,
    ) -> Float[Tensor, "batch steps vocab"]:
        """Log psi_t(s_{<t}, .) for t = 1..T in one pass, with gradients to the twist alone.

        Args:
            tokens: prompts and the T tokens after them.
            prompt_length: tokens of the prompt.
            base: the base model's ``teacher_force(tokens, prompt_length)``, where the caller has
                it already; None computes what is needed of it.
            observed: each row's observation, for conditional forms: a class or c token ids.
        """
        ...


class BaseTwist:
    """What the package reads of a twist besides ``Twist``'s methods, with defaults.

    Twists of the package are subclasses; any other object with those methods is adapted by
    ``as_twist`` wherever the package takes a twist.

    Attributes:
        method: who trained it ("ctl", "rl", ...); None if untrained.
        link: "log", or "sigmoid" where psi <= 1.
        proposal_only: whether psi is known only up to a function of the prefix, so that it cannot
            weigh particles.
        is_conditional: whether psi depends on an observation that is yet to be given; ``prefill``
            then takes each row's as a third argument.
        encoder: makes the code of an observation, for conditional forms; None for others.
        options: keyword arguments that make another of the same form; None where unknown.
        level: log psi before anything was learned, in nats: the scale of phi in losses that read
            it.
        log_bound: log of what psi stays below, in nats, for the sigmoid link.
        is_fresh: whether it has learned nothing, so that ``start_at`` may set its level.
        is_tied: whether its head is a ``TiedHead``, of which losses need no table of all tokens.
    """

    method: str | None = None
    link: str = "log"
    proposal_only: bool = False
    is_conditional: bool = False
    encoder: Any = None
    options: Any = None
    level: float = 0.0
    log_bound: float = 0.0
    is_fresh: bool = False
    is_tied: bool = False

    @property
    def form(self) -> str:
        """Name of its class."""
        return type(self).__name__

    def start_at(self, log_psi: float, log_bound: float = 0.0) -> None:
        """Set ``level`` and, for the sigmoid link, ``log_bound``, both in nats."""
        raise NotImplementedError


class SteppedTwist(BaseTwist):
    """A twist whose log psi is a function of a carry that moves with each token.

    Subclasses give ``_start``, ``_read`` and ``_value``.

    Attributes:
        prompt_length: tokens of the prompt, which do not move the carry.
    """

    prompt_length: int

    def _start(self, tokens: Int[Tensor, "batch length"]) -> Any:
        """The carry of each row after the prompt."""
        raise NotImplementedError

    def _read(self, tokens: Int[Tensor, " batch"], carry: Any) -> Any:
        """The carry after one more token."""
        raise NotImplementedError

    def _value(self, carry: Any) -> Float[Tensor, "batch vocab"]:
        """Log psi of every next token, on any device."""
        raise NotImplementedError

    def _step(self, carry: Any) -> TwistStep:
        return TwistStep(self._value(carry), carry)

    def _walk(self, tokens: Int[Tensor, "batch length"], prompt_length: int) -> Iterator[TwistStep]:
        """The step before each token after the prompt."""
        carry = self._start(tokens)
        for t in range(prompt_length, tokens.shape[1]):
            yield self._step(carry)
            carry = self._read(tokens[:, t], carry)

    @torch.no_grad()
    def prefill(self, tokens: Int[Tensor, "batch length"], lm_step: LMStep) -> TwistStep:
        """Read the prompts and whatever has been generated after them."""
        carry = self._start(tokens)
        for t in range(self.prompt_length, tokens.shape[1]):
            carry = self._read(tokens[:, t], carry)
        return self._beside(lm_step, carry)

    @torch.no_grad()
    def advance(self, tokens: Int[Tensor, " batch"], carry: Any, lm_step: LMStep) -> TwistStep:
        """Read one more token for each row; ``carry`` stays valid and unchanged."""
        return self._beside(lm_step, self._read(tokens, carry))

    def log_psi(
        self, tokens: Int[Tensor, "batch length"], prompt_length: int
    ) -> Float[Tensor, "batch steps"]:
        """Log psi_t along the tokens after the prompt."""
        columns = []
        for t, step in enumerate(self._walk(tokens, prompt_length), start=prompt_length):
            chosen = tokens[:, t : t + 1].to(step.log_psi_next.device)
            columns.append(step.log_psi_next.gather(1, chosen))
        return torch.cat(columns, dim=1).to(tokens.device)

    def _beside(self, lm_step: LMStep, carry: Any) -> TwistStep:
        """The step of a carry, on the base model's device."""
        step = self._step(carry)
        return replace(step, log_psi_next=step.log_psi_next.to(lm_step.log_probs.device))


class OnePassTwist(BaseTwist):
    """A twist with ``TrainableTwist``'s ``log_psi_next``, which says every other value of psi."""

    log_psi_next: Callable[..., Float[Tensor, "batch steps vocab"]]

    def log_psi(
        self,
        tokens: Int[Tensor, "batch length"],
        prompt_length: int,
        base: TeacherForced | None = None,
        observed: Int[Tensor, "batch ..."] | None = None,
    ) -> Float[Tensor, "batch steps"]:
        """Log psi_t along the tokens after the prompt: ``log_psi_next`` of the tokens there are."""
        log_psi_next = self.log_psi_next(tokens, prompt_length, base, observed)
        return log_psi_next.gather(-1, tokens[:, prompt_length:].unsqueeze(-1)).squeeze(-1)


def of_other(attribute: str, *names: str, base: type = BaseTwist) -> Iterator[property]:
    """Properties that are those of the object in an attribute, or a base class's defaults."""

    def read(name: str) -> property:
        default = vars(base).get(name)
        return property(lambda self: getattr(getattr(self, attribute), name, default))

    return map(read, names)


@dataclass(frozen=True)
class AdaptedTwist(BaseTwist):
    """A user's twist, with ``BaseTwist``'s defaults for what it does not have."""

    inner: Any

    method, link, proposal_only = of_other("inner", "method", "link", "proposal_only")
    encoder, options, level = of_other("inner", "encoder", "options", "level")
    log_bound, is_fresh = of_other("inner", "log_bound", "is_fresh")

    @property
    def form(self) -> str:
        """Name of the user's class."""
        return type(self.inner).__name__

    @property
    def is_conditional(self) -> bool:
        """Whether it has the method ``condition``."""
        return callable(getattr(self.inner, "condition", None))

    def start_at(self, log_psi: float, log_bound: float = 0.0) -> None:
        """As the user's twist does."""
        self.inner.start_at(log_psi, log_bound)

    def __getattr__(self, name: str) -> Any:
        if name == "inner":  # Not set yet, as while a pickle is read.
            raise AttributeError(name)
        return getattr(self.inner, name)


def as_twist(twist: Any) -> Any:
    """The twist with all attributes of ``BaseTwist``; None, which is psi = 1, stays None."""
    return None if twist is None else some_twist(twist)


def some_twist(twist: Any) -> Any:
    """The twist with all attributes of ``BaseTwist``; TypeError for anything else."""
    if isinstance(twist, BaseTwist):
        return twist
    # Losses read log_psi_next alone, and measures of psi log_psi.
    if isinstance(twist, type) or not {"log_psi", "log_psi_next"} & {*dir(twist)}:
        wanted = "a twist such as LookAheadTwist(target), or oracle.optimal_twist()"
        check_kind("twist", twist, ("prefill", "advance", "log_psi"), wanted)
    return AdaptedTwist(twist)


def prefill_twist(
    twist: Any,
    tokens: Int[Tensor, "batch length"],
    lm_step: LMStep,
    observed: Int[Tensor, "batch width"] | None,
) -> TwistStep:
    """Read the prompts with an ``as_twist``, each under its observation where psi depends on it."""
    if twist.is_conditional:
        return twist.prefill(tokens, lm_step, observed)
    return twist.prefill(tokens, lm_step)
