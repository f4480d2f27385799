"""Proximal policy optimisation of the twist-induced proposal, with a critic that trains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from tsmc_widgets.learning.objectives import advantages_and_returns, ppo_loss
from tsmc_widgets.learning.samples import Samples, read, score
from tsmc_widgets.targets.target import Target

EPOCHS = 4
CRITIC_WEIGHT = 0.5


class Critic(nn.Module):
    """V(s_{<t}): expected log phi minus KL still to come, from the base model's hidden state.

    Where the model has no hidden state it is one number for each t. Under observations it reads
    the twist's code of each text's own.
    """

    def __init__(self, target: Target, encoder: Any = None) -> None:
        super().__init__()
        tokens = target.prompt_tokens.unsqueeze(0)
        hidden = target.lm.prefill(tokens).hidden
        self.by_step = nn.Parameter(torch.zeros(target.num_steps, device=tokens.device))
        self.body: nn.Module | None = None
        if hidden is not None:
            width = hidden.shape[1]
            inputs = width if encoder is None else width + encoder.width
            last = nn.Linear(width, 1)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            self.body = nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), last).to(tokens.device)

    def forward(
        self,
        hidden: Float[Tensor, "n steps width"] | None,
        code: Float[Tensor, "n code"] | None = None,
    ) -> Float64[Tensor, "#n steps"]:
        """Values of the prefixes, in nats."""
        values = self.by_step.double().unsqueeze(0)
        if self.body is None or hidden is None:
            return values
        if code is not None:
            code = code.to(hidden).unsqueeze(1).expand(-1, hidden.shape[1], -1)
            hidden = torch.cat([hidden, code], dim=-1)
        return values + self.body(hidden.float()).squeeze(-1).double()


class PolicySteps:
    """Several clipped steps on each batch; the KL penalty of one makes sigma the optimum."""

    def __init__(self, target: Target, twist: Any, *, kl_penalty: float = 1.0) -> None:
        """Make the critic.

        Args:
            target: what the proposal is for.
            twist: a trainable twist.
            kl_penalty: nats of log phi that a nat of KL(q || p0) costs.
        """
        self.target, self.twist, self.kl_penalty = target, twist, kl_penalty
        self._encoder = getattr(twist, "encoder", None)
        self.critic = Critic(target, self._encoder)

    def descend(
        self, batch: Samples, step: Callable[[Float64[Tensor, ""]], float]
    ) -> tuple[dict[str, float], float]:
        """Take ``EPOCHS`` steps on a batch; losses of the last, gradient norm of the first."""
        base = read(self.target, batch.tokens) if batch.base is None else batch.base
        batch = replace(batch, base=base)
        code = None
        if self._encoder is not None:
            code = self._encoder.encode(batch.observed)
        with torch.no_grad():
            scored = score(self.target, self.twist, batch)
            values = self.critic(base.hidden, code).expand_as(scored.log_p)
            advantages, returns = advantages_and_returns(
                scored, scored.log_q_psi, values, kl_penalty=self.kl_penalty
            )
        old_log_q, live = scored.log_q_psi, scored.live
        centred = advantages - advantages[live].mean()
        scaled = centred / advantages[live].std().clamp(min=1e-6)
        losses: dict[str, float] = {}
        norms = []
        for _ in range(EPOCHS):
            scored = score(self.target, self.twist, batch)
            policy = ppo_loss(scored, old_log_q, scaled)
            gaps = torch.where(live, self.critic(base.hidden, code) - returns, 0.0)
            critic = (gaps**2).sum() / live.sum()
            norms.append(step(policy + CRITIC_WEIGHT * critic))
            losses = {"ppo": float(policy.detach()), "critic": float(critic.detach())}
        return losses, norms[0]
