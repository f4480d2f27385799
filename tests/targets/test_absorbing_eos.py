"""Texts that end at EOS, under a potential to which every token matters, EOS after EOS too."""

import itertools
import math

import pytest
import torch
from targets.toys import TRANSITION, every, letters

from tsmc_widgets.smc.exact import exact
from tsmc_widgets.targets import (
    ContainsToken,
    Mixture,
    Target,
    TokenAutomaton,
    TokenFunction,
)
from tsmc_widgets.targets.protocol import AutomatonPotential
from tsmc_widgets.testing import check_potential

T, EOS = 4, 2
WEIGHT = [[0.3, -0.7, 0.9], [-1.1, 0.4, 0.2], [0.8, -0.2, -0.6], [-0.5, 1.2, 0.7]]
"""Log weight of each token at each position; no two positions or tokens are alike."""


def weigh(row):
    return sum(WEIGHT[t][token] for t, token in enumerate(row))


def weigh_all(rows):
    return torch.tensor(WEIGHT, dtype=torch.float64)[torch.arange(T), rows].sum(-1)


class ByAutomaton(AutomatonPotential):
    """The same log phi from an automaton whose state is (position, weight so far)."""

    def log_phi(self, tokens):
        return weigh_all(tokens)

    def automaton(self):
        prefixes = [row for t in range(T + 1) for row in itertools.product(range(3), repeat=t)]
        number = {row: i for i, row in enumerate(prefixes)}
        following = [[number.get((*row, v), 0) for v in range(3)] for row in prefixes]
        values = torch.tensor([weigh(row) for row in prefixes], dtype=torch.float64)
        return TokenAutomaton(0, torch.tensor(following), values)

    def _key(self):
        return ()


BOUND = sum(map(max, WEIGHT))
POTENTIALS = {
    "row": TokenFunction(weigh, takes="row", log_phi_max=BOUND),
    "batch": TokenFunction(weigh_all, log_phi_max=BOUND),
    "automaton": ByAutomaton(),
}


def target(phi):
    return Target(letters("c"), phi, prompt="b", num_steps=T, eos="absorb")


def texts():
    """Every text that can be, with p0 and phi by hand: EOS goes on at no cost and is weighed."""
    found = {}
    for row in itertools.product(range(3), repeat=T):
        p, previous, ended = 1.0, 1, False
        for token in row:
            p *= float(token == EOS) if ended else TRANSITION[previous][token]
            ended, previous = ended or token == EOS, token
        if p:
            found[row] = (p, math.exp(weigh(row)))
    return found


@pytest.mark.parametrize("name", POTENTIALS)
def test_every_token_counts_after_the_end_too(name):
    t = target(POTENTIALS[name])
    by_hand = texts()
    assert len(by_hand) < 3**T == len(every(3, T))
    for row, (p, phi) in by_hand.items():
        tokens = torch.tensor([row])
        assert math.isclose(t.log_p(tokens), math.log(p), abs_tol=1e-12)
        assert math.isclose(t.log_phi(tokens), math.log(phi), abs_tol=1e-12)
        assert math.isclose(t.log_sigma_tilde(tokens), math.log(p * phi), abs_tol=1e-12)
    z = sum(p * phi for p, phi in by_hand.values())
    assert math.isclose(t.log_sigma_tilde(every(3, T)).logsumexp(0), math.log(z), abs_tol=1e-12)
    assert math.isclose(exact(t).log_z, math.log(z), abs_tol=1e-12)
    at_start = [sum(p * w for row, (p, w) in by_hand.items() if row[0] == v) / z for v in range(3)]
    at_end = [sum(p * w for row, (p, w) in by_hand.items() if row[-1] == v) / z for v in range(3)]
    marginals = exact(t).marginals().double()
    torch.testing.assert_close(marginals[0], torch.tensor(at_start, dtype=torch.float64))
    torch.testing.assert_close(marginals[-1], torch.tensor(at_end, dtype=torch.float64))


@pytest.mark.parametrize("name", POTENTIALS)
def test_the_contract_and_the_algebra_weigh_the_end(name):
    phi = POTENTIALS[name]
    check_potential(phi, letters("c"), prompt="b", eos="absorb")
    rows = torch.tensor(list(texts()))
    weights = weigh_all(rows)
    contains = torch.where((rows == 0).any(1), 0.0, -torch.inf).double()
    for composed, wanted in [
        (phi**1.5, 1.5 * weights),
        (phi * ContainsToken("a"), weights + contains),
        (Mixture([phi, ContainsToken("a")], [2, 1]), (2 * weights.exp() + contains.exp()).log()),
    ]:
        t = target(composed)
        torch.testing.assert_close(t.log_phi(rows), wanted)
        log_z = (t.log_p(rows) + wanted).logsumexp(0)
        assert math.isclose(exact(t).log_z, log_z, abs_tol=1e-12)
