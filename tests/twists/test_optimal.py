"""The optimal twist by enumeration and by automaton."""

import math

import pytest
import torch
from smc.toys import chain, table_target

import tsmc_widgets as tw
from tsmc_widgets.smc.exact import ChainOracle, ChainTwist, EnumeratedOracle, TreeTwist
from tsmc_widgets.testing import check_twist


def chain_target(num_steps=4, **options):
    potential = tw.ContainsToken("b") * tw.AvoidsToken("c")
    return tw.Target(chain(**options), potential, prompt="ab", num_steps=num_steps)


@pytest.mark.parametrize("zeros", [0.0, 0.4])
def test_tree_keeps_the_contract(zeros):
    target = table_target(3, 4, seed=1, zeros=zeros)
    twist = EnumeratedOracle(target).optimal_twist()
    assert isinstance(twist, TreeTwist)
    check_twist(twist, target.lm, prompt_length=0, tolerance=0.0)


def test_tree_keeps_the_contract_on_texts_that_p0_cannot_write():
    lm = tw.TabularLM.markov([0.5, 0.5, 0.0], [[0.0, 1.0, 0.0], [0.5, 0.0, 0.5], [0.0, 0.2, 0.8]])
    target = tw.Target(lm, tw.ContainsToken("c"), prompt="a", num_steps=4)
    twist = EnumeratedOracle(target).optimal_twist()
    assert math.isinf(float(twist.log_psi(torch.tensor([[0, 0, 0]]), 1).min()))
    check_twist(twist, lm, prompt_length=1, tolerance=0.0)


def test_tree_ends_in_phi_on_a_transformers_model(gpt2):
    target = tw.Target(gpt2, tw.ContainsToken(5), prompt="the fox", num_steps=2)
    twist = EnumeratedOracle(target).optimal_twist()
    tokens = torch.tensor([[9, 4, 5, 7], [9, 4, 3, 5]])
    assert torch.equal(twist.log_psi(tokens, 2)[:, 1].exp(), torch.tensor([1.0, 1.0]).double())


def test_chain_keeps_the_contract():
    target = chain_target()
    twist = ChainOracle(target, target.potential.automaton()).optimal_twist()
    assert isinstance(twist, ChainTwist)
    for seed in range(3):
        check_twist(twist, target.lm, prompt_length=2, seed=seed, tolerance=0.0)


@pytest.mark.parametrize("oracle", [tw.exact, EnumeratedOracle], ids=["chain", "tree"])
def test_a_step_beyond_the_target_is_named(oracle):
    target = chain_target(num_steps=2)
    twist, tokens = oracle(target).optimal_twist(), torch.tensor([[0, 1, 0, 1]])
    with pytest.raises(ValueError, match="target of 2 steps and step 3 is asked for"):
        twist.prefill(tokens, target.lm.prefill(tokens))
