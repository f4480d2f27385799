"""A twist to a power: listened to more, less, or the wrong way round."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tsmc_widgets.models.protocol import LMStep
from tsmc_widgets.twists.protocol import Twist, TwistStep


class TemperedTwist:
    """psi**beta of another twist. Below zero it prefers what the other dislikes.

    The estimate of Z stays unbiased for every beta, since phi stands for psi at T; what a wrong
    beta costs is variance. A prefix that the other twist gives up (psi = 0) stays given up.

    Args:
        twist: the other twist.
        beta: any finite power.
    """

    def __init__(self, twist: Twist, beta: float | int) -> None:
        if not math.isfinite(beta):
            raise ValueError(f"beta must be a finite number; got {beta!r}.")
        self.twist = twist
        self.beta = float(beta)

    @property
    def proposal_only(self) -> bool:
        """Whether the other twist, and so this one, can not weigh."""
        return getattr(self.twist, "proposal_only", False)

    @property
    def method(self) -> str | None:
        """Who trained the other twist."""
        return getattr(self.twist, "method", None)

    def prefill(self, tokens: Int[Tensor, "batch length"], lm_step: LMStep) -> TwistStep:
        """Read the prompts."""
        return self._tempered(self.twist.prefill(tokens, lm_step))

    def advance(self, tokens: Int[Tensor, " batch"], carry: Any, lm_step: LMStep) -> TwistStep:
        """Read one more token for each row."""
        return self._tempered(self.twist.advance(tokens, carry, lm_step))

    def log_psi(
        self, tokens: Int[Tensor, "batch length"], prompt_length: int
    ) -> Float[Tensor, "batch steps"]:
        """Log psi_t along the tokens after the prompt."""
        return self._scale(self.twist.log_psi(tokens, prompt_length))

    def _tempered(self, step: TwistStep) -> TwistStep:
        return TwistStep(self._scale(step.log_psi_next), step.carry)

    def _scale(self, log_psi: Tensor) -> Tensor:
        return torch.where(log_psi == -math.inf, log_psi, self.beta * log_psi)
