"""From the values of the controls to a target and a run."""

import math

import pytest
import torch

from tsmc_widgets.errors import UnknownTokenError
from tsmc_widgets.models.tabular import TabularLM
from tsmc_widgets.targets.target import Target
from tsmc_widgets.targets.words import AvoidsWord, ContainsWord
from tsmc_widgets.twists.lookahead import LookAheadTwist, token_frequencies
from tsmc_widgets.twists.protocol import Twist
from tsmc_widgets.widgets.settings import (
    Judges,
    RunSettings,
    make_potential,
    make_session,
    make_target,
    split_words,
)


class Stars:
    """A classifier that counts the letter a."""

    labels = tuple(f"{n} star{'s' * (n > 1)}" for n in range(1, 6))

    def logits(self, texts):
        return torch.tensor([[0.5 * n * text.count("a") for n in range(5)] for text in texts])


class Hostility:
    """A classifier with a scalar logit: how many b."""

    labels = ("hostility",)

    def logits(self, texts):
        return torch.tensor([[text.count("b") - 2.0] for text in texts])


@pytest.fixture
def lm():
    return TabularLM.markov(
        [0.6, 0.3, 0.1],
        [[0.5, 0.3, 0.2], [0.4, 0.4, 0.2], [0.7, 0.2, 0.1]],
        symbols="abc",
        separator=" ",
    )


JUDGES = Judges(Stars(), Hostility())


def test_words_are_split_at_commas():
    assert split_words(" castle, old king ,, ") == ["castle", "old king"]


@pytest.mark.parametrize(
    ("values", "described"),
    [
        ({"stars": 0}, "1"),
        ({"stars": 3, "star_beta": 2.5}, "p(3 stars | text)^2.5"),
        ({"stars": 3, "star_beta": 0.0}, "1"),
        ({"stars": 0, "contains": "a, b"}, 'contains "a" × contains "b"'),
        ({"stars": 0, "avoids": "a, b"}, 'avoids "a" or "b"'),
        ({"stars": 0, "hostility": "threshold", "hostility_at_least": 1.5}, "≥ 1.5"),
        ({"stars": 0, "hostility": "tempered", "hostility_beta": 2.0}, "exp(2 "),
        ({"stars": 0, "hostility": "tempered", "hostility_beta": -2.0}, "p(not hostility | text)"),
        ({"stars": 0, "hostility": "tempered", "hostility_beta": 0.0}, "1"),
    ],
)
def test_potential_of_the_controls(values, described):
    assert described in make_potential(RunSettings(**values), JUDGES).describe()


def test_judges_that_are_not_there_ask_nothing():
    settings = RunSettings(stars=5, hostility="threshold")
    assert make_potential(settings, Judges(None, None)).describe() == "1"


@pytest.mark.parametrize(
    "values", [{"stars": 6}, {"hostility": "x"}, {"twist": "x"}, {"proposal": "x"}]
)
def test_unknown_choices_are_refused(values):
    with pytest.raises(ValueError, match="must be one of"):
        RunSettings(**values)


def test_word_that_cannot_be_written_is_named(lm):
    with pytest.raises(UnknownTokenError, match="No text can contain “zebra”"):
        make_target(RunSettings(contains="zebra", stars=0), lm, JUDGES)


@pytest.mark.parametrize("twist", ["none", "look-ahead"])
@pytest.mark.parametrize("proposal", ["base", "twist-induced"])
def test_every_sampler_runs(lm, twist, proposal):
    settings = RunSettings(
        prompt="a", num_steps=5, num_particles=8, twist=twist, proposal=proposal, contains="b"
    )
    session = make_session(settings, make_target(settings, lm, JUDGES))
    trace = session.run()
    assert math.isfinite(trace.log_z)


def make_twist(lm, potential, num_steps=4):
    return LookAheadTwist(Target(lm, potential, prompt="a", num_steps=num_steps))


def test_look_ahead_is_a_twist_that_steps_as_it_is_teacher_forced(lm):
    twist = make_twist(lm, ContainsWord("b") * make_potential(RunSettings(), JUDGES))
    assert isinstance(twist, Twist)
    tokens = torch.tensor([[0, 1, 2, 0, 0], [0, 2, 2, 1, 0]])
    forced = twist.log_psi(tokens, 1)
    lm_step = lm.prefill(tokens[:, :1])
    step = twist.prefill(tokens[:, :1], lm_step)
    for t in range(1, 5):
        chosen = step.log_psi_next.gather(1, tokens[:, t : t + 1])
        torch.testing.assert_close(chosen, forced[:, t - 1 : t])
        lm_step = lm.advance(tokens[:, t], lm_step.carry)
        step = twist.advance(tokens[:, t], step.carry.select(torch.tensor([0, 1])), lm_step)


def test_look_ahead_is_optimal_where_tokens_are_independent():
    from tsmc_widgets.smc.exact import exact

    coin = TabularLM.markov([0.7, 0.2, 0.1], [[0.7, 0.2, 0.1]] * 3, symbols="abc", separator=" ")
    target = Target(coin, ContainsWord("b"), prompt="a", num_steps=4)
    tokens = torch.tensor([[0, 0, 0, 2, 1], [0, 1, 0, 0, 0], [0, 0, 0, 0, 1]])
    guess = LookAheadTwist(target).log_psi(tokens, 1)
    truth = exact(target).optimal_twist().log_psi(tokens, 1)
    torch.testing.assert_close(guess[:, :-1], truth[:, :-1], atol=1e-4, rtol=0)


def test_frequencies_are_probabilities(lm):
    target = Target(lm, AvoidsWord("c"), prompt="a", num_steps=6)
    frequencies = token_frequencies(target, 16, 0)
    assert frequencies.shape == (6, 3)
    torch.testing.assert_close(frequencies.sum(1), torch.ones(6, dtype=torch.float64))


def test_look_ahead_never_rules_out_what_phi_allows(lm):
    for potential in (ContainsWord("c"), AvoidsWord("a", "b", "c")):
        twist = make_twist(lm, potential)
        assert torch.isfinite(twist.log_psi(torch.tensor([[0, 0, 1, 1, 1]]), 1)).all()
