"""The sampler's own randomness, enumerated: every draw and every ancestor, with its probability.

The sampler is piecewise constant in its uniforms. At each step the unit interval is cut at every
place where an ancestor or a token can change, each piece is tried at its midpoint, and each
combination of pieces becomes one run of a batch that carries its probability along.
"""

import itertools
from dataclasses import replace

import torch

from tsmc_widgets.numerics import normalise
from tsmc_widgets.smc import sampler as true_sampler
from tsmc_widgets.smc.proposals import Base
from tsmc_widgets.smc.resampling import EveryNSteps
from tsmc_widgets.smc.state import SMCConfig


class ScriptedNoise:
    """Gives the uniforms that it was told to give."""

    def __init__(self, token, resample):
        self.script = {"token": token, "resample": resample}

    def uniform(self, *, step, use, num_particles):
        return self.script[use]


def cuts_of_weights(weights):
    """Places where any scheme's ancestors may change: (R, n), in [0, 1]."""
    size = weights.shape[1]
    cdf = weights.cumsum(1)
    slots = torch.arange(size, dtype=torch.float64)
    strata = (size * cdf.unsqueeze(2) - slots).reshape(weights.shape[0], -1)
    # As residual resampling rounds: a wider band would put a cut where it has none.
    left = size * weights - torch.floor(size * weights + 1e-13 * size)
    rest = left.cumsum(1) / left.sum(1, keepdim=True).clamp(min=1e-300)
    return torch.cat([cdf, strata, rest], dim=1).clamp(0, 1)


def pieces(cuts):
    """Midpoints and lengths of the pieces of [0, 1]: two tensors (R, n)."""
    ends = torch.zeros(cuts.shape[0], 1, dtype=torch.float64)
    edges = torch.cat([ends, cuts, ends + 1], dim=1).sort(1).values
    return (edges[:, 1:] + edges[:, :-1]) / 2, edges[:, 1:] - edges[:, :-1]


def combine(cuts, size, *, shared):
    """All combinations of pieces for K slots: run index, uniforms (n, K), probabilities (n,)."""
    middle, length = pieces(cuts)
    choices = range(middle.shape[1])
    grid = torch.tensor(list(itertools.product(choices, repeat=1 if shared else size)))
    uniforms = middle[:, grid].expand(-1, -1, size) if shared else middle[:, grid]
    chance = length[:, grid].prod(-1)
    runs, picks = (chance > 1e-13).nonzero(as_tuple=True)
    return runs, uniforms[runs, picks], chance[runs, picks]


def pick(state, runs):
    """The state of some runs of a batch."""
    names = ("tokens", "log_weights", "log_psi", "log_z", "ess", "finished", "rows")
    return replace(state, **{name: getattr(state, name)[runs] for name in names})


def enumerate_runs(
    target,
    *,
    num_particles,
    resampler="multinomial",
    rule=None,
    retained=None,
    retained_chance=None,
    sampler=true_sampler,
    twist=None,
    proposal=None,
):
    """Every run that the algorithm can make: (chance (N,), final state, final record)."""
    rule = EveryNSteps(1) if rule is None else rule
    base = {
        "num_particles": num_particles,
        "resampler": resampler,
        "rule": rule,
        "twist": twist,
        "proposal": Base() if proposal is None else proposal,
        "dead_runs": "keep",
    }
    chance = torch.ones(1, dtype=torch.float64) if retained is None else retained_chance
    state = sampler.init(target, SMCConfig(**base))
    state = pick(state, torch.zeros(chance.shape[0], dtype=torch.int64))
    record = None
    for t in range(1, target.num_steps + 1):
        due = (t > 1) & rule.due(t, state.ess, num_particles) & (state.ess > 0)
        cuts = torch.where(
            due.unsqueeze(1), cuts_of_weights(normalise(state.log_weights)), torch.zeros(1)
        )
        runs, resample, here = combine(cuts, num_particles, shared=resampler == "systematic")
        state, chance = pick(state, runs), chance[runs] * here
        retained = None if retained is None else retained[runs]
        cdf = state.steps.proposal.log_q_next.exp().cumsum(1)[state.rows]
        cuts = cdf[..., :-1].reshape(cdf.shape[0], -1).clamp(0, 1)
        runs, token, here = combine(cuts, num_particles, shared=False)
        state, chance, resample = pick(state, runs), chance[runs] * here, resample[runs]
        retained = None if retained is None else retained[runs]
        config = SMCConfig(
            **base,
            num_runs=chance.shape[0],
            noise=ScriptedNoise(token, resample),
            retained=retained,
        )
        state, record = sampler.step(state, target, config)
    return chance, state, record


def expected_z(target, **settings):
    """E[Z_hat] of forward SMC, exactly."""
    chance, state, _ = enumerate_runs(target, **settings)
    assert abs(float(chance.sum()) - 1) < 1e-11
    return float((chance * state.log_z.exp()).sum())


def expected_measure(target, **settings):
    """E[Z_hat sum_k W_k 1[s^k = s]] of forward SMC for every sequence s in order: Z sigma(s)."""
    chance, state, _ = enumerate_runs(target, **settings)
    mass = chance.unsqueeze(1) * state.log_z.exp().unsqueeze(1) * normalise(state.log_weights)
    vocab, length = target.lm.vocab_size, target.num_steps
    index = (state.tokens * vocab ** torch.arange(length - 1, -1, -1)).sum(-1)
    total = torch.zeros(vocab**length, dtype=torch.float64)
    return total.index_add(0, index.reshape(-1), mass.reshape(-1))


def expected_inverse_z(target, oracle, **settings):
    """E[1 / Z_hat] of conditional SMC, exactly."""
    possible = oracle.log_sigma > -torch.inf
    chance, state, _ = enumerate_runs(
        target,
        retained=oracle.tokens[possible],
        retained_chance=oracle.log_sigma[possible].exp(),
        **settings,
    )
    assert abs(float(chance.sum()) - 1) < 1e-11
    return float((chance * (-state.log_z).exp()).sum())
