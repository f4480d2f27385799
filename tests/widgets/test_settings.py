"""From the values of the controls to a target and a run."""

import math

import pytest
import torch

from tsmc_widgets.errors import UnknownTokenError
from tsmc_widgets.experiments.execute import start_spec
from tsmc_widgets.models.tabular import TabularLM
from tsmc_widgets.targets.description import potential_of
from tsmc_widgets.widgets.settings import Judges, RunSettings, split_words


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
    assert described in potential_of(RunSettings(**values).factors(JUDGES)).describe()


def test_judges_that_are_not_there_ask_nothing():
    settings = RunSettings(stars=5, hostility="threshold")
    assert settings.factors(Judges(None, None)) == [{"kind": "Constant"}]


@pytest.mark.parametrize(
    "values", [{"stars": 6}, {"hostility": "x"}, {"twist": "x"}, {"proposal": "x"}]
)
def test_unknown_choices_are_refused(values):
    with pytest.raises(ValueError, match="must be one of"):
        RunSettings(**values)


def test_word_that_cannot_be_written_is_named(lm):
    with pytest.raises(UnknownTokenError, match="No text can contain “zebra”"):
        RunSettings(contains="zebra", stars=0).target(lm, JUDGES)


@pytest.mark.parametrize("twist", ["none", "look-ahead"])
@pytest.mark.parametrize("proposal", ["base", "twist-induced"])
def test_every_sampler_runs(lm, twist, proposal):
    settings = RunSettings(
        prompt="a", num_steps=5, num_particles=8, twist=twist, proposal=proposal, contains="b"
    )
    trace = start_spec(settings.spec, target=settings.target(lm, JUDGES)).run()
    assert math.isfinite(trace.log_z)
