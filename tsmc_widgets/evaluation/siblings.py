"""Prefixes with siblings: log psi beside log psi*, within a prefix and between prefixes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from tsmc_widgets import numerics
from tsmc_widgets.errors import TsmcError, check_integer
from tsmc_widgets.evaluation.bellman import BellmanError, Population
from tsmc_widgets.evaluation.estimates import frame_of
from tsmc_widgets.models.tempered import table_of
from tsmc_widgets.smc.exact import Oracle, exact
from tsmc_widgets.smc.prefixes import prefill_steps
from tsmc_widgets.smc.proposals import Base
from tsmc_widgets.targets.sampling import finished
from tsmc_widgets.targets.target import Target
from tsmc_widgets.twists.protocol import as_twist

PARENTS, SIBLINGS, ROLLOUTS = 9, 4, 24
EXACT_PARENTS = 32
"""Where log psi* is known and need not be rolled out."""
MOST_STEPS = 10
ORACLE_BUDGET = 2**14
FRAME = ("t", "parent", "token", "text", "log_psi", "log_star", "log_star_error")


def reachable_oracle(target: Target) -> Oracle | None:
    """The oracle of a target whose model is a table and whose sequences are few, else None.

    A target that waits for an observation has none.
    """
    if target.is_conditional:
        return None
    table = table_of(target.lm)
    if table is None and target.lm.vocab_size**target.num_steps > 1024:
        return None
    try:
        return exact(target, max_sequences=ORACLE_BUDGET)
    except TsmcError:
        return None


@dataclass(frozen=True, slots=True)
class Family:
    """Some prefixes of t - 1 tokens, each with the same number of next tokens.

    Attributes:
        t: length of the siblings.
        tokens: of each sibling, from the first on.
        log_psi: of each; NaN where a parent has fewer next tokens that go on.
        log_star: log psi* of each, exact or rolled out; NaN until then, -inf where no rollout has
            phi > 0.
        error: standard error of ``log_star`` to first order; 0 where exact.
        observed: one observation for each parent.
    """

    t: int
    tokens: Int[Tensor, "parents siblings t"]
    log_psi: Float64[Tensor, "parents siblings"]
    log_star: Float64[Tensor, "parents siblings"]
    error: Float64[Tensor, "parents siblings"]
    observed: Int[Tensor, "parents width"] | None = None


def pick_families(
    target: Target,
    twist: Any,
    found: BellmanError,
    *,
    seed: int = 0,
    parents: int | None = None,
    siblings: int = SIBLINGS,
) -> list[Family]:
    """Families at up to ``MOST_STEPS`` steps before T, without log psi*.

    Parents are distinct prefixes of the population; their next tokens are drawn without
    replacement, half by p0 and half by p0 psi, from those that end nothing.
    """
    if parents is None:
        parents = PARENTS if reachable_oracle(target) is None else EXACT_PARENTS
    generator = torch.Generator().manual_seed(seed * 10_007 + 9_401)
    last = target.num_steps - 1
    families = []
    for t in torch.linspace(1, last, min(last, MOST_STEPS)).round().long().tolist():
        begun, seen = _parents(found, t - 1, parents, generator)
        if len(begun):
            more = parents * siblings // len(begun)
            families.append(_family(target, as_twist(twist), begun, seen, more, generator))
    return families


def _parents(
    found: BellmanError, t: int, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor | None]:
    """Distinct living prefixes of t tokens, and what is observed with each."""
    population: Population = found.population
    runs, _, size = population.tokens.shape
    alive = torch.ones(runs, size, dtype=torch.bool)
    if t:
        alive = ~found.log_psi[:, t - 1].isnan()
    living = alive.nonzero()
    places = living[torch.randperm(len(living), generator=generator)].tolist()
    rows: dict[tuple[int, ...], tuple[list[int], int]] = {}
    for run, particle in places:
        tokens = population.prefix(run, t, particle)
        key = (*tokens, *([] if population.observed is None else population.observed[run].tolist()))
        rows.setdefault(key, (tokens, run))
        if len(rows) == count:
            break
    begun = torch.tensor([tokens for tokens, _ in rows.values()], dtype=torch.int64)
    begun = begun.reshape(len(rows), t)
    if population.observed is None:
        return begun, None
    return begun, population.observed[[run for _, run in rows.values()]]


@torch.no_grad()
def _family(
    target: Target,
    twist: Any,
    begun: Tensor,
    seen: Tensor | None,
    siblings: int,
    generator: torch.Generator,
) -> Family:
    begun = begun.to(target.lm.device)
    seen = None if seen is None else seen.to(begun.device)
    steps = prefill_steps(target, Base(), twist, begun, observed=seen, most_rows=len(begun))
    log_p, log_psi = (table.double().cpu() for table in steps.whole())
    q = numerics.normalise(log_p) + numerics.normalise(log_p + log_psi)
    if target.ending is not None:
        q[target.ending.next(begun).cpu()] = 0.0
    # Gumbel's trick: the largest of log q plus noise are draws without replacement.
    uniform = torch.rand(q.shape, generator=generator, dtype=torch.float64)
    best = (q.log() - (-uniform.log()).log()).topk(min(siblings, q.shape[1]), dim=1)
    own = log_psi.gather(1, best.indices)
    own = torch.where(torch.isneginf(best.values), math.nan, own)
    parent = begun.cpu().unsqueeze(1).expand(-1, best.indices.shape[1], -1)
    tokens = torch.cat([parent, best.indices.unsqueeze(-1)], dim=-1)
    blank = torch.full_like(own, math.nan)
    return Family(begun.shape[1] + 1, tokens, own, blank, blank, seen)


@torch.no_grad()
def read_again(target: Target, family: Family, twist: Any) -> Family:
    """The same prefixes with another twist's log psi."""
    begun = family.tokens[:, 0, :-1].to(target.lm.device)
    steps = prefill_steps(
        target, Base(), as_twist(twist), begun, observed=family.observed, most_rows=len(begun)
    )
    log_psi = steps.whole()[1].double().cpu().gather(1, family.tokens[..., -1])
    return replace(family, log_psi=torch.where(family.log_psi.isnan(), math.nan, log_psi))


@torch.no_grad()
def rollout_log_phi(
    target: Target,
    begun: Int[Tensor, "n t"],
    rollouts: int,
    generator: torch.Generator,
    observed: Int[Tensor, "n width"] | None = None,
) -> Float64[Tensor, "n rollouts"]:
    """Log phi of sequences that p0 ends each prefix with; of the prefixes if all have ended.

    With a power of p0 it is that of p0**power phi / q, for q with the power at each token.
    """
    if bool(have_ended(target, begun).all()):
        log_phi = target.log_phi_given(target.whole(begun), observed)
        return log_phi.cpu().unsqueeze(1).expand(-1, rollouts)
    tokens, log_ratio = finished(target, begun, rollouts, generator=generator)
    if observed is not None:
        observed = observed.repeat_interleave(rollouts, 0)
    log_phi = target.log_phi_given(tokens.flatten(0, 1), observed)
    return (log_phi.reshape(log_ratio.shape) + log_ratio).cpu()


def have_ended(target: Target, begun: Int[Tensor, "n t"]) -> Bool[Tensor, " n"]:
    """Which prefixes are T tokens long or have ended, so that phi of them is known."""
    return target.over(begun)[:, -1] | (begun.shape[1] == target.num_steps)


def estimate_psi_star(
    target: Target,
    begun: Int[Tensor, "n t"],
    rollouts: int,
    generator: torch.Generator,
    observed: Int[Tensor, "n width"] | None = None,
) -> tuple[Float64[Tensor, " n"], Float64[Tensor, " n"]]:
    """Log psi* of prefixes by the mean of phi over rollouts, and its standard error to first order.

    Rollouts that agree have an error of 1 / n: as if one of the n had been of phi = 0. The error is
    NaN where no rollout has phi > 0.
    """
    check_integer("rollouts", rollouts, at_least=2)
    log_phi = rollout_log_phi(target, begun, rollouts, generator, observed)
    mean = numerics.logmeanexp(log_phi)
    shares = torch.where(torch.isneginf(mean), math.nan, log_phi.T - mean).T.exp()
    return mean, (shares.std(1) / math.sqrt(rollouts)).clamp(min=1 / rollouts)


def psi_star(
    target: Target,
    begun: Int[Tensor, "n t"],
    oracle: Oracle | None,
    *,
    rollouts: int = ROLLOUTS,
    seed: int = 0,
    observed: Int[Tensor, "n width"] | None = None,
) -> tuple[Float64[Tensor, " n"], Float64[Tensor, " n"]]:
    """Log psi* of prefixes of one length and its standard error: by the oracle or by rollouts."""
    if oracle is not None:
        length = len(target.prompt_tokens)
        log_psi = oracle.optimal_twist().log_psi(target.after_prompt(begun), length)
        log_star = log_psi[:, -1].double()
        return log_star, torch.zeros_like(log_star)
    device = target.lm.device
    generator = torch.Generator(device).manual_seed(seed * 10_007 + 9_500 + begun.shape[1])
    return estimate_psi_star(target, begun.to(device), rollouts, generator, observed)


def with_star(target: Target, family: Family, oracle: Oracle | None, **how: Any) -> Family:
    """The family with its log psi*; ``how`` are ``rollouts`` and ``seed`` of ``psi_star``."""
    if family.observed is not None:
        how["observed"] = family.observed.repeat_interleave(family.tokens.shape[1], 0)
    found = psi_star(target, family.tokens.flatten(0, 1), oracle, **how)
    log_star, error = (values.reshape(family.log_psi.shape) for values in found)
    return replace(family, log_star=log_star, error=error)


def rollout_texts(
    target: Target, begun: Int[Tensor, " t"], family: Family, *, count: int = 4, seed: int = 0
) -> list[str]:
    """Some sequences that p0 ends a prefix with, each after its log phi."""
    generator = torch.Generator(target.lm.device).manual_seed(seed * 10_007 + 9_600 + family.t)
    tokens, _ = finished(target, begun.unsqueeze(0).to(target.lm.device), count,
                         generator=generator)  # fmt: skip
    if target.is_conditional:
        return target.labels(tokens[0])
    log_phi = target.log_phi(tokens[0]).tolist()
    rows = zip(log_phi, target.labels(tokens[0]), strict=True)
    return [f"log φ {value:.2f}: {text}".replace("-", "−") for value, text in rows]


def fill_in(
    target: Target, families: list[Family], *, rollouts: int = ROLLOUTS, seed: int = 0
) -> Iterator[Family]:
    """Each family with its log psi*: exact where the oracle reaches, else rolled out."""
    oracle = reachable_oracle(target)
    for family in families:
        yield with_star(target, family, oracle, rollouts=rollouts, seed=seed)


def family_frame(target: Target, families: list[Family]) -> Any:
    """One row a prefix: t, parent, token, text, log_psi, log_star, log_star_error, in nats."""
    rows, parents = [], 0
    for family in families:
        texts = target.labels(family.tokens.flatten(0, 1).to(target.lm.device))
        for place, text in enumerate(texts):
            parent, sibling = divmod(place, family.tokens.shape[1])
            at = (parent, sibling)
            rows.append(
                {
                    "t": family.t,
                    "parent": parents + parent,
                    "token": int(family.tokens[parent, sibling, -1]),
                    "text": text,
                    "log_psi": float(family.log_psi[at]),
                    "log_star": float(family.log_star[at]),
                    "log_star_error": float(family.error[at]),
                }
            )
        parents += len(family.tokens)
    frame = frame_of(rows, FRAME)
    return frame.astype({name: float for name in FRAME if name.startswith("log")})
