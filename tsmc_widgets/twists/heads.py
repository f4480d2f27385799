"""Twists that read the base model's hidden state: cheap, since the body runs anyway."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tsmc_widgets.models.protocol import Carry, LanguageModel, LMStep
from tsmc_widgets.twists.protocol import TwistStep


class LinearHeadTwist(nn.Module):
    """Log psi_t(s_{<t}, .) = W h + b, with h the hidden state that predicts token t.

    Starts at zero: psi = 1, so that the twist-induced proposal is p0 exactly.
    """

    def __init__(self, lm: LanguageModel) -> None:
        """Make a head for a model with a hidden state.

        Args:
            lm: the base model; its parameters are no parameters of the twist.
        """
        super().__init__()
        probe = lm.prefill(torch.zeros(1, 1, dtype=torch.int64, device=lm.device)).hidden
        if probe is None:
            raise ValueError(
                f"{type(lm).__name__} has no hidden state for a head to read: use TableTwist or "
                "the optimal twist of tw.exact(target)."
            )
        # Kept out of the module tree: the head's state_dict is the head.
        object.__setattr__(self, "lm", lm)
        self.head = nn.Linear(probe.shape[1], lm.vocab_size, device=probe.device)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def prefill(self, tokens: Int[Tensor, "batch length"], lm_step: LMStep) -> TwistStep:
        """Read the hidden state after the prompts."""
        return self._step(lm_step)

    def advance(
        self, tokens: Int[Tensor, " batch"], carry: Carry | None, lm_step: LMStep
    ) -> TwistStep:
        """Read the hidden state after one more token."""
        return self._step(lm_step)

    def log_psi(
        self, tokens: Int[Tensor, "batch length"], prompt_length: int
    ) -> Float[Tensor, "batch steps"]:
        """Log psi_t along the tokens after the prompt, with gradients to the head alone."""
        with torch.no_grad():
            hidden = self.lm.teacher_force(tokens, prompt_length).hidden
        log_psi = self.head(hidden.to(self.head.weight.dtype))
        return log_psi.gather(-1, tokens[:, prompt_length:].unsqueeze(-1)).squeeze(-1)

    def _step(self, lm_step: LMStep) -> TwistStep:
        return TwistStep(self.head(lm_step.hidden.to(self.head.weight.dtype)), None)
