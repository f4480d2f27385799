"""Arithmetic of log weights, in float64 and safe for weights of zero."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor


def logsumexp(log_weights: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
    """Log of the sum of weights over the last axis; -inf where all are zero."""
    return torch.logsumexp(log_weights, dim=-1)


def logmeanexp(log_weights: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
    """Log of the mean weight over the last axis; -inf where all are zero."""
    return logsumexp(log_weights) - math.log(log_weights.shape[-1])


def group_logsumexp(
    log_weights: Float[Tensor, " n *columns"], group: Int[Tensor, " n"]
) -> Float[Tensor, " groups *columns"]:
    """Log of the sum of weights within each group 0, 1, ...; -inf where all are zero."""
    index = group.reshape(-1, *(1,) * (log_weights.ndim - 1)).expand_as(log_weights)
    shape = (int(group.max()) + 1, *log_weights.shape[1:])
    values = log_weights.detach()
    peak = values.new_full(shape, -math.inf).scatter_reduce(0, index, values, "amax")
    safe = torch.where(peak == -math.inf, 0.0, peak)
    scaled = (log_weights - safe[group]).exp()
    return safe + torch.zeros_like(peak).scatter_add(0, index, scaled).log()


def normalise(log_weights: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n"]:
    """Weights that sum to one over the last axis; all zero where every log weight is -inf."""
    log_weights = log_weights.double()
    peak = log_weights.amax(dim=-1, keepdim=True)
    weights = torch.exp(log_weights - torch.where(peak == -math.inf, 0.0, peak))
    total = weights.sum(dim=-1, keepdim=True)
    return weights / torch.where(total == 0, 1.0, total)


def ess(log_weights: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
    """Effective sample size 1 / sum of squared normalised weights, in [1, n]; 0 where all are 0."""
    weights = normalise(log_weights)
    squares = (weights * weights).sum(dim=-1)
    size = log_weights.shape[-1]
    alive = squares > 0
    return torch.where(alive, 1.0 / torch.where(alive, squares, 1.0), 0.0).clamp(max=float(size))


def log_of_neg_log1mexp(log_p: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Log of -log(1 - exp(log_p)) for log_p < 0: log_p itself far below 0."""
    tiny = log_p < -20.0
    near = torch.where(tiny, -1.0, log_p.clamp(max=-1e-12))
    return torch.where(tiny, log_p + log_p.exp() / 2, torch.log(-log1mexp(near)))


def log1mexp(log_p: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Log of 1 - exp(log_p) for log_p <= 0, accurate at both ends (Maechler 2012)."""
    near_zero = log_p > -math.log(2.0)
    return torch.where(
        near_zero,
        torch.log(-torch.expm1(torch.where(near_zero, log_p, -1.0))),
        torch.log1p(-torch.exp(torch.where(near_zero, -1.0, log_p))),
    )
