"""Proposals as they are evaluated: what q gives to texts, and one draw from q for each run."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from tsmc_widgets.models.protocol import LanguageModel
from tsmc_widgets.smc.api import run_smc
from tsmc_widgets.smc.prefixes import advance_steps, distinct_pairs, prefill_steps
from tsmc_widgets.smc.proposals import Base, ModelProposal, Proposal, TwistInduced
from tsmc_widgets.targets.target import Target


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
