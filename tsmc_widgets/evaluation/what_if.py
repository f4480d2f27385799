"""What if: powers of a twist, and one particle's token changed with all noise kept."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tsmc_widgets import numerics
from tsmc_widgets.errors import check_integer
from tsmc_widgets.evaluation.bellman import run_twist
from tsmc_widgets.evaluation.estimates import (
    PooledOverRuns,
    frame_of,
    mean_with_ends,
    mean_within,
)
from tsmc_widgets.evaluation.twist_quality import have_ended, psi_star, reachable_oracle
from tsmc_widgets.evaluation.twist_report import ROLLOUTS
from tsmc_widgets.smc.api import SMCSession, run_conditional_smc, start_smc
from tsmc_widgets.smc.exact import Oracle
from tsmc_widgets.smc.proposals import TwistInduced, following
from tsmc_widgets.smc.sampler import ending, init, weight
from tsmc_widgets.smc.state import SMCState, StepRecord
from tsmc_widgets.smc.trace import SMCTrace
from tsmc_widgets.targets.target import Target, require_unconditional
from tsmc_widgets.twists.lookahead import TemperedTwist
from tsmc_widgets.twists.protocol import as_twist

if TYPE_CHECKING:
    import pandas as pd

POWERS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
TOKENS = 10


def power_rows(
    target: Target,
    twist: Any,
    *,
    powers: Sequence[float] = POWERS,
    num_particles: int = 32,
    num_runs: int = 16,
    seed: int = 0,
) -> Iterator[dict[str, Any]]:
    """The rows of ``power_sweep`` one by one."""
    require_unconditional(target, "sweep the target of one observation.")
    oracle = reachable_oracle(target)
    how: dict[str, Any] = {"num_particles": num_particles, "seed": seed}
    for power in powers:
        tempered = TemperedTwist(twist, power)
        trace = run_twist(target, tempered, num_runs=num_runs, **how)
        log_z, ess = trace.columns.log_z[:, -1], trace.columns.ess[:, -1] / num_particles
        mean, low, high = mean_with_ends(log_z)
        accepted = torch.isfinite(trace.columns.log_psi[:, -1]).double().mean(1)
        squares = (log_z - mean) ** 2 * num_runs / max(1, num_runs - 1)
        row = {
            "power": float(power), "lower": mean, "lower_low": low, "lower_high": high,
            "pooled": PooledOverRuns.of(log_z).value, "num_runs": num_runs,
        }  # fmt: skip
        spread = [math.sqrt(square) for square in mean_within(squares)]
        for name, values in (
            ("spread", spread), ("ess", mean_within(ess, 1.0)),
            ("accepted", mean_within(accepted, 1.0)),
        ):  # fmt: skip
            row |= dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))
        if oracle is not None and not as_twist(twist).proposal_only:
            row["exact"] = oracle.log_z
            samples = _covered_samples(target, tempered, oracle, num_runs, seed)
            if samples is not None:
                above = run_conditional_smc(
                    target, retained=samples, twist=tempered, proposal=TwistInduced(), **how
                )
                ends = mean_with_ends(above.columns.log_z[:, -1])
                row |= dict(zip(("upper", "upper_low", "upper_high"), ends, strict=True))
        yield row


def _covered_samples(
    target: Target, twist: Any, oracle: Oracle, count: int, seed: int
) -> Tensor | None:
    """Exact samples; None where there are none, or one that the twist's proposal never draws."""
    if oracle.log_z == -math.inf:
        return None
    samples = oracle.sample(count, seed)
    log_psi = twist.log_psi(target.after_prompt(samples), len(target.prompt_tokens))
    return samples if bool(torch.isfinite(log_psi).all()) else None


def power_sweep(target: Target, twist: Any, **how: Any) -> pd.DataFrame:
    """Runs under psi ** a for several a, on the same noise.

    Args:
        target: sigma.
        twist: psi.
        **how: powers, num_particles (32), num_runs (16) and seed.

    Returns:
        Columns: power; lower, the mean of log Z_hat in nats; pooled; spread, the standard deviation
        of log Z_hat over runs; ess, the last as a share of K; accepted, the share of sequences with
        phi > 0; num_runs; and where an oracle reaches, upper and exact. All but pooled have 95 %
        intervals over runs, in ``_low`` and ``_high``. The best power has the smallest spread: the
        gap of the bound is about half its square, and known better than the bound itself.
    """
    return frame_of(list(power_rows(target, twist, **how)))


def best_power(frame: pd.DataFrame) -> float:
    """The power whose log Z_hat spreads least; NaN where none has a spread."""
    known = frame[frame["spread"].notna()]
    return float(known.loc[known["spread"].idxmin(), "power"]) if len(known) else math.nan


@dataclass(frozen=True)
class Fork:
    """Two futures of one run, on the same noise: as it went, and with one token changed.

    Attributes:
        before: the run as it went.
        after: the run with the other token. It was not drawn, so its log Z_hat is no estimate.
        table: next tokens of the prefix: token, text, and in nats log_p, log_psi, log_q and
            log_star with its standard error; ``chosen`` says which was drawn and which is forced.
        t: the step.
        particle: the particle.
    """

    before: SMCTrace
    after: SMCTrace
    table: pd.DataFrame
    t: int
    particle: int


@torch.no_grad()
def fork(
    target: Target,
    twist: Any,
    *,
    particle: int,
    t: int,
    token: int,
    num_particles: int,
    seed: int = 0,
    run: int = 0,
    top_k: int = 8,
    **options: Any,
) -> Fork:
    """Force a token on one particle at one step; everything else keeps its noise.

    Args:
        target: sigma.
        twist: psi, which also proposes.
        particle: which of the K.
        t: the step, 1..T.
        token: the id that is forced.
        num_particles: K.
        seed: of the run.
        run: which run of that seed.
        top_k: next tokens to record.
        **options: more for ``start_smc``.

    Raises:
        ValueError: the particle has ended before, or the proposal never gives this token.
    """
    require_unconditional(target, "fork the target of one observation.")
    check_integer("t", t, below=target.num_steps + 1)
    check_integer("particle", particle, at_least=0, below=num_particles)
    check_integer("token", token, at_least=0, below=target.lm.vocab_size)
    session = start_smc(
        target, num_particles=num_particles, seed=seed, first_run=run, top_k=top_k,
        dead_runs="keep", **following(twist), **options,
    )  # fmt: skip
    other = SMCSession(target, session.config)
    records = [session.step() for _ in range(t - 1)]
    state = init(target, session.config) if session.state is None else session.state
    record = session.step()
    forced, changed = _forced(target, state, session.state, record, particle, token)
    other._progress = (forced, (*records, changed))
    table = _table(target, state, record, particle, token)
    return Fork(session.run(), other.run(), table, t, particle)


def _forced(
    target: Target, state: SMCState, after: SMCState, record: StepRecord, particle: int, token: int
) -> tuple[SMCState, StepRecord]:
    """State and record of a step with one particle's token changed."""
    ancestor = record.ancestors[0, particle]
    if bool(state.finished[0, ancestor]):
        raise ValueError(
            f"particle {particle} has ended before step {record.t}: choose an earlier step."
        )
    at = (0, particle)
    rows = state.rows[:, ancestor : ancestor + 1]
    given = torch.full_like(rows, token)
    drawn = state.steps.draw(rows, torch.zeros(rows.shape).double(), given=given)
    if float(drawn.log_q) == -math.inf:
        text = target.lm.token_text(token)
        raise ValueError(f"the proposal never gives token {token}, {text!r}, here: take another.")
    paths = after.tokens.clone()
    paths[(*at, -1)] = token
    live = torch.zeros_like(after.finished)
    live[at] = True
    ends = ending(target, paths, live)
    log_psi = record.log_psi.clone()
    log_psi[at] = drawn.log_psi[0, 0]
    if bool(ends[at]) or record.t == target.num_steps:
        log_psi[at] = target.log_phi(target.whole(paths[0, particle : particle + 1]))[0]
    log_p, log_q, tokens = record.log_p.clone(), record.log_q.clone(), record.tokens.clone()
    log_p[at], log_q[at], tokens[at] = drawn.log_p[0, 0], drawn.log_q[0, 0], token
    finished = after.finished.clone()
    finished[at] = ends[at]
    was = replace(
        state,
        log_weights=torch.where(
            record.resampled.unsqueeze(1), 0.0, state.log_weights.gather(1, record.ancestors)
        ),
        log_psi=state.log_psi.gather(1, record.ancestors),
    )
    increment, log_weights, log_z, ess = weight(was, log_p, log_q, log_psi, record.t)
    changed = replace(
        record, tokens=tokens, log_p=log_p, log_q=log_q, log_psi=log_psi,
        log_increment=increment, log_weights=log_weights, log_z=log_z, ess=ess,
    )  # fmt: skip
    forced = replace(
        after, tokens=paths, log_weights=log_weights, log_psi=log_psi, log_z=log_z, ess=ess,
        finished=finished, steps=None,
    )  # fmt: skip
    return forced, changed


def _table(
    target: Target, state: SMCState, record: StepRecord, particle: int, token: int
) -> pd.DataFrame:
    """p0, psi, q and psi* of the likeliest next tokens of the particle's prefix."""
    ancestor = int(record.ancestors[0, particle])
    row = int(state.rows[0, ancestor])
    drawn = int(record.tokens[0, particle])
    for start, log_p, log_q, log_psi in state.steps.parts():
        if start <= row < start + len(log_p):
            tables = [part[row - start].double().cpu() for part in (log_p, log_q)]
            none = torch.zeros_like(tables[0])
            tables.append(none if log_psi is None else log_psi[row - start].double().cpu())
    log_p, log_q, log_psi = tables
    high = torch.maximum(numerics.normalise(log_p), log_q.exp())
    best = high.topk(min(TOKENS, len(high))).indices.tolist()
    tokens = [*dict.fromkeys([drawn, token, *best])]
    begun = state.tokens[0, ancestor].cpu()
    paths = torch.cat([begun.expand(len(tokens), -1), torch.tensor(tokens).unsqueeze(1)], dim=1)
    star, error = _psi_star(target, paths)
    chosen = {drawn: "drawn", token: "forced"}
    return frame_of(
        {
            "token": tokens,
            "text": [target.lm.token_text(each) for each in tokens],
            "chosen": [chosen.get(each, "") for each in tokens],
            "log_p": log_p[tokens], "log_psi": log_psi[tokens], "log_q": log_q[tokens],
            "log_star": star, "log_star_error": error,
        }
    )  # fmt: skip


def _psi_star(target: Target, paths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log psi* of some prefixes of one length, phi where they have ended, and its error."""
    device = target.lm.device
    over = have_ended(target, paths.to(device)).cpu()
    star, error = torch.full((len(paths),), math.nan).double(), torch.zeros(len(paths)).double()
    if over.any():
        star[over] = target.log_phi(target.whole(paths[over]).to(device)).cpu()
    if not over.all():
        star[~over], error[~over] = psi_star(
            target, paths[~over], reachable_oracle(target), rollouts=ROLLOUTS
        )
    return star, error
