"""The twist that guesses from the factors of phi."""

import pytest
import torch
from targets.toys import Stars, Tone

import tsmc_widgets as tw
from tsmc_widgets.testing import check_twist
from tsmc_widgets.twists import LookAheadTwist
from tsmc_widgets.twists.lookahead import FLOOR, token_frequencies, word_tokens

POTENTIALS = [
    tw.Constant(),
    tw.ContainsWord("b"),
    tw.AvoidsWord("a", "c"),
    tw.ContainsToken("b") * tw.AvoidsToken("c"),
    tw.MatchesRegex("b .*a"),
    tw.ContainsWord("zebra"),
    tw.ClassProbability(Stars(), label=2) ** 3,
    tw.RewardThreshold(Tone(), at_most=0),
    tw.TemperedReward(Tone(), beta=0.5),
    tw.ContainsWord("b")
    * tw.ClassProbability(Stars(), label=1) ** 0.5
    * tw.CountToken("a", at_most=3),
]


@pytest.fixture
def lm():
    return tw.TabularLM.markov(
        [0.6, 0.3, 0.1],
        [[0.5, 0.3, 0.2], [0.4, 0.4, 0.2], [0.7, 0.2, 0.1]],
        symbols="abc",
        separator=" ",
    )


def make_twist(lm, potential, num_steps=4):
    return LookAheadTwist(tw.Target(lm, potential, prompt="a", num_steps=num_steps))


@pytest.mark.parametrize("potential", POTENTIALS, ids=lambda phi: phi.describe())
def test_contract(lm, potential):
    twist = make_twist(lm, potential, num_steps=5)
    for seed in range(2):
        check_twist(twist, lm, prompt_length=1, num_steps=5, seed=seed, tolerance=1e-12)


def test_contract_on_a_transformers_model(gpt2):
    potential = tw.ContainsWord("fox") * tw.ClassProbability(Stars(), label=2)
    twist = LookAheadTwist(tw.Target(gpt2, potential, prompt="the old king", num_steps=4))
    check_twist(twist, gpt2, prompt_length=3)


def test_it_is_optimal_where_tokens_are_independent():
    coin = tw.TabularLM.markov([0.7, 0.2, 0.1], [[0.7, 0.2, 0.1]] * 3, symbols="abc", separator=" ")
    target = tw.Target(coin, tw.ContainsWord("b"), prompt="a", num_steps=4)
    tokens = torch.cartesian_prod(*[torch.arange(3)] * 4)
    tokens = torch.cat([torch.zeros(81, 1, dtype=torch.int64), tokens], dim=1)
    guess = LookAheadTwist(target).log_psi(tokens, 1)
    truth = tw.exact(target).optimal_twist().log_psi(tokens, 1)
    # At T the guess stops at the floor where phi is zero, and so it adds exp(FLOOR) before.
    truth = torch.logaddexp(truth, FLOOR + torch.log1p(-truth.exp()))
    torch.testing.assert_close(guess, truth, rtol=0, atol=1e-12)


def test_a_text_is_asked_about_before_its_newest_token(lm):
    twist = make_twist(lm, tw.TemperedReward(Tone(), beta=0.5))
    tokens = torch.tensor([[0, 0, 2, 1, 1]])
    reward = [2.0, 3.0, 1.5, 1.5]
    expected = torch.tensor([[0.5 * value for value in reward]], dtype=torch.float64)
    torch.testing.assert_close(twist.log_psi(tokens, 1), expected, rtol=0, atol=1e-12)


def test_a_class_is_trusted_more_as_the_text_grows(lm):
    phi = tw.ClassProbability(Stars(), label=2)
    target = tw.Target(lm, phi, prompt="a", num_steps=4)
    tokens = torch.tensor([[0, 0, 0, 0, 0]])
    found = LookAheadTwist(target).log_psi(tokens, 1)[0]
    so_far = [float(target.potential.log_phi(tokens[:, 1 : 1 + t])) for t in range(4)]
    expected = torch.tensor([0.5 * t / 4 * so_far[t] for t in range(4)], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_a_missed_threshold_costs_a_nat_for_each_unit(lm):
    twist = make_twist(lm, tw.RewardThreshold(Tone(), at_most=0.0))
    log_psi = twist.log_psi(torch.tensor([[0, 0, 0, 2, 2]]), 1)
    torch.testing.assert_close(log_psi, torch.tensor([[-2.0, -3.0, -4.0, -2.5]]).double())


def test_it_never_rules_out_what_phi_allows(lm):
    tokens = torch.cartesian_prod(*[torch.arange(3)] * 4)
    for potential in (tw.ContainsWord("c"), tw.AvoidsWord("a", "b", "c"), tw.ContainsToken("b")):
        log_psi = make_twist(lm, potential, num_steps=3).log_psi(tokens, 1)
        assert bool((log_psi >= FLOOR).all())
        assert bool((log_psi <= 0).all())


def test_frequencies_are_probabilities(lm):
    target = tw.Target(lm, tw.AvoidsWord("c"), prompt="a", num_steps=6)
    frequencies = token_frequencies(target, 16, 0)
    assert frequencies.shape == (6, 3)
    torch.testing.assert_close(frequencies.sum(1), torch.ones(6, dtype=torch.float64))
    torch.testing.assert_close(frequencies[0], lm.transition[0])
    assert torch.equal(token_frequencies(target, 16, 0), frequencies)


def test_words_are_spelled_in_every_usual_way():
    symbols = ["Fox", "fox", " fox", " "]
    lm = tw.TabularLM.markov([0.25] * 4, [[0.25] * 4] * 4, symbols=symbols)
    assert list(word_tokens(["fox"], lm)) == [[1], [2], [0], [3, 0]]
    assert list(word_tokens(["bear"], lm)) == []
