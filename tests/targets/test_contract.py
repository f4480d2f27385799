import dataclasses

import pytest
import torch
from targets.toys import Stars, Tone, letters, words

from tsmc_widgets.models.tabular import TabularLM
from tsmc_widgets.targets import (
    AvoidsToken,
    AvoidsWord,
    ClassProbability,
    Constant,
    ContainsToken,
    ContainsWord,
    Continuation,
    CountToken,
    Length,
    MatchesRegex,
    Mixture,
    Potential,
    RewardThreshold,
    TemperedReward,
    TextFunction,
    TokenFunction,
)
from tsmc_widgets.testing import check_potential

MODELS = {
    "letters": (letters("c"), "ab"),
    "two EOS": (letters(("c", "b")), "ab"),
    "words": (words(eos="art"), "cat"),
    "empty prompt": (words(eos="art"), ""),
    "tables": (TabularLM.random(3, 9, seed=0), "a"),
}
POTENTIALS = [
    ContainsToken(1),
    AvoidsToken([0, 1], 2),
    CountToken(0, at_least=1, at_most=2),
    ContainsWord("cat"),
    AvoidsWord("cat cat", scope="full"),
    MatchesRegex("a.*c"),
    MatchesRegex(r"\bart\b"),
    TextFunction(lambda text: -float(len(text)), log_phi_max=0),
    TokenFunction(lambda rows: -rows.sum(1)),
    TokenFunction(lambda row: -sum(row), takes="row", log_phi_max=0),
    ClassProbability(Stars(), label=2) ** 3,
    ClassProbability(Tone(), label="low"),
    RewardThreshold(Tone(), at_most=0),
    TemperedReward(Tone(), beta=0.5),
    Continuation([0, 1]),
    Constant(-1.5),
    Mixture([ContainsToken(0), AvoidsToken(1) * ContainsWord("cat")], [0.5, 2]),
    AvoidsWord("art") * ClassProbability(Stars(), label=1) ** 0.5,
]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("phi", POTENTIALS, ids=lambda phi: phi.describe())
def test_every_potential_keeps_the_contract(phi, model):
    lm, prompt = MODELS[model]
    check_potential(phi, lm, prompt=prompt)
    if lm.eos_token_id is not None:
        check_potential(phi, lm, prompt=prompt, eos="absorb")


@pytest.mark.parametrize("eos", ["ignore", "absorb"])
def test_length_keeps_the_contract(eos):
    for model in ("letters", "words", "empty prompt"):
        lm, prompt = MODELS[model]
        check_potential(Length(at_least=1, at_most=2), lm, prompt=prompt, eos=eos)


class Good(Potential):
    def log_phi(self, tokens):
        return -tokens.sum(1).double()


class Restless(Good):
    calls = 0

    def log_phi(self, tokens):
        Restless.calls += 1
        return super().log_phi(tokens) - Restless.calls


class Ordered(Good):
    def log_phi(self, tokens):
        return super().log_phi(tokens) - torch.arange(len(tokens))


class Social(Good):
    def log_phi(self, tokens):
        values = super().log_phi(tokens)
        return values - values.mean()


class Scribbling(Good):
    def log_phi(self, tokens):
        values = super().log_phi(tokens)
        tokens.zero_()
        return values


class Proud(Good):
    log_phi_max = -7.0


class Hasty(Good):
    def log_phi_next(self, tokens):
        return -tokens.sum(1, keepdim=True).double() - torch.tensor([0, 1, 1])


class Lost(ContainsToken):
    def automaton(self):
        right = super().automaton()
        return dataclasses.replace(right, log_value=right.log_value.flip(0))


class Silent(Good):
    def describe(self):
        return " "


class Verbose(Good):
    def describe(self):
        return "two\nlines"


class Twisted(Good):
    def __pow__(self, beta):
        return self


@pytest.mark.parametrize(
    ("phi", "says"),
    [
        (Restless(), "another value when asked again"),
        (Ordered(), "order of the rows"),
        (Social(), "companions"),
        (Scribbling(), "must not write into the tokens"),
        (Proud(), "exceeds log_phi_max"),
        (Hasty(), "log_phi_next differs"),
        (Lost("c"), "automaton|log_phi_next"),
        (Silent(), "one line of text; got ' '"),
        (Verbose(), "one line"),
        (Twisted(), r"phi \*\* 2 is not what it says"),
    ],
    ids=lambda case: type(case).__name__,
)
def test_planted_bugs_are_caught(phi, says):
    check_potential(Good(), letters(), prompt="a")
    with pytest.raises(AssertionError, match=says):
        check_potential(phi, letters(), prompt="a")
