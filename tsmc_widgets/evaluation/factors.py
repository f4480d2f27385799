"""What each factor of a product does to the sequences of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from tsmc_widgets import numerics
from tsmc_widgets.smc.genealogy import paths
from tsmc_widgets.smc.trace import SMCTrace, check_trace
from tsmc_widgets.targets.checked import as_numbers
from tsmc_widgets.targets.context import part_log_phi
from tsmc_widgets.targets.protocol import Potential
from tsmc_widgets.targets.target import Target


@dataclass(frozen=True, slots=True)
class FactorShare:
    """One factor phi_i of phi, on the final sequences of one run.

    Attributes:
        name: the factor in words.
        mean_log_phi: mean of log phi_i under the final weights, which estimates its mean under
            sigma, in nats; NaN where all weights are 0.
        killed: share of the weight that texts have as they end (at T, or t < T at an absorbing
            EOS), before phi enters, of texts with phi_i = 0. Without a twist it estimates p0's mass
            of such texts; with one their mass under p0 psi_{t-1}. NaN where no weight reaches an
            end.
        killed_alone: the same, of texts that no other factor rules out.
    """

    name: str
    mean_log_phi: float
    killed: float
    killed_alone: float


def factor_breakdown(trace: SMCTrace, target: Target, *, run: int = 0) -> list[FactorShare]:
    """What each factor of the target's potential does in one finished run.

    Args:
        trace: of a run that has reached T.
        target: the one that was sampled.
        run: which of the trace's runs.

    Returns:
        One entry for each factor of a product, in its order; one in all for any other potential.

    Raises:
        ValueError: the run is not finished, or it is not of this target.
        PotentialError: a factor raised or misbehaved on a sequence.
    """
    check_trace(trace)
    if not trace.done:
        raise ValueError(
            f"the run stands at step {trace.steps_done} of {trace.num_steps}: log phi is known of "
            "whole texts only, so let it reach its end."
        )
    trace.check_target(target)
    one = trace.run(run)
    final = paths(one.columns.ancestors, one.columns.tokens)[0]
    ended, arriving = arrivals(one, target)
    tokens = torch.cat([final, ended])
    factors = target.potential.factors()
    log_phi = torch.stack([_log_phi(factor, tokens, target, one) for factor in factors], dim=1)
    log_weights, size = one.columns.log_weights[0, -1], len(final)
    return break_down(
        [factor.describe() for factor in factors],
        log_phi,
        torch.nn.functional.pad(log_weights, (0, len(ended)), value=-math.inf),
        torch.nn.functional.pad(arriving, (size, 0), value=-math.inf),
    )


def break_down(
    names: list[str],
    log_phi: Float64[Tensor, "particles factors"],
    log_weights: Float64[Tensor, " particles"],
    arriving: Float64[Tensor, " particles"],
) -> list[FactorShare]:
    """Means under the final log weights, and shares of the log weights before phi."""
    weights, before = numerics.normalise(log_weights), numerics.normalise(arriving)
    alive = weights > 0
    zero = torch.isneginf(log_phi)
    shares = []
    for i, name in enumerate(names):
        alone = zero[:, i] & (zero.sum(1) == 1)
        mean = float((weights[alive] * log_phi[alive, i]).sum()) if alive.any() else math.nan
        reached = float(before.sum()) > 0
        killed, by_it = (float(before[each].sum()) for each in (zero[:, i], alone))
        shares.append(
            FactorShare(name, mean, killed if reached else math.nan, by_it if reached else math.nan)
        )
    return shares


def arrivals(
    trace: SMCTrace, target: Target
) -> tuple[Int[Tensor, "ends steps"], Float64[Tensor, " ends"]]:
    """Texts of one run at the steps at which they end, and their log weights before phi enters.

    The weights of those that end at step t estimate p0 psi_{t-1}. For psi_0 the mean of psi_1 over
    texts that go on is put, which is 1 without a twist, so that all weights move with the scale of
    psi. Phi may rule a text out at its end, and the next resampling drops it, so those that end
    before T are no longer there at T.
    """
    columns, size = trace.columns, trace.num_particles
    drawn = columns.log_p[0, 0] - columns.log_q[0, 0]
    going = drawn.isfinite()
    if target.absorbs_eos:
        going &= columns.tokens[0, 0] != target.eos_token_id
    level = 0.0
    if trace.num_steps > 1 and bool(going.any()):
        ahead = (drawn + columns.log_psi[0, 0])[going]
        level = float(numerics.logsumexp(ahead) - numerics.logsumexp(drawn[going]))
    log_weights = torch.full((size,), level - math.log(size), dtype=torch.float64)
    texts, arriving = [], []
    for t in range(1 if target.absorbs_eos else trace.num_steps, trace.num_steps + 1):
        if t > 1:
            log_weights = numerics.normalise(columns.log_weights[0, t - 2]).log()
            log_weights = log_weights + columns.log_z[0, t - 2]
        if bool(columns.resampled[0, t - 1]):
            log_weights = (columns.log_z[0, t - 2] - math.log(size)).expand(size)
        tokens = paths(columns.ancestors[:, :t], columns.tokens[:, :t])[0]
        ends = torch.full((size,), t == trace.num_steps)
        if target.ending is not None:
            ends |= target.ending.over(tokens)[:, -1]
            ends &= ~target.ending.after(tokens)[:, -1]
        texts.append(target.whole(tokens[ends]))
        arriving.append((log_weights + columns.log_p[0, t - 1] - columns.log_q[0, t - 1])[ends])
    return torch.cat(texts), torch.cat(arriving)


def _log_phi(
    factor: Potential, tokens: Int[Tensor, "particles steps"], target: Target, trace: SMCTrace
) -> Float64[Tensor, " particles"]:
    distinct, rows = torch.unique(tokens, dim=0, return_inverse=True)
    on_device = distinct.to(target.prompt_tokens.device)
    if target.is_conditional:
        observed = torch.tensor(trace.info.observed, device=on_device.device)
        given = factor.log_phi_given(on_device, observed.expand(len(distinct), -1))
        return as_numbers(given).double().cpu()[rows]
    return part_log_phi(factor, on_device, target.context).double().cpu()[rows]
