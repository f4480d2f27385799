"""What the package asks of a twist psi_t: it steps along with the base model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from tsmc_widgets.models.protocol import Carry, LMStep, TeacherForced


@dataclass(frozen=True, slots=True)
class TwistStep:
    """A twist's answer for a batch of prefixes s_{<t}.

    Attributes:
        log_psi_next: log psi_t(s_{<t}, v) for every v, in nats; -inf is allowed.
        carry: goes into the next ``advance``; None where the twist keeps nothing.
    """

    log_psi_next: Float[Tensor, "batch vocab"]
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
    others have no such method or argument.

    Attributes:
        link: "log" where log psi is what the network gives, "sigmoid" where it is the log-sigmoid
            of that (psi <= 1, for FUDGE).
        method: who trained it ("ctl", "rl", ...); None where nobody did.
    """

    link: str
    method: str | None

    @property
    def proposal_only(self) -> bool:
        """Whether psi is known only up to a function of the prefix, so that it can not weigh."""
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


def is_conditional_twist(twist: object) -> bool:
    """Whether psi depends on an observation that is yet to be given."""
    return callable(getattr(twist, "condition", None))


def prefill_twist(
    twist: Any,
    tokens: Int[Tensor, "batch length"],
    lm_step: LMStep,
    observed: Int[Tensor, "batch width"] | None,
) -> TwistStep:
    """Read the prompts with a twist, each under its own observation if the twist wants one."""
    if is_conditional_twist(twist):
        return twist.prefill(tokens, lm_step, observed)
    return twist.prefill(tokens, lm_step)
