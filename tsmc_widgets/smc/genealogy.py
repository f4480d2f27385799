"""What ancestors alone tell: lineages, survivors and the variance of one run's log Z_hat."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tsmc_widgets.errors import check_integer


def lineages(
    ancestors: Int[Tensor, "runs steps particles"],
) -> Int[Tensor, "runs steps particles"]:
    """Slot at each step that each particle of the last step descends from."""
    slots, found = torch.arange(ancestors.shape[2]).expand(ancestors.shape[0], -1), []
    for before in reversed(ancestors.unbind(1)):
        found.append(slots)
        slots = before.gather(1, slots)
    return torch.stack(found[::-1], dim=1) if found else ancestors


def paths(ancestors: Int[Tensor, "runs steps particles"], values: Tensor) -> Tensor:
    """Values (runs, steps, particles) along each last particle's path: (runs, particles, steps)."""
    return values.gather(2, lineages(ancestors)).transpose(1, 2).contiguous()


def surviving_ancestors(
    ancestors: Int[Tensor, "runs steps particles"],
) -> Int[Tensor, "runs steps"]:
    """How many slots of each step have a descendant at the last step."""
    return torch.zeros_like(ancestors).scatter(2, lineages(ancestors), 1).sum(2)


def relative_variance(
    ancestors: Int[Tensor, "runs steps particles"],
    resampled: Bool[Tensor, "runs steps"],
    weights: Float[Tensor, "runs particles"],
    since: int,
) -> Float[Tensor, " runs"]:
    """Variance of Z_hat / Z from the resamplings after step ``since`` and the draws at it.

    One minus the weight that pairs of different families (descendants of one slot at ``since``)
    hold, times K/(K-1) for the draws and for each later resampling (Lee and Whiteley 2018, eq. 9,
    with the resampling steps of an adaptive rule). With ``since`` = 1, Z_hat**2 times this is an
    unbiased estimate of Var(Z_hat) under multinomial resampling, and under that alone: systematic
    ancestors make it negative on average. It can be negative, and is NaN for one particle.
    """
    size = ancestors.shape[2]
    families = lineages(ancestors[:, since - 1 :])[:, 0]
    mass = torch.zeros_like(weights).scatter_add_(1, families, weights)
    between = weights.sum(1) ** 2 - (mass**2).sum(1)
    rounds = 1 + resampled[:, since:].sum(1)
    if size == 1:
        return torch.full_like(between, math.nan)
    variance = 1.0 - (size / (size - 1)) ** rounds.double() * between
    return torch.where(weights.sum(1) > 0, variance, math.nan)


def log_z_variance(
    ancestors: Int[Tensor, "runs steps particles"],
    resampled: Bool[Tensor, "runs steps"],
    weights: Float[Tensor, "runs steps particles"],
    lag: int | None,
) -> Float[Tensor, " runs"]:
    """Variance of log Z_hat estimated from each run alone, by the delta method.

    Args:
        ancestors: of every step.
        resampled: which steps began with a resampling.
        weights: normalised weights after every step.
        lag: None follows families from the first step (Lee and Whiteley 2018), which says nothing
            once all share one ancestor; a number of steps adds up each step's own contribution as
            seen ``lag`` steps later (the fixed lag of Olsson and Douc 2019): stable, with a bias
            that fades as the lag grows.
    """
    num_steps = ancestors.shape[1]
    if lag is None:
        return relative_variance(ancestors, resampled, weights[:, -1], since=1)
    check_integer("lag", lag, at_least=0)
    total = torch.zeros(ancestors.shape[0], dtype=torch.float64)
    for t in range(1, num_steps + 1):
        end = min(t + lag, num_steps)
        window = (ancestors[:, :end], resampled[:, :end], weights[:, end - 1])
        total += relative_variance(*window, since=t)
        if t < end:
            total -= relative_variance(*window, since=t + 1)
    return total
