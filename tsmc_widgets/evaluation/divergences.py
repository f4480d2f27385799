"""KL divergences between a proposal q and the target sigma, both ways (paper, section 5)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from tsmc_widgets.errors import check_integer
from tsmc_widgets.evaluation.bounds import ConditionalLogZBounds, read_samples, runs_at_once
from tsmc_widgets.evaluation.estimates import (
    BOTH,
    Q_BASE,
    Q_SIGMA,
    SIGMA_Q,
    Divergences,
    KLEstimate,
    LogZ,
    MeanOverRuns,
    kl_estimate,
    tail_shape,
)
from tsmc_widgets.models.protocol import LanguageModel
from tsmc_widgets.smc.api import run_smc
from tsmc_widgets.smc.prefixes import advance_steps, distinct_pairs, prefill_steps
from tsmc_widgets.smc.proposals import Base, ModelProposal, Proposal, TwistInduced, as_proposal
from tsmc_widgets.targets.exact_samples import ExactSamples
from tsmc_widgets.targets.target import Target
from tsmc_widgets.twists.protocol import as_twist


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
        elif isinstance(proposal, LanguageModel) and not isinstance(proposal, Proposal):
            proposal = ModelProposal(proposal)
        proposal, twist = as_proposal(proposal), as_twist(twist)
        follows = proposal.follows_twist
        if follows and twist is not None and twist.proposal_only:
            # Such a twist may not weigh, and q needs it for proposing only.
            return cls(TwistInduced(twist))
        return cls(proposal, twist if follows else None)


@dataclass(frozen=True, slots=True)
class Scores:
    """What p0, q and phi give to sequences, in nats.

    Attributes:
        log_p: log p0(s).
        log_q: log q(s); -inf where q never writes the sequence.
        log_phi: log phi(s).
    """

    log_p: Float64[Tensor, " n"]
    log_q: Float64[Tensor, " n"]
    log_phi: Float64[Tensor, " n"]

    @property
    def log_weight(self) -> Float64[Tensor, " n"]:
        """Log of sigma~(s) / q(s); +inf where only q is zero."""
        return self.log_p + self.log_phi - self.log_q

    @classmethod
    def joined(cls, parts: Iterable[Scores]) -> Scores:
        """Scores of several batches."""
        parts = list(parts)
        names = [field.name for field in fields(cls)]
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in names))

    def require_possible(self, target: Target, tokens: Int[Tensor, "n steps"]) -> None:
        """Raise ValueError if some of what should be samples of sigma is impossible under it."""
        impossible = ((self.log_phi == -math.inf) | (self.log_p == -math.inf)).nonzero()
        if len(impossible):
            row = int(impossible[0, 0])
            raise ValueError(
                f"these cannot be samples of sigma: row {row}, "
                f"{target.labels(tokens[row : row + 1])[0]!r}, has sigma = 0. Take "
                "target.exact_samples(...) or tw.exact(target).sample(...)."
            )


def draw_from(
    target: Target,
    sampler: Sampler,
    count: int,
    seed: int,
    first_run: int,
    *,
    observed: Int[Tensor, "n width"] | None = None,
) -> Scores:
    """Scores of ``count`` draws from q, under ``observed`` if any, as runs of one particle."""
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
    return Scores(
        log_p=columns.log_p.sum(1)[:, 0],
        log_q=columns.log_q.sum(1)[:, 0],
        log_phi=columns.log_psi[:, -1, 0],
    )


@torch.no_grad()
def score_sequences(
    target: Target,
    tokens: Int[Tensor, "n steps"],
    sampler: Sampler,
    *,
    observed: Int[Tensor, "n width"] | None = None,
) -> Scores:
    """Score given sequences by reading them once, each distinct prefix one time.

    Args:
        target: gives p0 and phi, and says whether EOS ends a sequence.
        tokens: generated tokens without the prompt; after an absorbing EOS all are EOS.
        sampler: gives q.
        observed: what is observed with each sequence, where the target waits for it.
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
        # Sequences that have ended point at a row that exists, whatever became of their own.
        rows = torch.zeros_like(rows).index_put((members,), pairs.inverse)
    if observed is None:
        log_phi = target.log_phi(tokens)
    else:
        log_phi = target.log_phi_given(tokens, observed)
    return Scores(log_p.cpu(), log_q.cpu(), log_phi.cpu())


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

    Where the potential waits for an observation o, ``exact_samples`` must be joint samples. For
    the o of each, one sequence is drawn from q; F, G and log Z are compared within each o, so that
    what differs between them cancels before errors are taken.

    Args:
        target: sigma.
        proposal: q: a proposal or any language model; None is induced by ``twist``, or p0 without.
        twist: the twist that a ``TwistInduced()`` follows.
        num_samples: sequences drawn from q; with observations, as many as there are exact samples.
        exact_samples: exact samples of sigma, for KL(sigma||q); each is used once.
        approximate_samples: samples of something near sigma in their place; what they give is
            called so.
        log_z: log Z, as ``LogZ.of`` reads it (a number, an oracle, bounds, rejection's samples, a
            bracket); None takes it from ``exact_samples`` if rejection made them. With
            observations a ``ConditionalLogZBounds``, or a tensor of one exact value a sample.
        seed: of the noise, as for ``run_smc``.
        first_run: address of the first sequence drawn.
        max_rows: sequences in a batch at most, as for ``log_z_bounds``.

    Returns:
        Both divergences with their intervals, and what they are made of. Without any log Z only
        what does not need it.

    Raises:
        ValueError: samples of the wrong kind or shape, or with phi = 0.
    """
    sampler = Sampler.of(proposal, twist)
    tokens, observed, kind = read_samples(target, exact_samples, approximate_samples)
    if observed is None:
        check_integer("num_samples", num_samples, at_least=2)
    count = num_samples if observed is None else len(observed)
    size = runs_at_once(target, 1, max_rows)

    def given(at: int) -> Int[Tensor, "n width"] | None:
        return None if observed is None else observed[at : at + size]

    drawn = Scores.joined(
        draw_from(target, sampler, min(size, count - at), seed, first_run + at, observed=given(at))
        for at in range(0, count, size)
    )
    log_weights = None
    if tokens is not None:
        parts = []
        for at in range(0, len(tokens), size):
            some = tokens[at : at + size]
            parts.append(score_sequences(target, some, sampler, observed=given(at)))
            parts[-1].require_possible(target, some)
        log_weights = Scores.joined(parts).log_weight
    if observed is not None:
        values, known = _log_z_of_each(log_z, count)
    else:
        if log_z is None and isinstance(exact_samples, ExactSamples):
            log_z = exact_samples
        values = known = None if log_z is None else LogZ.of(log_z)
    found = _both_ways(
        drawn.log_weight, log_weights, values, known,
        paired=observed is not None, approximate=kind == "estimate",
    )  # fmt: skip
    log_ratio = MeanOverRuns.of(drawn.log_q - drawn.log_p)
    return Divergences(
        **found,
        q_base=kl_estimate(Q_BASE, log_ratio, estimator="mean of log q − log p0"),
        f=MeanOverRuns.of(drawn.log_weight),
        g=None if log_weights is None else MeanOverRuns.of(log_weights),
        log_phi=MeanOverRuns.of(drawn.log_phi),
        log_z=known,
        proposal=sampler.proposal.describe(),
        num_observations=None if observed is None else len(torch.unique(observed, dim=0)),
    )


def _both_ways(
    f: Float64[Tensor, " n"],
    g: Float64[Tensor, " m"] | None,
    log_z: LogZ | Float64[Tensor, " n"] | None,
    known: LogZ | None,
    *,
    paired: bool,
    approximate: bool,
) -> dict[str, KLEstimate | None]:
    """Both divergences and their sum from log weights of q's sequences, and of sigma's.

    Where they are paired, row i of all three belongs to observation i: differences are taken within
    each observation before their mean.
    """
    dead_q, dead_sigma = (0 if x is None else int(torch.isinf(x).sum()) for x in (f, g))
    terms = {
        "q_sigma": (Q_SIGMA, log_z, f, "log Z − F_q", dead_q),
        "sigma_q": (SIGMA_Q, g, log_z, "G_q − log Z", dead_sigma),
        "symmetrised": (BOTH, g, f, "G_q − F_q", dead_q + dead_sigma),
    }
    found = dict.fromkeys(terms)
    for key, (name, plus, minus, what, dead) in terms.items():
        if plus is None or minus is None:
            continue
        about: dict[str, Any] = {"num_dead": dead}
        if paired:
            what += ", within each observation"
            averaged = [plus - minus]
            about["log_z"] = None if key == "symmetrised" else known
            parts = [MeanOverRuns.of(plus - minus)]
        else:
            what += ", from approximate samples" * (approximate and plus is g)
            averaged = [x for x in (plus, minus) if not isinstance(x, LogZ)]
            about["shared"] = plus if plus is g else None
            parts = [x if isinstance(x, LogZ) else MeanOverRuns.of(x) for x in (plus, minus)]
        about["k_hat"] = max(map(tail_shape, averaged), key=lambda k: -math.inf if k != k else k)
        found[key] = kl_estimate(name, *parts, estimator=what, **about)
    return found


def _log_z_of_each(log_z: Any, count: int) -> tuple[Float64[Tensor, " n"] | None, LogZ | None]:
    """Log Z(o) of each sample's o, and what is known of their mean."""
    if log_z is None:
        return None, None
    if isinstance(log_z, ConditionalLogZBounds):
        summary = LogZ.of(log_z.bounds)
        source = f"mean over observations of the {summary.source}"
        return (log_z.lower + log_z.upper) / 2, replace(summary, source=source)
    values = torch.as_tensor(log_z, dtype=torch.float64).reshape(-1)
    if len(values) != count:
        raise ValueError(
            f"log_z must hold one value for each of the {count} samples, that of its own "
            f"observation, or be log_z_bounds_given(...); got {len(values)}."
        )
    mean = MeanOverRuns.of(values)
    source = "exact for each observation, mean over them"
    return values, LogZ(mean.mean, source, mean.standard_error, max(1, count - 1))
