"""Proximal policy optimisation of the twist-induced proposal, with a critic that trains."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from tsmc_widgets.errors import NoSignalError, check_integer, check_number
from tsmc_widgets.learning.objectives import advantages_and_returns, ppo_loss
from tsmc_widgets.learning.samples import Samples, read, score
from tsmc_widgets.targets.target import Target
from tsmc_widgets.twists.protocol import as_twist


@dataclass(frozen=True, slots=True)
class FixedKL:
    """A KL penalty with a constant coefficient.

    The optimum is q proportional to p0 phi^(1 / coefficient): sigma itself at 1, and another
    distribution at every other value.

    Attributes:
        coefficient: nats of log phi that a nat of KL costs.
    """

    coefficient: float | int = 1.0

    def __post_init__(self) -> None:
        """Check the number."""
        check_number("coefficient", self.coefficient, "(0, inf)")

    @property
    def first(self) -> float:
        """The coefficient of the first update."""
        return float(self.coefficient)

    def after(self, coefficient: float, kl: float) -> float:
        """The coefficient of the next update: the same."""
        return coefficient


@dataclass(frozen=True, slots=True)
class AdaptiveKL:
    """A KL coefficient adapted so that KL(q || p0) comes to ``target`` (Ziegler et al. 2019).

    This changes what is optimised: phi is raised to whatever power has that divergence, and sigma
    is the optimum only where ``target`` happens to be KL(sigma || p0).

    Attributes:
        target: KL(q || p0) of whole texts that is wanted, in nats.
        initial: coefficient of the first update.
        rate: relative change of the coefficient for a relative error of the KL, in each update.
        most_error: relative errors are clipped to this.
    """

    target: float | int
    initial: float | int = 1.0
    rate: float | int = 0.1
    most_error: float | int = 0.2

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name in ("target", "initial", "rate", "most_error"):
            check_number(name, getattr(self, name), "(0, inf)")

    @property
    def first(self) -> float:
        """The coefficient of the first update."""
        return float(self.initial)

    def after(self, coefficient: float, kl: float) -> float:
        """The coefficient of the next update: higher where the KL is too large."""
        error = (kl - self.target) / self.target
        clipped = min(max(error, -self.most_error), self.most_error)
        return coefficient * (1 + self.rate * clipped)


@dataclass(frozen=True, slots=True)
class PPOSettings:
    """Settings of ``method="ppo"``.

    Attributes:
        clip: how far the ratio of q to the q that drew a text counts, from 1.
        epochs: steps on each batch.
        decay: lambda of the advantage estimates; 1 is Monte Carlo.
        kl: ``FixedKL(1.0)``, whose optimum is sigma, or ``AdaptiveKL(target=...)``.
    """

    clip: float | int = 0.2
    epochs: int = 4
    decay: float | int = 0.95
    kl: FixedKL | AdaptiveKL = field(default_factory=FixedKL)

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_number("clip", self.clip, "(0, inf)")
        check_integer("epochs", self.epochs)
        check_number("decay", self.decay, "[0, 1]")
        if not isinstance(self.kl, FixedKL | AdaptiveKL):
            raise TypeError(
                "kl must be FixedKL(coefficient) or AdaptiveKL(target=nats); got "
                f"{type(self.kl).__name__}."
            )


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


class PolicySteps:
    """Several clipped steps on each batch (Schulman et al. 2017; a baseline of the paper).

    A KL coefficient of 1 makes sigma the optimum; the twist is a proposal only.

    Attributes:
        critic: learns with the twist, and holds the KL coefficient, so that both are in the state.
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
        self._encoder = as_twist(twist).encoder
        first = self.settings.kl.first
        self.critic = Critic(target, self._encoder, kl_coefficient=first, seed=seed)

    def descend(
        self,
        batch: Samples,
        step: Callable[[Float64[Tensor, ""]], float],
        average: Callable[[float], float] = float,
    ) -> tuple[dict[str, float], float, dict[str, float]]:
        """Take steps on a batch.

        Args:
            batch: texts from q.
            step: takes one step down a loss.
            average: of a number over processes that share the training.

        Returns:
            Losses of the last step, gradient norm of the first, and for the record ``kl``, an
            estimate of KL(q || p0) of whole texts in nats before the update, and
            ``kl_coefficient``, the nats of log phi that a nat of it cost.

        Raises:
            NoSignalError: no text of any process has phi > 0.
        """
        # All processes go on or none does, as each must take as many steps as the others.
        if average(float(batch.log_phi.max() > -math.inf)) == 0:
            raise NoSignalError("no text of the batch has phi > 0, so there is nothing to reward.")
        if batch.sums is None and batch.base is None:
            batch = replace(batch, base=read(self.target, batch.tokens))
        if batch.sums is None:
            hidden = batch.base.hidden
        else:
            hidden = batch.sums.inputs[..., : self.twist.head.hidden]
        batch = replace(batch, sums=None)  # They are of the twist as it was, and steps move it.
        code = None
        if self._encoder is not None:
            code = self._encoder.encode(batch.observed)
        with torch.no_grad():
            scored = score(self.target, self.twist, batch)
            values = self.critic(hidden, code).expand_as(scored.log_p)
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
            gaps = torch.where(live, self.critic(hidden, code) - returns, 0.0)
            critic = (gaps**2).sum() / live.sum()
            norms.append(step(policy + CRITIC_WEIGHT * critic))
            losses = {"ppo": float(policy.detach()), "critic": float(critic.detach())}
        kl = average(float((old_log_q - scored.log_p).sum(1).mean()))
        self.critic.kl_coefficient.fill_(self.settings.kl.after(coefficient, kl))
        return losses, norms[0], {"kl": kl, "kl_coefficient": coefficient}
