"""Twisted SMC (paper, algorithm 1): ``init`` and ``step``, pure functions; helpers below them."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tsmc_widgets import numerics
from tsmc_widgets.errors import AllParticlesDeadError, quoted
from tsmc_widgets.smc.memory import check_run
from tsmc_widgets.smc.prefixes import (
    NextTokens,
    PrefixSteps,
    advance_steps,
    distinct_pairs,
    prefill_steps,
)
from tsmc_widgets.smc.resampling import resample
from tsmc_widgets.smc.state import SMCConfig, SMCState, StepRecord
from tsmc_widgets.targets.target import Target

Reals = Float[Tensor, "runs particles"]
Indices = Int[Tensor, "runs particles"]
Mask = Bool[Tensor, "runs particles"]
PerRun = Float[Tensor, " runs"]


@torch.no_grad()
def init(target: Target, config: SMCConfig) -> SMCState:
    """State before the first step: the prompt is read once for all particles of all runs."""
    state = unread(target, config)
    rows, steps = _read_prefixes(state, target, config)
    check_run(target, config, steps)
    return replace(state, rows=rows, steps=steps)


def unread(target: Target, config: SMCConfig) -> SMCState:
    """State before the first step, without any answer of a model."""
    shape, device = (config.num_runs, config.num_particles), target.prompt_tokens.device
    zeros = torch.zeros(shape, dtype=torch.float64, device=device)
    return SMCState(
        t=0,
        tokens=torch.zeros(*shape, 0, dtype=torch.int64, device=device),
        log_weights=zeros,
        log_psi=zeros,
        log_z=zeros[:, 0],
        ess=torch.full_like(zeros[:, 0], config.num_particles),
        finished=torch.zeros(shape, dtype=torch.bool, device=device),
        rows=torch.zeros(shape, dtype=torch.int64, device=device),
        steps=None,
    )


@torch.no_grad()
def step(state: SMCState, target: Target, config: SMCConfig) -> tuple[SMCState, StepRecord]:
    """One step: resample, propose, weight, extend. Neither argument is changed.

    Raises:
        AllParticlesDeadError: all weights of a run are zero and ``config.dead_runs`` is "raise";
            ``error.record`` holds the step.
        ValueError: q or psi is zero on the retained path of conditional SMC.
    """
    t, final = state.t + 1, state.t + 1 == target.num_steps
    if t > target.num_steps:
        raise ValueError(f"the run is done: all {target.num_steps} steps have been taken.")
    rows, steps = state.rows, state.steps
    if steps is None:
        rows, steps = _read_prefixes(state, target, config)

    # Resample, never before the first step and never after the last.
    due, ancestors = choose_ancestors(state, config, t)
    rows = rows.gather(1, ancestors)
    state = replace(resampled(state, due, ancestors), rows=rows)

    # Propose s_t ~ q. A path that has ended repeats its EOS at no cost.
    uniforms = config.noise.uniform(step=t, use="token", num_particles=config.num_particles)
    given = torch.full_like(rows, -1)
    if config.retained is not None:
        given[:, 0] = config.retained[:, t - 1]
    if target.absorbs_eos:
        given = torch.where(state.finished, target.eos_token_id, given)
    drawn = steps.draw(rows, uniforms, given=given, top_k=config.top_k)
    after, record = take(state, target, config, (due, ancestors), drawn, steps.size)
    check_alive(record, target, config)

    # Extend: each distinct prefix is read once, and nothing is read after the last token.
    if not final:
        rows, steps = _extend(target, config, steps, after, drawn.tokens)
        after = replace(after, rows=rows, steps=steps)
    return after, record


def take(
    state: SMCState,
    target: Target,
    config: SMCConfig,
    chosen: tuple[Bool[Tensor, " runs"], Indices],
    drawn: NextTokens,
    distinct: int,
) -> tuple[SMCState, StepRecord]:
    """Weight the next tokens of a resampled state, and record them with what was ``chosen``.

    The state after it has the rows of the one before and no answers of the models yet.
    """
    t, final = state.t + 1, state.t + 1 == target.num_steps
    finished = state.finished
    log_p = torch.where(finished, 0.0, drawn.log_p)
    log_q = torch.where(finished, 0.0, drawn.log_q)
    log_psi = torch.where(finished, state.log_psi, drawn.log_psi)
    paths = torch.cat([state.tokens, drawn.tokens.unsqueeze(-1)], dim=-1)

    # Weight by p0 psi_t / (q psi_{t-1}). Phi stands for psi_t at T and wherever a path ends.
    live = ~finished
    ends = ending(target, paths, live)
    log_psi = _replace_psi_by_phi(
        target, config, live if final else ends, state.rows, drawn.tokens, paths, log_psi
    )
    log_increment, log_weights, log_z, ess = weight(state, log_p, log_q, log_psi, t)
    record = StepRecord(
        t, *chosen, drawn.tokens, log_p, log_q, log_psi, log_increment, log_weights, ess, log_z,
        distinct, drawn.table,
    )  # fmt: skip
    finished = finished | ends
    return SMCState(t, paths, log_weights, log_psi, log_z, ess, finished, state.rows, None), record


def choose_ancestors(
    state: SMCState, config: SMCConfig, t: int
) -> tuple[Bool[Tensor, " runs"], Indices]:
    """Which runs resample before step ``t``, and whom each particle then descends from."""
    size = config.num_particles
    keep = torch.arange(size, device=state.rows.device).expand_as(state.rows)
    due = torch.zeros_like(state.ess, dtype=torch.bool)
    if t > 1:
        due = config.rule.due(t, state.ess, size) & (state.ess > 0)
    if not bool(due.any()):
        return due, keep
    uniforms = config.noise.uniform(step=t, use="resample", num_particles=size)
    drawn = resample(state.log_weights, uniforms.to(keep.device), config.resampler)
    if config.retained is not None:
        drawn[:, 0] = 0
    return due, torch.where(due.unsqueeze(1), drawn, keep)


def resampled(state: SMCState, due: Bool[Tensor, " runs"], ancestors: Indices) -> SMCState:
    """The state of the chosen ancestors; ``rows`` stay those of the particles before."""
    return replace(
        state,
        tokens=state.tokens.gather(1, ancestors.unsqueeze(-1).expand_as(state.tokens)),
        log_weights=torch.where(due.unsqueeze(1), 0.0, state.log_weights),
        log_psi=state.log_psi.gather(1, ancestors),
        finished=state.finished.gather(1, ancestors),
    )


def ending(target: Target, paths: Int[Tensor, "runs particles t"], live: Mask) -> Mask:
    """Which of the live paths end with their last token, before T."""
    if target.ending is None:
        return torch.zeros_like(live)
    return live & target.ending.ends(paths.flatten(0, 1)).reshape(live.shape)


def _replace_psi_by_phi(
    target: Target,
    config: SMCConfig,
    where: Mask,
    rows: Indices,
    tokens: Indices,
    paths: Int[Tensor, "runs particles t"],
    log_psi: Reals,
) -> Reals:
    """Log psi with log phi in its place for some particles; each distinct path is asked once.

    Paths that ended before T repeat their EOS up to T.
    """
    members = where.reshape(-1).nonzero().squeeze(1)
    if members.shape[0] == 0:
        return log_psi
    pairs = distinct_pairs(rows, tokens, members, target.lm.vocab_size)
    whole = target.whole(paths.reshape(-1, paths.shape[-1])[pairs.first])
    log_phi = target.log_phi_given(whole, _observed(config, pairs.first))
    flat = log_psi.reshape(-1).clone()
    flat[members] = log_phi[pairs.inverse].to(flat)
    return flat.reshape(log_psi.shape)


def weight(
    state: SMCState, log_p: Reals, log_q: Reals, log_psi: Reals, t: int
) -> tuple[Reals, Reals, PerRun, PerRun]:
    """Log increments of step ``t``, and with them log weights, log Z_hat and ESS.

    The state is that of before the step, resampled. A weight of zero stays zero.
    """
    if bool((log_q == -math.inf).any()):
        raise ValueError(
            f"the proposal gives probability 0 to the retained path's token at step {t}: "
            "a proposal must cover every text that the potential allows."
        )
    dead = (state.log_weights == -math.inf) | (state.log_psi == -math.inf)
    log_increment = (log_p - log_q) + (log_psi - torch.where(dead, 0.0, state.log_psi))
    log_increment = torch.where(dead, -math.inf, log_increment)
    log_weights = state.log_weights + log_increment
    total, before = numerics.logsumexp(log_weights), numerics.logsumexp(state.log_weights)
    # Without the inner choice a run that was dead before would give -inf + inf = NaN.
    alive = total > -math.inf
    log_z = state.log_z + total - torch.where(alive, before, 0.0)
    log_z = torch.where(alive, log_z, -math.inf)
    return log_increment, log_weights, log_z, numerics.ess(log_weights)


def _extend(
    target: Target,
    config: SMCConfig,
    steps: PrefixSteps,
    state: SMCState,
    tokens: Indices,
) -> tuple[Indices, PrefixSteps]:
    rows, members = state.rows, (~state.finished).reshape(-1).nonzero().squeeze(1)
    if members.shape[0] == 0:
        return rows, steps
    pairs = distinct_pairs(rows, tokens, members, target.lm.vocab_size)
    flat_paths = state.tokens.flatten(0, 1)
    steps = advance_steps(target, config.proposal, config.twist, steps, pairs, flat_paths)
    flat_rows = torch.zeros_like(rows).reshape(-1)
    flat_rows[members] = pairs.inverse
    return flat_rows.reshape(rows.shape), steps


def _read_prefixes(
    state: SMCState, target: Target, config: SMCConfig
) -> tuple[Indices, PrefixSteps]:
    """Read the distinct prefixes of a state from the start; each particle's row among them."""
    members = (~state.finished).reshape(-1).nonzero().squeeze(1)
    if not members.shape[0]:
        members = torch.zeros(1, dtype=torch.int64, device=state.rows.device)
    firsts, places = _places(config, state.tokens, members)
    size = state.rows.numel()
    steps = prefill_steps(
        target,
        config.proposal,
        config.twist,
        state.tokens.reshape(size, state.t)[firsts],
        observed=_observed(config, firsts),
        most_rows=size,
    )
    rows = torch.zeros_like(state.rows).reshape(-1).index_copy(0, members, places)
    return rows.reshape(state.rows.shape), steps


def _places(
    config: SMCConfig, tokens: Int[Tensor, "runs particles t"], members: Int[Tensor, " members"]
) -> tuple[Int[Tensor, " distinct"], Int[Tensor, " members"]]:
    """One particle of each distinct (observation, prefix) among ``members``, and each one's place.

    Particles are flat indices. Without observations only the tokens tell prefixes apart.
    """
    size = config.num_runs * config.num_particles
    paths = tokens.reshape(size, tokens.shape[-1])[members]
    observed = _observed(config, members)
    if observed is not None:
        paths = torch.cat([observed, paths], dim=1)
    if not paths.shape[1]:
        return members[:1], torch.zeros_like(members)
    distinct, places = torch.unique(paths, dim=0, return_inverse=True)
    firsts = torch.empty_like(distinct[:, 0])
    firsts[places] = members
    return firsts, places


def _observed(config: SMCConfig, particles: Int[Tensor, " n"]) -> Int[Tensor, "n width"] | None:
    """The observation of each particle's run; particles are flat indices."""
    return None if config.observed is None else config.observed[particles // config.num_particles]


def check_alive(record: StepRecord, target: Target, config: SMCConfig) -> None:
    """Raise ``AllParticlesDeadError`` where a run has died and the config keeps none.

    Raises:
        ValueError: the retained path of conditional SMC has weight zero, whatever the config keeps.
    """
    _check_retained(record, target, config)
    dead = (record.ess == 0).nonzero()
    if config.dead_runs != "raise" or dead.shape[0] == 0:
        return
    run = int(dead[0, 0])
    last = [target.lm.token_text(int(token)) for token in record.tokens[run, :8]]
    where = "the potential is" if record.t == target.num_steps else "potential or twist are"
    error = AllParticlesDeadError(
        f"All {config.num_particles} weights are zero at step {record.t} of run {run}: {where} "
        f"-inf on every particle (last tokens: {', '.join(map(repr, last))}). Try a twist, more "
        'particles or a softer potential; dead_runs="keep" records such runs as log Z_hat = -inf.'
    )
    error.record = record
    raise error


def _check_retained(record: StepRecord, target: Target, config: SMCConfig) -> None:
    lost = (record.log_weights[:, 0] == -math.inf).nonzero()
    if config.retained is None or lost.shape[0] == 0:
        return
    run, t = int(lost[0, 0]), record.t
    text = target.labels(config.retained[run : run + 1, :t])[0]
    raise ValueError(
        f"p0, twist or potential is 0 on the retained path at step {t} of run {run}, "
        f"{quoted(text)}: "
        "conditional SMC bounds log Z only where psi_t > 0 on every prefix of every text that "
        "sigma allows. Give a twist that is positive there."
    )
