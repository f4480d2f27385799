"""KL divergences between a proposal q and the target sigma, both ways (paper, section 5)."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from tsmc_widgets.errors import check_integer
from tsmc_widgets.evaluation.bounds import read_samples, runs_at_once
from tsmc_widgets.evaluation.given import LogZGiven, divergences_given
from tsmc_widgets.evaluation.intervals import MeanOverRuns
from tsmc_widgets.evaluation.kl_estimate import (
    BOTH,
    Q_BASE,
    Q_SIGMA,
    SIGMA_Q,
    Divergences,
    KLEstimate,
    combine,
    of_mean,
)
from tsmc_widgets.evaluation.log_z import LogZ
from tsmc_widgets.evaluation.scoring import Drawn, Sampler, draw_from, score_texts
from tsmc_widgets.targets.exact_samples import ExactSamples
from tsmc_widgets.targets.target import Target

__all__ = ["Divergences", "KLEstimate", "LogZ", "LogZGiven", "kl_divergences"]


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

    Where the potential waits for an observation o, ``exact_samples`` must be joint samples. Each
    text has its own o, for which one text is drawn from q; F, G and log Z are compared within each
    o, so that what differs between them cancels before errors are taken.

    Args:
        target: sigma.
        proposal: q: a proposal or any language model; None is induced by ``twist``, or p0 without.
        twist: the twist that a ``TwistInduced()`` follows.
        num_samples: texts drawn from q; with observations, as many as there are exact samples.
        exact_samples: exact samples of sigma, for KL(sigma||q); each is used once.
        approximate_samples: samples of something near sigma in their place; what they give is
            called so.
        log_z: log Z, as ``LogZ.of`` reads it (a number, an oracle, bounds, rejection's samples, a
            bracket); None takes it from ``exact_samples`` if rejection made them. With
            observations a ``LogZGiven``, or a tensor of exact values, one for each sample.
        seed: of the noise, as for ``run_smc``.
        first_run: address of the first text drawn.
        max_rows: texts in a batch at most, as for ``log_z_bounds``.

    Returns:
        Both divergences with their intervals, and what they are made of. Without any log Z only
        what does not need it.

    Raises:
        ValueError: samples of the wrong kind or shape, or with phi = 0.
    """
    sampler = Sampler.of(proposal, twist)
    if target.is_conditional:
        if approximate_samples is not None:
            raise ValueError("with observations only exact_samples=target.exact_samples(...) pair.")
        return divergences_given(
            target,
            sampler,
            exact_samples,
            log_z=log_z,
            seed=seed,
            first_run=first_run,
            max_rows=max_rows,
        )
    check_integer("num_samples", num_samples, at_least=2)
    tokens, kind = read_samples(exact_samples, approximate_samples)
    if log_z is None and isinstance(exact_samples, ExactSamples):
        log_z = exact_samples
    known = None if log_z is None else LogZ.of(log_z)
    size = runs_at_once(target, 1, max_rows)
    drawn = Drawn.joined(
        [
            draw_from(target, sampler, min(size, num_samples - at), seed, first_run + at)
            for at in range(0, num_samples, size)
        ]
    )
    g = None if tokens is None else _exact_log_weights(target, tokens, sampler, size)
    return _assemble(drawn, g, known, sampler.describe(), approximate=kind == "estimate")


def _exact_log_weights(
    target: Target, tokens: Int[Tensor, "n steps"], sampler: Sampler, size: int
) -> Float64[Tensor, " n"]:
    parts = []
    for piece in tokens.split(size):
        scores = score_texts(target, piece, sampler)
        scores.require_possible(target, piece)
        parts.append(scores.log_weight)
    return torch.cat(parts)


def _assemble(
    drawn: Drawn,
    log_weights: Float64[Tensor, " n"] | None,
    log_z: LogZ | None,
    proposal: str,
    *,
    approximate: bool,
) -> Divergences:
    f = MeanOverRuns.of(drawn.log_weight)
    dead_q = int(torch.isinf(drawn.log_weight).sum())
    q_sigma = sigma_q = both = g = None
    if log_z is not None:
        q_sigma = combine(Q_SIGMA, log_z, f, num_dead=dead_q, estimator="log Z − F_q")
    if log_weights is not None:
        g = MeanOverRuns.of(log_weights)
        dead_sigma = int(torch.isinf(log_weights).sum())
        both = combine(
            BOTH,
            g,
            f,
            num_dead=dead_q + dead_sigma,
            estimator="G_q − F_q",
            approximate=approximate,
        )
        if log_z is not None:
            sigma_q = combine(
                SIGMA_Q,
                g,
                log_z,
                num_dead=dead_sigma,
                estimator="G_q − log Z",
                approximate=approximate,
            )
    return Divergences(
        q_sigma=q_sigma,
        sigma_q=sigma_q,
        symmetrised=both,
        q_base=of_mean(Q_BASE, drawn.log_q - drawn.log_p, estimator="mean of log q − log p0"),
        f=f,
        g=g,
        log_phi=MeanOverRuns.of(drawn.log_phi),
        log_z=log_z,
        proposal=proposal,
    )
