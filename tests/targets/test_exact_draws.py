"""Exact samples a block at a time: the same samples, and an estimate of log Z without a bias."""

import pytest
import torch
from smc.toys import chain, z_score

import tsmc_widgets as tw
from tsmc_widgets.targets.exact_samples import ExactDraws


@pytest.fixture(scope="module")
def target():
    phi = tw.TokenFunction(lambda tokens: -1.0 * (tokens == 2).sum(-1).double(), log_phi_max=0.0)
    return tw.Target(chain(), phi, prompt="a", num_steps=3)


def drawn(target, blocks, **options):
    draws = ExactDraws(target, 4, **options)
    for _ in range(blocks):
        draws.extend()
    return draws


def test_samples_are_those_of_sigma(target):
    oracle = tw.exact(target)
    draws = drawn(target, 20)
    for row, log_sigma in zip(oracle.tokens, oracle.log_sigma, strict=True):
        hits = (draws.tokens == row).all(1).double()
        assert abs(z_score(hits, float(log_sigma.exp()))) < 4.5
    assert torch.equal(draws.log_phi, target.log_phi(draws.tokens))


def test_log_z_has_an_honest_error(target):
    log_z = tw.exact(target).log_z
    # Two blocks each, so that the errors of blocks are pooled too.
    found = [ExactDraws(target, seed, block=128) for seed in range(100)]
    for draws in found:
        draws.extend()
        draws.extend()
    values = torch.tensor([draws.log_z for draws in found], dtype=torch.float64)
    # First-order errors of a log: Z itself is estimated without a bias.
    assert abs(z_score(values[:, 0].exp(), torch.tensor(log_z).exp())) < 4.5
    scores = (values[:, 0] - log_z) / values[:, 1]
    assert abs(z_score(scores**2, 1.0)) < 4.5


def test_blocks_depend_on_the_seed_and_their_number_alone(target):
    one, two = drawn(target, 3), drawn(target, 2)
    assert torch.equal(one.tokens[: len(two)], two.tokens)
    two.extend()
    assert torch.equal(one.tokens, two.tokens)
    assert one.proposed == 3 * 512


def test_blocks_without_a_hit():
    target = tw.Target(chain(), tw.MatchesRegex("c{16}"), prompt="a", num_steps=16)
    assert ExactDraws(target, 0).tokens.shape == (0, 16)
    draws = drawn(target, 2)
    assert (len(draws), draws.tokens.shape) == (0, (0, 16))
    assert draws.log_z[0] == -float("inf")
