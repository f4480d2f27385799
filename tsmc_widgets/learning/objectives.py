"""The losses by which twists are learned, functions of scored samples to nats, and PPO's steps.

Weights and targets are constants; gradients flow through log psi alone. Means are over t. Sources
are sections of Zhao et al. (2024) unless another is named. What a loss leaves free in log psi_t is
said in each docstring; ``log psi*_t`` is the log of the optimal twist E_p0[phi | s_{1:t}].

Losses that read phi itself read it in units of exp(level), psi of the twist before it learned,
which the trainer sets to the mean of phi: their gradients are the same for phi and for c * phi.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from tsmc_widgets import numerics
from tsmc_widgets.errors import (
    NoSignalError,
    check_integer,
    check_kind,
    check_number,
    check_one_of,
)
from tsmc_widgets.learning.samples import Samples, Scored, read, score
from tsmc_widgets.targets.target import Target
from tsmc_widgets.twists.protocol import as_twist

FLOOR = 30.0
"""Nats below the level, or below the best text of a batch, to which log psi is pulled at most."""


def floored(log_phi: Float64[Tensor, " n"], level: float = 0.0) -> Float64[Tensor, " n"]:
    """Log phi, at least ``FLOOR`` below the level or the batch's best text, the lower of both.

    A squared error of -inf is infinite, and one far below all others would dominate the batch.
    """
    best = float(log_phi.max())
    return log_phi.clamp(min=(min(best, level) if math.isfinite(best) else level) - FLOOR)


def ctl_loss(positives: Scored, negatives: Scored) -> Float64[Tensor, ""]:
    """Contrastive twist learning: sum_t KL(sigma || pi_t), up to a constant (section 4.1).

    -(E_sigma[log psi_t] - log E_p0[psi_t]), averaged over t, with the gradient -(E_sigma[grad log
    psi_t] - E_{pi_t}[grad log psi_t]). Positives weigh for sigma: exact samples, or phi-weighted
    ones. Negatives weigh for pi_t by their cumulative learned weights. With several groups
    (observations) each has its own expectations, and their mean is taken.

    Passing one batch twice is the one-batch form: its noise is that of the weights for sigma minus
    those for pi_t, text by text, and is nothing at all once the twist is optimal. Two batches have
    no noise in common, and the negatives' last token is summed out: given s_{<t} the mean of grad
    log psi_t under pi_t is grad log sum_v p0 psi_t, which costs nothing more.

    Optimum: log psi*_t plus a constant for each t (and group).
    """
    at_sigma = _average(positives.weights_for_sigma().unsqueeze(1), positives.log_psi)
    log_mean_psi = negatives.log_mean_psi(last_token=positives is negatives)
    return -(at_sigma - log_mean_psi.mean(0)).mean()


def nvi_loss(samples: Scored) -> Float64[Tensor, ""]:
    """Nested variational inference: sum_t KL(pi_{t+1} || pi_t), with pi_{T+1} = sigma.

    -(E_{pi_{t+1}}[log psi_t] - E_{pi_t}[log psi_t]), averaged over t (Zimmermann et al. 2021;
    appendix of the paper). One batch weighs for all.

    Optimum: log psi*_t plus a constant for each t.
    """
    at_twist = samples.weights_for_twist()
    at_sigma = samples.weights_for_sigma().unsqueeze(1)
    at_next = torch.cat([at_twist[:, 1:], at_sigma], dim=1)
    return -(_average(at_next, samples.log_psi) - _average(at_twist, samples.log_psi)).mean()


def rl_loss(samples: Scored, *, at_sigma: bool = False, decay: float = 0.0) -> Float64[Tensor, ""]:
    """Path consistency: (log psi_t - log sum_v p0 psi_{t+1})^2, log phi at the end (section 4.2).

    Any samples that reach everywhere do: those of q, of sigma, or the sum of both losses.

    Optimum: log psi*_t, of phi as ``floored`` leaves it.

    Args:
        samples: the texts.
        at_sigma: whether each counts by its weight for sigma; else all count alike.
        decay: lambda in [0, 1] of targets over several steps: the errors of later steps are added
            to the target, times lambda for each step between. All are 0 for the optimum alone. 0 is
            the paper's loss, whose targets take T updates to say at step 1 what phi is.

    Raises:
        NoSignalError: no text has phi > 0.
    """
    if not bool((samples.samples.log_phi > -math.inf).any()):
        raise NoSignalError("no text of the batch has phi > 0, so there is nothing to regress on.")
    log_phi = floored(samples.samples.log_phi, samples.level)
    following = torch.cat([samples.log_norm[:, 1:], log_phi.unsqueeze(1)], dim=1).detach()
    ends = _ends(samples)
    goal = torch.where(ends, log_phi.unsqueeze(1), following)
    gaps = torch.where(samples.live, samples.log_psi - goal, 0.0)
    if decay:
        gaps = gaps + decay * _discounted(gaps.detach(), decay)
    if not at_sigma:
        return (gaps**2).sum() / samples.live.sum()
    weights = samples.weights_for_sigma()
    return (weights * (gaps**2).sum(1)).sum() / (weights * samples.live.sum(1)).sum()


def sixo_loss(positives: Scored, base: Scored) -> Float64[Tensor, ""]:
    """Logistic regression of sigma's prefixes against p0's (Lawson et al. 2022).

    -E_sigma[log sigmoid(log psi_t)] - E_p0[log sigmoid(-log psi_t)], averaged over t.

    Optimum: log psi*_t - log Z.
    """
    logsigmoid = torch.nn.functional.logsigmoid
    at_sigma = _average(positives.weights_for_sigma().unsqueeze(1), logsigmoid(positives.log_psi))
    at_base = _average(base.weights_for_base(), logsigmoid(-base.log_psi))
    return -(at_sigma + at_base).mean()


def fudge_loss(base: Scored) -> Float64[Tensor, ""]:
    """Cross-entropy of psi_t against the soft label phi(s), on p0's texts (Yang and Klein 2021).

    -E_p0[phi log psi_t + (1 - phi) log(1 - psi_t)], averaged over t, for a bound of 1 on phi and
    psi; with another bound b it is b times that of phi / b and psi / b. It is divided by exp(level)
    and counts log psi from the level. The twist must have the sigmoid link (psi <= b). For
    conditional targets each text may be scored under many observations, drawn with other texts: one
    group for each.

    Optimum: log psi*_t.

    Raises:
        ValueError: phi exceeds the twist's bound, which is 1 or the potential's, or psi does.
    """
    log_phi, bound = base.samples.log_phi, base.log_bound
    if float(log_phi.max()) > bound + 1e-9:
        raise ValueError(
            f"fudge_loss reads phi / bound as a probability and needs log phi <= {bound:.4g}; got "
            f"{float(log_phi.max()):.4g}. Give the potential its log_phi_max, or use another loss."
        )
    if float(base.log_psi.detach().max()) > bound + 1e-9:
        raise ValueError(
            f"fudge_loss needs log psi <= {bound:.4g}: make the twist with link='sigmoid'; got "
            f"{float(base.log_psi.detach().max()):.4g}."
        )
    share = (log_phi - bound).clamp(max=0.0).exp().unsqueeze(1)
    phi = (log_phi - base.level).exp().unsqueeze(1)
    missed = (numerics.log_of_neg_log1mexp(base.log_psi - bound) + (bound - base.level)).exp()
    loss = (1 - share) * missed - phi * (base.log_psi - base.level)
    # phi depends on the whole sequence, so its weight at T is used at every t.
    return _average(base.weights_for_base()[:, -1:], loss).mean()


def cd_loss(base: Scored) -> Float64[Tensor, ""]:
    """Value regression (psi_t - phi)^2 on p0's texts (controlled decoding, Mudgal et al. 2023).

    Both in units of exp(level).

    Optimum: log psi*_t.
    """
    phi = (base.samples.log_phi - base.level).exp().unsqueeze(1)
    psi = (base.log_psi - base.level).exp()
    return _average(base.weights_for_base()[:, -1:], (psi - phi) ** 2).mean()


def dpg_loss(positives: Scored, *, from_q: bool = False) -> Float64[Tensor, ""]:
    """Distributional policy gradient: KL(sigma || q), q proportional to p0 psi_t (section 5).

    -E_sigma[log q(s)], over T: weighted maximum likelihood of the proposal.

    Optimum: log psi*_t + c(s_{<t}) for any function c of the prefix, so that psi can
    propose and cannot weigh particles: a proposal only, with resampling off.

    Args:
        positives: texts that weigh for sigma.
        from_q: whether they were drawn from this very q. E_q[grad log q] is zero, so that 1/n is
            taken off each weight: what is left is no noise at all once q = sigma (the baseline of
            Korbak et al. 2022). The value stays the formula's.
    """
    log_q = positives.log_q_psi.sum(1) / positives.log_psi.shape[1]
    baseline = (log_q - log_q.detach()).mean() if from_q else 0.0
    return baseline - positives.weights_for_sigma() @ log_q


def ppo_loss(
    samples: Scored,
    old_log_q: Float64[Tensor, "n steps"],
    advantages: Float64[Tensor, "n steps"],
    *,
    clip: float = 0.2,
) -> Float64[Tensor, ""]:
    """Clipped policy objective -min(r A, clip(r, 1 - c, 1 + c) A), r = q / q_old.

    Advantages come from ``advantages_and_returns``, whose rewards are log phi at the end minus the
    KL penalty to p0 at each token (Schulman et al. 2017).

    Optimum: with a KL penalty of one the induced proposal is sigma itself, of phi as ``floored``
    leaves it, so log psi_t is free by any function of the prefix: a proposal only, with resampling
    off.
    """
    ratio = (samples.log_q_psi - old_log_q).exp()
    clipped = ratio.clamp(1 - clip, 1 + clip)
    gain = torch.minimum(ratio * advantages, clipped * advantages)
    return -torch.where(samples.live, gain, 0.0).sum() / samples.live.sum()


def advantages_and_returns(
    samples: Scored,
    log_q: Float64[Tensor, "n steps"],
    values: Float64[Tensor, "n steps"],
    *,
    kl_penalty: float = 1.0,
    decay: float = 0.95,
) -> tuple[Float64[Tensor, "n steps"], Float64[Tensor, "n steps"]]:
    """Generalised advantage estimates and the returns that a value head learns, undiscounted.

    The reward at the end is log phi from the twist's level on, so that values are near 0.

    Args:
        samples: texts from q; only their log p0, log phi and ends are read.
        log_q: log q of each token under the proposal that drew it.
        values: the value head's V(s_{<t}).
        kl_penalty: nats of log phi that a nat of log q - log p0 costs; 1 makes sigma the optimum.
        decay: lambda of the estimator; 1 is Monte Carlo.
    """
    ends = _ends(samples)
    log_phi = (floored(samples.samples.log_phi, samples.level) - samples.level).unsqueeze(1)
    penalty = kl_penalty * (log_q - samples.log_p)
    rewards = torch.where(samples.live, torch.where(ends, log_phi, 0.0) - penalty, 0.0)
    advantages = torch.zeros_like(values)
    following = torch.zeros_like(values[:, 0])
    for t in range(values.shape[1] - 1, -1, -1):
        last = ends[:, t] | ~samples.live[:, t]
        after = torch.zeros_like(following) if t + 1 == values.shape[1] else values[:, t + 1]
        after = torch.where(last, 0.0, after)
        surprise = rewards[:, t] + after - values[:, t]
        following = surprise + decay * torch.where(last, 0.0, following)
        following = torch.where(samples.live[:, t], following, 0.0)
        advantages[:, t] = following
    return advantages.detach(), (advantages + values).detach()


def _average(
    weights: Float64[Tensor, "#n #steps"],
    values: Float64[Tensor, "n steps"],
) -> Float64[Tensor, " steps"]:
    """Weighted sum over texts; a text of weight zero adds nothing, whatever its value."""
    return torch.where(weights > 0, weights * values, 0.0).sum(0)


def _discounted(gaps: Float64[Tensor, "n steps"], decay: float) -> Float64[Tensor, "n steps"]:
    """Sum of later gaps at each step, times ``decay`` for each step between."""
    total, columns = torch.zeros_like(gaps[:, 0]), []
    for gap in reversed(gaps.unbind(1)):
        columns.append(total)
        total = gap + decay * total
    return torch.stack(columns[::-1], dim=1)


def _ends(samples: Scored) -> Tensor:
    """Last live position of each text."""
    live = samples.live
    beyond = torch.cat([live[:, 1:], torch.zeros_like(live[:, :1])], dim=1)
    return live & ~beyond


Loss = Callable[[Scored, Scored], Float64[Tensor, ""]]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a method learns.

    Attributes:
        loss: of (positives, batch) to a scalar; None for ppo, which takes several steps on a batch.
        draws_from: the batch's proposal: "twist" is the twist-induced one, "base" is p0.
        needs_positives: whether samples of sigma are read.
        positives_with_p0: whether p0 along these matters, and not log psi alone.
        reads_phi: whether the loss reads phi itself, and not only its proportions, so that its
            scale matters.
    """

    loss: Loss | None
    draws_from: Literal["twist", "base"] = "twist"
    needs_positives: bool = False
    positives_with_p0: bool = False
    reads_phi: bool = False


RL_DECAY = 0.9
"""Lambda of path consistency where nothing is observed. At 0, the paper's, 40 updates brought
one-star reviews no nearer to sigma; on infilling 15/10 it is 0.9 that led away from it."""


def _rl(batch: Scored, *, at_sigma: bool = False) -> Float64[Tensor, ""]:
    decay = RL_DECAY if batch.samples.observed is None else 0.0
    return rl_loss(batch, at_sigma=at_sigma, decay=decay)


RECIPES: dict[str, Recipe] = {
    "ctl": Recipe(ctl_loss, needs_positives=True),
    "rl": Recipe(lambda _, batch: _rl(batch), reads_phi=True),
    "rl_sigma": Recipe(
        lambda positives, batch: (_rl(positives, at_sigma=True) + _rl(batch)) / 2,
        needs_positives=True,
        positives_with_p0=True,
        reads_phi=True,
    ),
    "sixo": Recipe(sixo_loss, "base", needs_positives=True),
    "fudge": Recipe(lambda _, batch: fudge_loss(batch), "base", reads_phi=True),
    "nvi": Recipe(lambda _, batch: nvi_loss(batch)),
    "cd": Recipe(lambda _, batch: cd_loss(batch), "base", reads_phi=True),
    "dpg": Recipe(
        lambda positives, batch: dpg_loss(positives, from_q=positives is batch),
        needs_positives=True,
        positives_with_p0=True,
    ),
    "ppo": Recipe(None, reads_phi=True),
}
SUMS: dict[str, dict[str, float]] = {"ctl+dpg": {"ctl": 1.0, "dpg": 10.0}}
"""Weighted sums with a name. CTL + 10 DPG: weights as CTL's, with q nearer to sigma where no head
of the form is the optimal twist."""
METHODS = (*sorted({*RECIPES, *SUMS} - {"ppo"}), "ppo")


def link_for(method: str) -> str:
    """The twist's link that a method wants: FUDGE learns a probability, psi <= 1."""
    return "sigmoid" if method == "fudge" else "log"


def resolve_method(method: str | Mapping[str, float]) -> dict[str, float]:
    """Losses and their weights: one of ``METHODS``, or a mapping of losses to weights.

    Raises:
        ValueError: an unknown name, or losses that cannot share a batch.
    """
    if isinstance(method, str):
        check_one_of("method", method, METHODS)
        method = SUMS.get(method, {method: 1.0})
    check_kind("method", method, Mapping, "a name, or a mapping of losses to weights")
    weights = dict(method)
    for name, weight in weights.items():
        check_one_of("the loss", name, sorted(RECIPES))
        check_number("weight of a loss", weight, "(0, inf)")
    if not weights:
        raise ValueError("method must name at least one loss; got none.")
    if "ppo" in weights and len(weights) > 1:
        raise ValueError(
            "ppo takes several steps on one batch and cannot be summed with other losses; got "
            f"{sorted(weights)}."
        )
    if len({RECIPES[name].draws_from for name in weights}) > 1:
        raise ValueError(
            f"the losses {sorted(weights)} draw from different proposals (p0 and the twist's): "
            "sum losses that share one."
        )
    return weights


def reads_positives(weights: Mapping[str, float]) -> bool:
    """Whether any of the losses compares with samples of sigma."""
    return any(RECIPES[name].needs_positives for name in weights)


def draws_from_base(weights: Mapping[str, float]) -> bool:
    """Whether the batches come from p0, whatever the twist."""
    return all(RECIPES[name].draws_from == "base" for name in weights)


def weighted_sum(losses: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """The minimised value: losses times their weights, which are 1 where none is given."""
    return math.fsum(weights.get(name, 1.0) * loss for name, loss in losses.items())


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

    kl_coefficient: Tensor

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
