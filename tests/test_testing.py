"""The public home of the contract checks."""

import inspect

import pytest

from tsmc_widgets import testing
from tsmc_widgets.models.tabular import TabularLM
from tsmc_widgets.smc.proposals import TwistInduced
from tsmc_widgets.smc.resampling import multinomial
from tsmc_widgets.targets import ContainsToken
from tsmc_widgets.twists import TableTwist

LM = TabularLM.random(3, 7, seed=0)
TWIST = TableTwist.random(3, 4, seed=0, prompt_length=3)
CALLS = {
    "check_language_model": lambda check: check(LM, num_steps=4),
    "check_potential": lambda check: check(ContainsToken("b"), LM, prompt="abc"),
    "check_proposal": lambda check: check(TwistInduced(), LM, TWIST),
    "check_resampler": lambda check: check(multinomial),
    "check_twist": lambda check: check(TWIST, LM),
}


def test_every_check_is_called_here():
    assert sorted(CALLS) == testing.__all__


@pytest.mark.parametrize("name", CALLS)
def test_each_check_is_at_hand(name):
    assert CALLS[name](getattr(testing, name)) is None


@pytest.mark.parametrize("name", CALLS)
def test_each_check_tells_what_it_raises(name):
    documented = inspect.getdoc(getattr(testing, name))
    assert "AssertionError: says which part of the contract" in documented
