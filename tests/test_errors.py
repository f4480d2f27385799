"""What messages say of the values that they refuse."""

import pytest
import torch

import tsmc_widgets as tw
from tsmc_widgets.errors import check_integer, listed, message_of, quoted
from tsmc_widgets.evaluation import LogZ
from tsmc_widgets.models.tabular import TabularLM
from tsmc_widgets.widgets.factor_editor import FactorRow

WORDS = "qwertz " * 1000
RUN = tw.load_problem("rainy-week").target()
TABLE = TabularLM.markov([0.5, 0.5], [[0.5, 0.5], [0.5, 0.5]], symbols=["a", "b"])


@pytest.fixture(scope="module")
def storybook():
    return tw.load_language_model("storybook")


REFUSED = {
    "prompt": lambda lm: tw.Target(lm, tw.ContainsWord("castle"), prompt=WORDS, num_steps=3),
    "symbols": lambda _: TABLE.encode(WORDS),
    "symbol": lambda _: TABLE.token_id(WORDS),
    "pattern": lambda _: tw.MatchesRegex("(" + WORDS),
    "choice": lambda _: tw.WatchSMC(twist=WORDS),
    "number": lambda _: check_integer("num_runs", WORDS),
    "problem": lambda _: tw.load_problem(WORDS),
    "field": lambda _: tw.RunSpec(problem={WORDS: 1}),
    "fields": lambda _: tw.RunSpec(problem={"name": WORDS}),
    "function": lambda _: tw.find_function(WORDS),
    "keyword": lambda _: tw.run_smc(RUN, num_particles=2, **{WORDS: 1}),
    "stop": lambda lm: tw.Target(lm, tw.Constant(), prompt="once", num_steps=3, stop=WORDS),
    "label": lambda _: tw.ClassProbability("storybook/stars", label=WORDS),
    "classifier": lambda _: tw.ClassProbability("storybook/" + WORDS, label=1),
    "checkpoint": lambda _: tw.load_language_model(WORDS),
    "method": lambda _: tw.RunSpec(problem="rainy-week", method=WORDS),
    "measures": lambda _: tw.RunSpec(problem="rainy-week", measures=WORDS),
    "specs": lambda _: list(tw.map_runs([WORDS])),
    "log_z": lambda _: LogZ.of(WORDS),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_message_quotes_a_long_value_in_short(name, storybook):
    with pytest.raises((ValueError, TypeError, OSError), match="qwertz") as raised:
        REFUSED[name](storybook)
    assert len(str(raised.value)) < 1000


def test_a_page_shows_the_ends_of_a_long_message():
    said = message_of(ValueError("begins" + "x" * 10_000 + "ends"))
    assert said.startswith("begins")
    assert said.endswith("ends")
    assert len(said) < 1010
    assert message_of(KeyboardInterrupt()) == "KeyboardInterrupt"


def test_short_values_are_quoted_whole():
    assert quoted("it's") == repr("it's")
    assert quoted(torch.Size([2])) == "torch.Size([2])"
    assert listed(range(4), most=2) == "0, 1, and 2 more"


def test_json_of_a_factor_is_quoted_in_short():
    row = FactorRow({"kind": "CountToken", "args": ["a"], "at_least": 1}, lambda: None, print)
    row.fields["json"].value = f'["{WORDS}"]'
    assert "must be an object" in row.error
    assert len(row.error) < 1000
