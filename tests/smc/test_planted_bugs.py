"""One wrong line in the sampler, and the identities must fail: a test of the tests."""

import math

import pytest
import torch
from planting import planted
from smc.enumeration import enumerate_runs, expected_inverse_z, expected_measure, expected_z
from smc.toys import eos_target, table_target

from tsmc_widgets.smc import sampler as true_sampler
from tsmc_widgets.smc.exact import EnumeratedOracle
from tsmc_widgets.smc.resampling import ESSBelow
from tsmc_widgets.twists import TableTwist

BUGS = {
    "no psi before in the denominator": (
        "(log_psi - torch.where(dead, 0.0, state.log_psi))",
        "log_psi",
    ),
    "psi in place of phi at T": ("live if final else ends", "ends"),
    "weights not reset by resampling": (
        "torch.where(due.unsqueeze(1), 0.0, state.log_weights)",
        "state.log_weights",
    ),
    "log psi not re-indexed": ("state.log_psi.gather(1, ancestors)", "state.log_psi"),
    "cache not re-indexed": ("rows = rows.gather(1, ancestors)", "rows = rows + 0"),
    "tokens not re-indexed": (
        "state.tokens.gather(1, ancestors.unsqueeze(-1).expand_as(state.tokens))",
        "state.tokens",
    ),
    "q left out": ("(log_p - log_q) +", "log_p +"),
    "cache of the wrong parents": ("flat_rows[members] = pairs.inverse", "pass"),
    "log Z from unnormalised weights": (
        "state.log_z + total - torch.where(alive, before, 0.0)",
        "state.log_z + total - math.log(log_weights.shape[1])",
    ),
}

CONDITIONAL_BUGS = {
    "target not pinned": ("drawn[:, 0] = 0", "pass"),
    "pinned late, after the gather": (
        "return due, torch.where(due.unsqueeze(1), drawn, keep)",
        "free = resample(state.log_weights, uniforms, config.resampler); "
        "return due, torch.where(due.unsqueeze(1), free, keep)",
    ),
    "target left out of the pool": (
        "drawn = resample(state.log_weights, uniforms.to(keep.device), config.resampler)",
        "others = state.log_weights.clone(); others[:, 0] = -math.inf; "
        "drawn = resample(others, uniforms, config.resampler)",
    ),
    "target only put in at the last step": (
        "if config.retained is not None:\n        given[:, 0]",
        "if config.retained is not None and final:\n        given[:, 0]",
    ),
    "systematic resampling": (
        "drawn = resample(state.log_weights, uniforms.to(keep.device), config.resampler)",
        'drawn = resample(state.log_weights, uniforms, "systematic")',
    ),
}


TARGET = table_target(2, 3, seed=1)
ORACLE = EnumeratedOracle(TARGET)
HOW = {"num_particles": 2, "twist": TableTwist.random(2, 3, seed=2)}


def forward_error(sampler):
    """Largest error of E[Z_hat W 1[s]] over sequences, and of their sum E[Z_hat], both in Z.

    Slots are exchangeable under multinomial resampling, which hides some mistakes of re-indexing;
    they are not under systematic resampling.
    """
    errors = []
    for resampler in ("multinomial", "systematic"):
        found = expected_measure(
            TARGET, rule=ESSBelow(1.0), resampler=resampler, sampler=sampler, **HOW
        )
        gaps = found * math.exp(-ORACLE.log_z) - ORACLE.log_sigma.exp()
        errors += [float(gaps.abs().max()), abs(float(gaps.sum()))]
    return max(errors)


def conditional_error(sampler):
    inverse = expected_inverse_z(TARGET, ORACLE, sampler=sampler, **HOW)
    return abs(inverse * math.exp(ORACLE.log_z) - 1)


def ending_error(sampler):
    """Error of E[Z_hat] where texts end early and phi weighs every token, EOS included."""
    target = eos_target(num_steps=3)
    z = expected_z(target, num_particles=1, sampler=sampler)
    return abs(z / math.exp(EnumeratedOracle(target).log_z) - 1)


ENDING_BUGS = {
    "phi of an ended text padded with another token": (
        "target.whole(",
        "(lambda x: torch.nn.functional.pad(x, (0, target.num_steps - x.shape[1])))(",
    ),
    "an ended text weighed again at T": ("live if final else ends", "ends | (final & ~ends)"),
    "phi only at T": ("live if final else ends", "live & final"),
}


# Name: the error that shows them, the bugs.
IDENTITIES = {
    "forward": (forward_error, BUGS),
    "conditional": (conditional_error, CONDITIONAL_BUGS),
    "ending texts": (ending_error, ENDING_BUGS),
}


@pytest.mark.parametrize("identity", IDENTITIES)
def test_the_true_sampler_passes(identity):
    assert IDENTITIES[identity][0](true_sampler) < 1e-12


@pytest.mark.parametrize(
    ("identity", "bug"), [(name, bug) for name, (_, bugs) in IDENTITIES.items() for bug in bugs]
)
def test_each_planted_bug_is_caught(identity, bug):
    error, bugs = IDENTITIES[identity]
    assert error(planted(true_sampler, *bugs[bug])) > 1e-4


def weights_follow_increments(sampler):
    """Whether the weights on record are those since the last resampling, up to T."""
    _, state, record = enumerate_runs(TARGET, sampler=sampler, **HOW)
    return torch.allclose(state.log_weights, record.log_increment, rtol=0, atol=1e-12)


def test_resampling_after_the_last_step_is_caught():
    assert weights_follow_increments(true_sampler)
    bug = planted(
        true_sampler,
        "    finished = finished | ends\n",
        "    finished = finished | ends\n"
        "    log_weights = torch.zeros_like(log_weights) if final else log_weights\n",
    )
    assert not weights_follow_increments(bug)
