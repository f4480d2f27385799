"""What the package asks of a twist psi_t: it steps along with the base model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from tsmc_widgets.models.protocol import Carry, LMStep


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

    def advance(
        self, tokens: Int[Tensor, " batch"], carry: Carry | None, lm_step: LMStep
    ) -> TwistStep:
        """Read one more token for each row; ``carry`` stays valid and unchanged."""
        ...

    def log_psi(
        self, tokens: Int[Tensor, "batch length"], prompt_length: int
    ) -> Float[Tensor, "batch steps"]:
        """Log psi_t(s_{1:t}), t = 1..T, along the tokens after the prompt, with gradients."""
        ...
