"""The models read each distinct prefix once, however many particles share it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tsmc_widgets.errors import check_stop
from tsmc_widgets.models.protocol import Carry, LMStep, ReservingCarry, by_rows
from tsmc_widgets.models.tempered import Tempered
from tsmc_widgets.smc.proposals import ProposalStep
from tsmc_widgets.smc.resampling import search_rows
from tsmc_widgets.targets.checked import ShowRow, check_answer
from tsmc_widgets.twists.protocol import Twist, TwistStep, prefill_twist

# Of a table of next tokens that is read at once.
_CELLS = 2**23


@dataclass(frozen=True, slots=True)
class PrefixSteps:
    """The answers of base model, twist and proposal for U distinct prefixes.

    Attributes:
        lm: the base model's.
        twist: the twist's; None is psi = 1.
        proposal: the proposal's.
        prefixes: gives the generated tokens of each prefix.
        show: says what a row of tokens is, in errors.
    """

    lm: LMStep
    twist: TwistStep | None
    proposal: ProposalStep
    prefixes: Callable[[], Int[Tensor, "prefixes t"]]
    show: ShowRow

    @property
    def size(self) -> int:
        """U."""
        return self.lm.log_probs.shape[0]

    def parts(self) -> Iterator[tuple[int, Tensor, Tensor, Tensor | None]]:
        """First prefix, log p0, log q and log psi_t of so many prefixes at a time as is cheap.

        Raises:
            ModelOutputError: one of them has NaN or +inf; it says who and after which text.
        """
        log_p, log_q = self.lm.log_probs, self.proposal.log_q_next
        log_psi = None if self.twist is None else self.twist.log_psi_next
        each = max(1, _CELLS // log_p.shape[1])
        for start in range(0, self.size, each):
            check_stop()
            rows = slice(start, start + each)
            of_p = log_p[rows]
            self._check(of_p, "The base model", start)
            of_psi = None if log_psi is None else log_psi[rows]
            if of_psi is not None:
                self._check(of_psi, "The twist", start, weighs=True)
            of_q = of_p if log_q is log_p else log_q[rows]
            if of_q is not of_p:
                self._check(of_q, "The proposal", start)
            yield start, of_p, of_q, of_psi

    def _check(self, values: Tensor, who: str, start: int, *, weighs: bool = False) -> None:
        check_answer(values, who, lambda: self.prefixes()[start:], self.show, weighs=weighs)

    def draw(
        self,
        rows: Int[Tensor, "*particles"],
        uniforms: Float[Tensor, "*particles"],
        *,
        given: Int[Tensor, "*particles"] | None = None,
        top_k: int = 0,
    ) -> NextTokens:
        """Draw a next token from q for each particle, by inversion, and say what weighs it.

        Tables over the vocabulary exist for a part of the prefixes at a time only.

        Args:
            rows: each particle's prefix.
            uniforms: one for each particle.
            given: tokens that are not drawn; -1 where one is.
            top_k: how many of the likeliest next tokens to tell for each prefix.
        """
        flat = rows.reshape(-1)
        order = flat.argsort(stable=True)
        ordered = flat[order]
        tokens = torch.full_like(flat, -1) if given is None else given.reshape(-1).clone()
        uniforms = uniforms.to(flat.device).reshape(-1)
        logs = torch.zeros(3, len(flat), dtype=torch.float64, device=flat.device)
        tables = []
        for start, log_p, log_q, log_psi in self.parts():
            ends = ordered.new_tensor([start, start + len(log_p)])
            first, last = torch.searchsorted(ordered, ends).tolist()
            members = order[first:last]
            own, wanted = flat[members] - start, tokens[members]
            if bool((wanted < 0).any()):
                cdf = log_q.exp().cumsum(-1, dtype=torch.float64)
                wanted = torch.where(wanted < 0, search_rows(cdf, own, uniforms[members]), wanted)
            tokens[members] = wanted
            for values, of_rows in zip(logs, (log_p, log_q, log_psi), strict=True):
                if of_rows is not None:
                    values[members] = of_rows[own, wanted].double()
            if top_k:
                tables.append(_likeliest(log_p, log_q, log_psi, top_k))
        shape = rows.shape
        log_p, log_q, log_psi = (values.reshape(shape) for values in logs)
        joined = [torch.cat(columns) for columns in zip(*tables, strict=True)]
        table = NextTokenTable(rows, *joined) if top_k else None
        return NextTokens(tokens.reshape(shape), log_p, log_q, log_psi, table)

    def whole(self) -> tuple[Tensor, Tensor | None]:
        """Log p0 and log psi_t of every next token after every prefix."""
        parts = list(self.parts())
        log_psi = None if self.twist is None else torch.cat([part[3] for part in parts])
        return torch.cat([part[1] for part in parts]), log_psi


@dataclass(frozen=True, slots=True)
class NextTokens:
    """A next token for each particle, and what weighs it.

    Attributes:
        tokens: drawn or given.
        log_p: log p0 of each.
        log_q: log q of each.
        log_psi: log psi_t with each; zeros without a twist.
        table: the likeliest next tokens, where asked for.
    """

    tokens: Int[Tensor, "*particles"]
    log_p: Float[Tensor, "*particles"]
    log_q: Float[Tensor, "*particles"]
    log_psi: Float[Tensor, "*particles"]
    table: NextTokenTable | None


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
        log_value: log of the sum of p0 psi_t over all V, in nats: what psi_t gives the prefix
            before a token is drawn; NaN in traces saved before it was recorded.
    """

    rows: Int[Tensor, "runs particles"]
    tokens: Int[Tensor, "prefixes k"]
    log_p: Float[Tensor, "prefixes k"]
    log_q: Float[Tensor, "prefixes k"]
    log_psi: Float[Tensor, "prefixes k"]
    log_value: Float[Tensor, " prefixes"]


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
    lm_step, show = target.measured(lm_step), target.context.show_row
    return PrefixSteps(lm_step, twist_step, proposal_step, lambda: prefixes, show)


def _powered(target: Any, lm_step: LMStep) -> LMStep:
    """p0 with the target's power at this token, normalised."""
    if target.power == 1:
        return lm_step
    q = Tempered(target.lm, temperature=1 / target.power)
    return replace(lm_step, log_probs=by_rows(q.tempered, lm_step.log_probs))


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
    lm_step = target.measured(lm_step)
    return PrefixSteps(lm_step, twist_step, proposal_step, prefixes, steps.show)


def _likeliest(
    log_p: Float[Tensor, "rows vocab"],
    log_q: Float[Tensor, "rows vocab"],
    log_psi: Float[Tensor, "rows vocab"] | None,
    k: int,
) -> tuple[Tensor, ...]:
    """The k likeliest next tokens of each prefix: columns of ``NextTokenTable`` after its rows."""
    highest = torch.maximum(log_p, log_q)
    joint = log_p if log_psi is None else log_p + log_psi
    log_value = joint.double().logsumexp(1)
    if log_psi is not None:
        # A prefix that psi gives up has no distribution p0 psi.
        wanted = (joint - log_value.unsqueeze(1)).nan_to_num(nan=-torch.inf)
        highest = torch.maximum(highest, wanted.to(highest))
    best = highest.topk(min(k, log_p.shape[1]), dim=1).indices
    of_psi = log_p.new_zeros(best.shape) if log_psi is None else log_psi.gather(1, best)
    return best, log_p.gather(1, best), log_q.gather(1, best), of_psi, log_value


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
