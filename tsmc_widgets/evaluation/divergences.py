"""KL divergences between a proposal q and the target sigma, both ways (paper, section 5)."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from tsmc_widgets.errors import check_integer
from tsmc_widgets.evaluation.bounds import (
    CONDITIONAL_RUNS,
    follows_proposal_only,
    read_samples,
    runs_at_once,
)
from tsmc_widgets.evaluation.estimates import (
    BOTH,
    Q_BASE,
    Q_SIGMA,
    SIGMA_Q,
    Divergences,
    KLEstimate,
    LogZ,
    LogZBounds,
    MeanOverRuns,
    combine,
    of_mean,
)
from tsmc_widgets.models.protocol import LanguageModel
from tsmc_widgets.smc.api import run_conditional_smc, run_smc
from tsmc_widgets.smc.prefixes import advance_steps, distinct_pairs, prefill_steps
from tsmc_widgets.smc.proposals import Base, ModelProposal, Proposal, TwistInduced
from tsmc_widgets.smc.resampling import ResampleRule, resolve_rule
from tsmc_widgets.targets.exact_samples import ExactSamples, JointSamples
from tsmc_widgets.targets.target import Target

__all__ = ["Divergences", "KLEstimate", "LogZ", "LogZGiven", "kl_divergences"]


@dataclass(frozen=True, slots=True)
class Sampler:
    """A proposal with the twist that it follows, if it follows the sampler's.

    Attributes:
        proposal: q.
        twist: the sampler's twist where q follows it; None elsewhere, for q alone is evaluated.
    """

    proposal: Proposal
    twist: Any = None

    @classmethod
    def of(cls, proposal: Any, twist: Any) -> Sampler:
        """What a user's ``proposal`` and ``twist`` name.

        A language model is a proposal; without a proposal, a twist induces one, and without
        either it is p0.
        """
        if proposal is None:
            if twist is None:
                return cls(Base())
            proposal = TwistInduced()
        elif isinstance(proposal, LanguageModel) and not hasattr(proposal, "describe"):
            proposal = ModelProposal(proposal)
        follows = getattr(proposal, "follows_twist", False) and proposal.twist is None
        if follows and getattr(twist, "proposal_only", False):
            # Such a twist may not weigh, and q needs it for proposing only.
            return cls(TwistInduced(twist))
        return cls(proposal, twist if follows else None)

    def describe(self) -> str:
        """The proposal in a few words."""
        return self.proposal.describe()


@dataclass(frozen=True, slots=True)
class Scores:
    """What p0, q and phi give to texts, in nats.

    Attributes:
        log_p: log p0(s).
        log_q: log q(s); -inf where q never writes the text.
        log_phi: log phi(s).
    """

    log_p: Float64[Tensor, " n"]
    log_q: Float64[Tensor, " n"]
    log_phi: Float64[Tensor, " n"]

    @property
    def log_weight(self) -> Float64[Tensor, " n"]:
        """Log of sigma~(s) / q(s); +inf where only q is zero."""
        return self.log_p + self.log_phi - self.log_q

    def require_possible(self, target: Target, tokens: Int[Tensor, "n steps"]) -> None:
        """Raise ValueError if some of what should be samples of sigma is impossible under it."""
        impossible = ((self.log_phi == -math.inf) | (self.log_p == -math.inf)).nonzero()
        if len(impossible):
            row = int(impossible[0, 0])
            raise ValueError(
                f"these can not be samples of sigma: row {row}, "
                f"{target.texts(tokens[row : row + 1])[0]!r}, has sigma = 0. Take "
                "target.exact_samples(...) or tw.exact(target).sample(...)."
            )


@dataclass(frozen=True, slots=True)
class Drawn(Scores):
    """Scores of texts drawn from q."""

    tokens: Int[Tensor, "n steps"]

    @classmethod
    def joined(cls, parts: list[Drawn]) -> Drawn:
        """Draws of several batches."""
        names = [field.name for field in fields(cls)]
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


def draw_from(
    target: Target,
    sampler: Sampler,
    count: int | None,
    seed: int,
    first_run: int,
    *,
    observed: Int[Tensor, "n width"] | None = None,
) -> Drawn:
    """Draw ``count`` texts from q, or one for each observation, as runs of one particle."""
    extra = {} if observed is None else {"observed": observed}
    trace = run_smc(
        target,
        num_particles=1,
        num_runs=count,
        proposal=sampler.proposal,
        twist=sampler.twist,
        rule="never",
        seed=seed,
        first_run=first_run,
        dead_runs="keep",
        **extra,
    )
    columns = trace.columns
    return Drawn(
        log_p=columns.log_p.sum(1)[:, 0],
        log_q=columns.log_q.sum(1)[:, 0],
        log_phi=columns.log_psi[:, -1, 0],
        tokens=columns.tokens[:, :, 0],
    )


@torch.no_grad()
def score_texts(
    target: Target,
    tokens: Int[Tensor, "n steps"],
    sampler: Sampler,
    *,
    observed: Int[Tensor, "n width"] | None = None,
) -> Scores:
    """Score given texts by reading them once, each distinct prefix one time.

    Args:
        target: gives p0 and phi, and says whether EOS ends a text.
        tokens: generated tokens without the prompt; after an absorbing EOS all are EOS.
        sampler: gives q.
        observed: what is observed with each text, where the target waits for it.
    """
    tokens = tokens.to(target.prompt_tokens.device)
    count, eos = len(tokens), target.eos_token_id if target.absorbs_eos else None
    rows, first_observed = torch.zeros_like(tokens[:, 0]), None
    if observed is not None:
        first_observed, rows = torch.unique(observed, dim=0, return_inverse=True)
    live = torch.ones(count, dtype=torch.bool, device=tokens.device)
    log_p = torch.zeros(count, dtype=torch.float64, device=tokens.device)
    log_q = log_p.clone()
    none = tokens[: int(rows.max()) + 1, :0]
    steps = prefill_steps(
        target,
        sampler.proposal,
        sampler.twist,
        none,
        observed=first_observed,
        most_rows=count,
    )
    for t in range(target.num_steps):
        chosen = tokens[:, t]
        log_p = log_p + torch.where(live, steps.lm.log_probs[rows, chosen].double(), 0.0)
        q = steps.proposal.log_q_next[rows, chosen].double()
        log_q = log_q + torch.where(live, q, 0.0)
        if eos is not None:
            live = live & (chosen != eos)
        members = live.nonzero().squeeze(1)
        if t + 1 == target.num_steps or not len(members):
            break
        pairs = distinct_pairs(
            rows.unsqueeze(0), chosen.unsqueeze(0), members, target.lm.vocab_size
        )
        steps = advance_steps(
            target, sampler.proposal, sampler.twist, steps, pairs, tokens[:, : t + 1]
        )
        # Texts that have ended point at a row that exists, whatever became of their own.
        rows = torch.zeros_like(rows).index_put((members,), pairs.inverse)
    if observed is None:
        log_phi = target.log_phi(tokens)
    else:
        log_phi = target.log_phi_given(tokens, observed)
    return Scores(log_p.cpu(), log_q.cpu(), log_phi.cpu())


@dataclass(frozen=True, slots=True)
class LogZGiven:
    """Bounds on log Z(o) for the o of each sample: one forward and one conditional run for each.

    Attributes:
        lower: log Z_hat of a forward run under each sample's o.
        upper: conditional log Z_hat with the sample itself.
        num_particles: K of both.
        rule: when they resampled, in words.
    """

    lower: Float64[Tensor, " n"]
    upper: Float64[Tensor, " n"]
    num_particles: int
    rule: str

    @property
    def gap(self) -> float:
        """Mean of upper minus lower over o, in nats: training may stop on it."""
        return float((self.upper - self.lower).mean())

    @property
    def gap_standard_error(self) -> float:
        """Standard error of the gap; what differs between the o is taken away first."""
        return MeanOverRuns.of(self.upper - self.lower).standard_error

    @property
    def bounds(self) -> LogZBounds:
        """Bounds on the mean of log Z(o) over o; pooling over different o would bound nothing."""
        return LogZBounds(
            lower=MeanOverRuns.of(self.lower),
            upper=MeanOverRuns.of(self.upper),
            num_particles=self.num_particles,
            upper_kind="bound",
            rule=self.rule,
            lower_log_z=self.lower,
            upper_log_z=self.upper,
        )


@torch.no_grad()
def log_z_bounds_given(
    target: Target,
    samples: JointSamples,
    *,
    num_particles: int,
    twist: Any = None,
    proposal: Any = None,
    rule: str | ResampleRule | None = None,
    ess_threshold: float | None = None,
    seed: int = 0,
    first_run: int = 0,
    max_rows: int | None = None,
) -> LogZGiven:
    """Bound log Z(o) for the o of each joint sample, from both sides.

    Args:
        target: its potential waits for an observation.
        samples: ``target.exact_samples(n, ...)``.
        num_particles: K.
        twist: a twist, told each run's o if it is conditional.
        proposal: as for ``run_smc``; a conditional twist in it is told too.
        rule: as for ``run_smc``.
        ess_threshold: as for ``run_smc``.
        seed: as for ``run_smc``.
        first_run: address of the first sample's runs.
        max_rows: particles in a batch at most, as for ``log_z_bounds``.
    """
    check_joint(target, samples)
    check_integer("num_particles", num_particles)
    if rule is None and ess_threshold is None and follows_proposal_only(proposal):
        rule = "never"
    chosen = resolve_rule(rule, ess_threshold)
    how = {
        "num_particles": num_particles,
        "twist": twist,
        "proposal": proposal,
        "rule": chosen,
        "seed": seed,
    }
    chunk = runs_at_once(target, num_particles, max_rows)
    lower, upper = [], []
    for at in range(0, len(samples.tokens), chunk):
        own = JointSamples(samples.tokens[at : at + chunk], samples.observed[at : at + chunk])
        forward = run_smc(
            target, observed=own.observed, first_run=first_run + at, dead_runs="keep", **how
        )
        backward = run_conditional_smc(
            target, retained=own, first_run=CONDITIONAL_RUNS + first_run + at, **how
        )
        lower.append(forward.columns.log_z[:, -1])
        upper.append(backward.columns.log_z[:, -1])
    return LogZGiven(torch.cat(lower), torch.cat(upper), num_particles, chosen.describe())


def divergences_given(
    target: Target,
    sampler: Sampler,
    samples: Any,
    *,
    log_z: Any,
    seed: int,
    first_run: int,
    max_rows: int | None,
) -> Divergences:
    """The conditional part of ``kl_divergences``."""
    check_joint(target, samples)
    count = len(samples.tokens)
    middle, known = _log_z_of_each(log_z, count)
    size = runs_at_once(target, 1, max_rows)
    draws, weights = [], []
    for at in range(0, count, size):
        tokens, observed = samples.tokens[at : at + size], samples.observed[at : at + size]
        draws.append(draw_from(target, sampler, None, seed, first_run + at, observed=observed))
        scores = score_texts(target, tokens, sampler, observed=observed)
        scores.require_possible(target, tokens)
        weights.append(scores.log_weight)
    drawn, g = Drawn.joined(draws), torch.cat(weights)
    f = drawn.log_weight
    dead_q, dead_sigma = int(torch.isinf(f).sum()), int(torch.isinf(g).sum())
    within = ", within each observation"
    q_sigma = sigma_q = None
    if middle is not None:
        q_sigma = of_mean(
            Q_SIGMA, middle - f, estimator=f"log Z − F_q{within}", num_dead=dead_q, log_z=known
        )
        sigma_q = of_mean(
            SIGMA_Q, g - middle, estimator=f"G_q − log Z{within}", num_dead=dead_sigma, log_z=known
        )
    return Divergences(
        q_sigma=q_sigma,
        sigma_q=sigma_q,
        symmetrised=of_mean(
            BOTH, g - f, estimator=f"G_q − F_q{within}", num_dead=dead_q + dead_sigma
        ),
        q_base=of_mean(Q_BASE, drawn.log_q - drawn.log_p, estimator="mean of log q − log p0"),
        f=MeanOverRuns.of(f),
        g=MeanOverRuns.of(g),
        log_phi=MeanOverRuns.of(drawn.log_phi),
        log_z=known,
        proposal=sampler.describe(),
        num_observations=len(torch.unique(samples.observed, dim=0)),
    )


def check_joint(target: Target, samples: Any) -> None:
    """Raise unless the samples pair texts of the target with observations."""
    if not target.is_conditional:
        raise ValueError(
            f"{target.potential.describe()} waits for no observation: call log_z_bounds."
        )
    if not hasattr(samples, "observed"):
        raise ValueError(
            f"{target.potential.describe()} waits for an observation: give joint samples, "
            f"target.exact_samples(n, seed=...); got {type(samples).__name__}."
        )
    check_integer("number of exact samples", len(samples.tokens), at_least=2)


def _log_z_of_each(log_z: Any, count: int) -> tuple[Float64[Tensor, " n"] | None, LogZ | None]:
    if log_z is None:
        return None, None
    if isinstance(log_z, LogZGiven):
        middle = (log_z.lower + log_z.upper) / 2
        summary = LogZ.of(log_z.bounds)
        source = f"mean over observations of the {summary.source}"
        return middle, replace(summary, source=source)
    values = torch.as_tensor(log_z, dtype=torch.float64).reshape(-1)
    if len(values) != count:
        raise ValueError(
            f"log_z must hold one value for each of the {count} samples, that of its own "
            f"observation, or be log_z_bounds_given(...); got {len(values)}."
        )
    mean = MeanOverRuns.of(values)
    source = "exact for each observation, mean over them"
    return values, LogZ(mean.mean, source, mean.standard_error, max(1, count - 1))


@torch.no_grad()
def kl_divergences(
    target: Target,
    *,
    proposal: Any = None,
    twist: Any = None,
    num_samples: int = 1000,
    exact_samples: Any = None,
    approximate_samples: Any = None,
    log_z: Any = None,
    seed: int = 0,
    first_run: int = 0,
    max_rows: int | None = None,
) -> Divergences:
    """Estimate KL(q||sigma) = log Z - F_q and KL(sigma||q) = G_q - log Z, without resampling.

    Where the potential waits for an observation o, ``exact_samples`` must be joint samples. Each
    text has its own o, for which one text is drawn from q; F, G and log Z are compared within each
    o, so that what differs between them cancels before errors are taken.

    Args:
        target: sigma.
        proposal: q: a proposal or any language model; None is induced by ``twist``, or p0 without.
        twist: the twist that a ``TwistInduced()`` follows.
        num_samples: texts drawn from q; with observations, as many as there are exact samples.
        exact_samples: exact samples of sigma, for KL(sigma||q); each is used once.
        approximate_samples: samples of something near sigma in their place; what they give is
            called so.
        log_z: log Z, as ``LogZ.of`` reads it (a number, an oracle, bounds, rejection's samples, a
            bracket); None takes it from ``exact_samples`` if rejection made them. With
            observations a ``LogZGiven``, or a tensor of exact values, one for each sample.
        seed: of the noise, as for ``run_smc``.
        first_run: address of the first text drawn.
        max_rows: texts in a batch at most, as for ``log_z_bounds``.

    Returns:
        Both divergences with their intervals, and what they are made of. Without any log Z only
        what does not need it.

    Raises:
        ValueError: samples of the wrong kind or shape, or with phi = 0.
    """
    sampler = Sampler.of(proposal, twist)
    if target.is_conditional:
        if approximate_samples is not None:
            raise ValueError("with observations only exact_samples=target.exact_samples(...) pair.")
        return divergences_given(
            target,
            sampler,
            exact_samples,
            log_z=log_z,
            seed=seed,
            first_run=first_run,
            max_rows=max_rows,
        )
    check_integer("num_samples", num_samples, at_least=2)
    tokens, kind = read_samples(exact_samples, approximate_samples)
    if log_z is None and isinstance(exact_samples, ExactSamples):
        log_z = exact_samples
    known = None if log_z is None else LogZ.of(log_z)
    size = runs_at_once(target, 1, max_rows)
    drawn = Drawn.joined(
        [
            draw_from(target, sampler, min(size, num_samples - at), seed, first_run + at)
            for at in range(0, num_samples, size)
        ]
    )
    g = None if tokens is None else _exact_log_weights(target, tokens, sampler, size)
    return _assemble(drawn, g, known, sampler.describe(), approximate=kind == "estimate")


def _exact_log_weights(
    target: Target, tokens: Int[Tensor, "n steps"], sampler: Sampler, size: int
) -> Float64[Tensor, " n"]:
    parts = []
    for piece in tokens.split(size):
        scores = score_texts(target, piece, sampler)
        scores.require_possible(target, piece)
        parts.append(scores.log_weight)
    return torch.cat(parts)


def _assemble(
    drawn: Drawn,
    log_weights: Float64[Tensor, " n"] | None,
    log_z: LogZ | None,
    proposal: str,
    *,
    approximate: bool,
) -> Divergences:
    f = MeanOverRuns.of(drawn.log_weight)
    dead_q = int(torch.isinf(drawn.log_weight).sum())
    q_sigma = sigma_q = both = g = None
    if log_z is not None:
        q_sigma = combine(Q_SIGMA, log_z, f, num_dead=dead_q, estimator="log Z − F_q")
    if log_weights is not None:
        g = MeanOverRuns.of(log_weights)
        dead_sigma = int(torch.isinf(log_weights).sum())
        both = combine(
            BOTH,
            g,
            f,
            num_dead=dead_q + dead_sigma,
            estimator="G_q − F_q",
            approximate=approximate,
        )
        if log_z is not None:
            sigma_q = combine(
                SIGMA_Q,
                g,
                log_z,
                num_dead=dead_sigma,
                estimator="G_q − log Z",
                approximate=approximate,
            )
    return Divergences(
        q_sigma=q_sigma,
        sigma_q=sigma_q,
        symmetrised=both,
        q_base=of_mean(Q_BASE, drawn.log_q - drawn.log_p, estimator="mean of log q − log p0"),
        f=f,
        g=g,
        log_phi=MeanOverRuns.of(drawn.log_phi),
        log_z=log_z,
        proposal=proposal,
    )
