"""Proximal policy optimisation of the twist-induced proposal, with a critic that trains."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from tsmc_widgets.errors import NoSignalError
from tsmc_widgets.learning.objectives import advantages_and_returns, ppo_loss
from tsmc_widgets.learning.ppo_settings import PPOSettings
from tsmc_widgets.learning.samples import Samples, read, score
from tsmc_widgets.targets.target import Target

CRITIC_WEIGHT = 0.5


class Critic(nn.Module):
    """V(s_{<t}): expected log phi minus KL still to come, from the base model's hidden state.

    Where the model has no hidden state it is one number for each t. Under observations it reads
    the twist's code of each text's own.
    """

    def __init__(
        self, target: Target, encoder: Any = None, *, kl_coefficient: float = 1.0, seed: int = 0
    ) -> None:
        super().__init__()
        coefficient = torch.tensor(kl_coefficient, dtype=torch.float64)
        self.register_buffer("kl_coefficient", coefficient)
        tokens = target.prompt_tokens.unsqueeze(0)
        hidden = target.lm.prefill(tokens).hidden
        self.by_step = nn.Parameter(torch.zeros(target.num_steps, device=tokens.device))
        self.body: nn.Module | None = None
        if hidden is not None:
            width = hidden.shape[1]
            inputs = width if encoder is None else width + encoder.width
            first, last = nn.Linear(inputs, width), nn.Linear(width, 1)
            generator = torch.Generator().manual_seed(seed)
            nn.init.kaiming_uniform_(first.weight, nonlinearity="relu", generator=generator)
            nn.init.zeros_(first.bias)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            self.body = nn.Sequential(first, nn.ReLU(), last).to(tokens.device)

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


@dataclass(frozen=True, slots=True)
class PolicyKL:
    """How far the policy has left p0.

    Attributes:
        kl: estimate of KL(q || p0) of whole texts, in nats, before the update.
        coefficient: what a nat of it cost in the update.
    """

    kl: float
    coefficient: float


class PolicySteps:
    """Several clipped steps on each batch; a KL penalty fixed at 1 makes sigma the optimum.

    Attributes:
        critic: learns with the twist, and remembers what a nat of KL(q || p0) costs.
    """

    def __init__(
        self, target: Target, twist: Any, settings: PPOSettings | None = None, *, seed: int = 0
    ) -> None:
        """Make the critic.

        Args:
            target: what the proposal is for.
            twist: a trainable twist.
            settings: of the method; None is ``PPOSettings()``.
            seed: of the critic's first values.
        """
        self.target, self.twist = target, twist
        self.settings = PPOSettings() if settings is None else settings
        self._encoder = getattr(twist, "encoder", None)
        first = self.settings.kl.first
        self.critic = Critic(target, self._encoder, kl_coefficient=first, seed=seed)

    def descend(
        self,
        batch: Samples,
        step: Callable[[Float64[Tensor, ""]], float],
        average: Callable[[float], float] = float,
    ) -> tuple[dict[str, float], float, PolicyKL]:
        """Take steps on a batch; losses of the last, gradient norm of the first, and the KL.

        Args:
            batch: texts from q.
            step: takes one step down a loss.
            average: of a number over processes that share the training.

        Raises:
            NoSignalError: no text of any process has phi > 0.
        """
        # All processes go on or none does, as each must take as many steps as the others.
        if average(float(batch.log_phi.max() > -math.inf)) == 0:
            raise NoSignalError("no text of the batch has phi > 0, so there is nothing to reward.")
        base = read(self.target, batch.tokens) if batch.base is None else batch.base
        batch = replace(batch, base=base)
        code = None
        if self._encoder is not None:
            code = self._encoder.encode(batch.observed)
        with torch.no_grad():
            scored = score(self.target, self.twist, batch)
            values = self.critic(base.hidden, code).expand_as(scored.log_p)
            coefficient = float(self.critic.kl_coefficient)
            advantages, returns = advantages_and_returns(
                scored,
                scored.log_q_psi,
                values,
                kl_penalty=coefficient,
                decay=float(self.settings.decay),
            )
        old_log_q, live = scored.log_q_psi, scored.live
        centred = advantages - advantages[live].mean()
        scaled = centred / advantages[live].std().clamp(min=1e-6)
        losses: dict[str, float] = {}
        norms = []
        for _ in range(self.settings.epochs):
            scored = score(self.target, self.twist, batch)
            policy = ppo_loss(scored, old_log_q, scaled, clip=float(self.settings.clip))
            gaps = torch.where(live, self.critic(base.hidden, code) - returns, 0.0)
            critic = (gaps**2).sum() / live.sum()
            norms.append(step(policy + CRITIC_WEIGHT * critic))
            losses = {"ppo": float(policy.detach()), "critic": float(critic.detach())}
        kl = average(float((old_log_q - scored.log_p).sum(1).mean()))
        self.critic.kl_coefficient.fill_(self.settings.kl.after(coefficient, kl))
        return losses, norms[0], PolicyKL(kl, coefficient)
