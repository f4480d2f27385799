"""The models read each distinct prefix once, however many particles share it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tsmc_widgets.models.protocol import Carry, LMStep, ReservingCarry
from tsmc_widgets.models.tempered import Tempered
from tsmc_widgets.smc.proposals import ProposalStep
from tsmc_widgets.smc.resampling import search_cdf
from tsmc_widgets.targets.checked import check_answer
from tsmc_widgets.twists.protocol import Twist, TwistStep, prefill_twist

_DRAW_CELLS = 2**24


@dataclass(frozen=True, slots=True)
class PrefixSteps:
    """The answers of base model, twist and proposal for U distinct prefixes."""

    lm: LMStep
    twist: TwistStep | None
    proposal: ProposalStep

    @property
    def size(self) -> int:
        """U."""
        return self.lm.log_probs.shape[0]

    def draw(
        self, rows: Int[Tensor, "runs particles"], uniforms: Float[Tensor, "runs particles"]
    ) -> Int[Tensor, "runs particles"]:
        """Draw a next token from q for each particle, by inversion."""
        mass = self.proposal.log_q_next.exp()
        flat_rows, flat_uniforms = rows.reshape(-1), uniforms.to(mass.device).reshape(-1, 1)
        cdf = mass.cumsum(-1, dtype=torch.float64) if mass.numel() <= _DRAW_CELLS else None
        chunk = max(1, _DRAW_CELLS // mass.shape[1])
        parts = []
        for at in range(0, flat_rows.shape[0], chunk):
            chosen = flat_rows[at : at + chunk]
            of_rows = mass[chosen].cumsum(-1, dtype=torch.float64) if cdf is None else cdf[chosen]
            parts.append(search_cdf(of_rows, flat_uniforms[at : at + chunk]))
        return torch.cat(parts).reshape(rows.shape)


@dataclass(frozen=True, slots=True)
class NextTokenTable:
    """The likeliest next tokens of each distinct prefix.

    A token ranks by its probability under p0, q or p0 psi (normalised), whichever rates it highest.

    Attributes:
        rows: each particle's prefix.
        tokens: token ids, likeliest first.
        log_p: log p0 of each.
        log_q: log q of each.
        log_psi: log psi_t of each; zeros without a twist.
    """

    rows: Int[Tensor, "runs particles"]
    tokens: Int[Tensor, "prefixes k"]
    log_p: Float[Tensor, "prefixes k"]
    log_q: Float[Tensor, "prefixes k"]
    log_psi: Float[Tensor, "prefixes k"]


@dataclass(frozen=True, slots=True)
class Distinct:
    """The distinct (prefix, next token) pairs among some particles.

    Attributes:
        parents: row of the prefix in the steps before.
        tokens: the token that follows it.
        first: one particle (flat index over runs and particles) that has the pair.
        inverse: each particle's pair, in the order that the particles were given.
    """

    parents: Int[Tensor, " pairs"]
    tokens: Int[Tensor, " pairs"]
    first: Int[Tensor, " pairs"]
    inverse: Int[Tensor, " members"]


def distinct_pairs(
    rows: Int[Tensor, "runs particles"],
    tokens: Int[Tensor, "runs particles"],
    members: Int[Tensor, " members"],
    vocab_size: int,
) -> Distinct:
    """Group the particles ``members`` (flat indices) by prefix and next token.

    One pair of each prefix comes first, in the order of the prefixes, the others after them: a KV
    cache then grows at its end, and rows whose prefix goes on stay in place.
    """
    keys = (rows * vocab_size + tokens).reshape(-1)[members]
    pairs, inverse = torch.unique(keys, return_inverse=True)
    parents = pairs // vocab_size
    repeats = torch.zeros_like(parents)
    repeats[1:] = parents[1:] == parents[:-1]
    if bool(repeats.any()):
        order = torch.argsort(repeats, stable=True)
        pairs, inverse = pairs[order], torch.argsort(order)[inverse]
    first = torch.empty_like(pairs)
    first[inverse] = members
    return Distinct(
        parents=pairs // vocab_size, tokens=pairs % vocab_size, first=first, inverse=inverse
    )


def prefill_steps(
    target: Any,
    proposal: Any,
    twist: Twist | None,
    prefixes: Int[Tensor, "rows t"],
    *,
    observed: Int[Tensor, "rows width"] | None = None,
    most_rows: int,
) -> PrefixSteps:
    """Read distinct prefixes s_{1:t} after the prompt; at most ``most_rows`` will follow them.

    What is ``observed`` with each prefix goes to a twist or proposal that wants to know it; its
    carry keeps it from there.
    """
    prompt = target.prompt_tokens.unsqueeze(0).expand(prefixes.shape[0], -1)
    tokens = torch.cat([prompt, prefixes], dim=1)

    def reserve(step: Any) -> Any:
        if not isinstance(step.carry, ReservingCarry):
            return step
        length = prompt.shape[1] + target.num_steps - 1
        return replace(step, carry=step.carry.reserve(most_rows, length))

    # Twists read p0's own answer, and proposals one that is normalised, whatever the power.
    lm_step = reserve(target.lm.prefill(tokens))
    twist_step = None
    if twist is not None:
        twist_step = reserve(prefill_twist(twist, tokens, lm_step, observed))
    if twist_step is not None and twist_step.log_psi_next.shape[1] != target.lm.vocab_size:
        raise ValueError(
            f"the twist has {twist_step.log_psi_next.shape[1]} tokens and the base model "
            f"{target.lm.vocab_size}: a twist must be made for the base model's vocabulary."
        )
    twist_step = _last_step_twist(target, proposal, twist_step, lambda: prefixes)
    extra = {"observed": observed} if proposal.is_conditional else {}
    proposal_step = reserve(
        proposal.prefill(tokens, _powered(target, lm_step), twist_step, **extra)
    )
    steps = PrefixSteps(target.measured(lm_step), twist_step, proposal_step)
    return _checked(steps, target, lambda: prefixes)


def _powered(target: Any, lm_step: LMStep) -> LMStep:
    """p0 with the target's power at this token, normalised."""
    if target.power == 1:
        return lm_step
    q = Tempered(target.lm, temperature=1 / target.power)
    return replace(lm_step, log_probs=q.tempered(lm_step.log_probs))


def _checked(steps: PrefixSteps, target: Any, prefixes: Callable[[], Tensor]) -> PrefixSteps:
    """The answers, or ModelOutputError that says who gave NaN or +inf after which text."""
    show = target.context.show_row
    check_answer(steps.lm.log_probs, "The base model", prefixes, show)
    if steps.twist is not None:
        check_answer(steps.twist.log_psi_next, "The twist", prefixes, show, weighs=True)
    if steps.proposal.log_q_next is not steps.lm.log_probs:
        check_answer(steps.proposal.log_q_next, "The proposal", prefixes, show)
    return steps


def advance_steps(
    target: Any,
    proposal: Any,
    twist: Twist | None,
    steps: PrefixSteps,
    pairs: Distinct,
    paths: Int[Tensor, "particles t"],
) -> PrefixSteps:
    """Read one more token on the distinct prefixes; ``paths`` are all particles' tokens so far."""

    def select(carry: Carry | None) -> Carry | None:
        return None if carry is None else carry.select(pairs.parents)

    lm_step = target.lm.advance(pairs.tokens, select(steps.lm.carry))
    twist_step = None
    if twist is not None:
        twist_step = twist.advance(pairs.tokens, select(steps.twist.carry), lm_step)

    def prefixes() -> Tensor:
        return paths[pairs.first]

    twist_step = _last_step_twist(target, proposal, twist_step, prefixes)
    proposal_step = proposal.advance(
        pairs.tokens, select(steps.proposal.carry), _powered(target, lm_step), twist_step
    )
    steps = PrefixSteps(target.measured(lm_step), twist_step, proposal_step)
    return _checked(steps, target, prefixes)


def next_token_table(
    steps: PrefixSteps, rows: Int[Tensor, "runs particles"], k: int
) -> NextTokenTable:
    """The k likeliest next tokens of each distinct prefix."""
    log_p, log_q = steps.lm.log_probs, steps.proposal.log_q_next
    highest, log_psi = torch.maximum(log_p, log_q), torch.zeros_like(log_p)
    if steps.twist is not None:
        log_psi = steps.twist.log_psi_next
        # A prefix that psi gives up has no distribution p0 psi.
        wanted = (log_p + log_psi).log_softmax(1).nan_to_num(nan=-torch.inf)
        highest = torch.maximum(highest, wanted.to(highest))
    best = highest.topk(min(k, log_p.shape[1]), dim=1).indices
    return NextTokenTable(
        rows=rows,
        tokens=best,
        log_p=log_p.gather(1, best),
        log_q=log_q.gather(1, best),
        log_psi=log_psi.gather(1, best),
    )


def _last_step_twist(
    target: Any, proposal: Any, twist_step: TwistStep | None, prefixes: Any
) -> TwistStep | None:
    """At T a proposal that follows the twist follows phi itself, where the potential offers it."""
    if not proposal.follows_twist or target.is_conditional or target.log_phi_next is None:
        return twist_step
    paths = prefixes()
    if paths.shape[1] != target.num_steps - 1:
        return twist_step
    log_phi_next = target.log_phi_next(paths)
    if twist_step is None:
        return TwistStep(log_phi_next, None)
    return replace(twist_step, log_psi_next=log_phi_next)
