"""Every exercise of the course: the right answer, each typical wrong one, and what is no answer."""

import math

import numpy as np
import pytest
import torch

import tsmc_widgets as tw
from tsmc_widgets import course
from tsmc_widgets.course import EXERCISES, PotentialExercise, two_days

BY_HAND = {
    # Rain is followed by sun, cloud and rain with 0.2, 0.4 and 0.4.
    "1.3": "rain rain",
    "2.1": 2,
    "2.2": math.log((1 + math.e + math.e**2) / 3),
    "3.1": 1.5,
    "3.2": 0.512,
    "3.3": "systematic",
    "4.1": 0.6 * math.e + 0.4 * math.e**2,
    "4.2": 0,
    "4.3": "yes",
    "5.2": 0,
    "7.2": 100,
    "8.1": 0.00994,
    "8.2": 1097,
    "8.3": "at least",
    "9.1": math.log(0.6 * math.e + 0.4 * math.e**2),
    "9.2": 2 - math.log(0.6 * math.e + 0.4 * math.e**2),
    "10.1": 2 / 3,
    "10.2": 2**-7,
    "10.3": "no",
    "12.2": -2 + math.log((1 + math.exp(-2)) / 2),
}
PLAIN = [name for name, each in EXERCISES.items() if not isinstance(each, PotentialExercise)]


class Costs:
    """A potential from a function of tokens."""

    def __init__(self, function):
        self.log_phi = function


def solution(name):
    right, slips = EXERCISES[name].solve()
    return right, list(slips)


@pytest.mark.parametrize("name", PLAIN)
def test_right_is_right_and_every_slip_gets_its_own_hint(name):
    right, slips = solution(name)
    assert tw.check(name, right)
    assert tw.check(name, right).message.startswith(f"{name}: Right. ")
    values = [value for value, _ in slips]
    assert len(values) >= 1
    for value, hint in slips:
        told = tw.check(name, value)
        assert told.right is False
        assert told.message == f"{name}: {hint}"
        assert repr(told).startswith("✗ ")


def test_what_is_computed_is_what_a_hand_computes():
    for name, value in BY_HAND.items():
        assert tw.check(name, value), name


def test_the_world_by_hand():
    after = {"sun": [0.7, 0.2, 0.1], "cloud": [0.4, 0.4, 0.2], "rain": [0.2, 0.4, 0.4]}
    names = list(after)
    p = {(a, b): after["sun"][i] * after[a][j]
         for i, a in enumerate(names) for j, b in enumerate(names)}  # fmt: skip
    phi = {days: math.exp(days.count("rain")) for days in p}
    z = sum(p[days] * phi[days] for days in p)
    sigma = {days: p[days] * phi[days] / z for days in p}
    rain = ("rain", "rain")
    assert tw.check("1.1", z)
    assert tw.check("1.2", sigma[rain])
    dry = sum(value for days, value in p.items() if "rain" not in days)
    assert tw.check("2.3", dry**8)
    first = sum(value for days, value in sigma.items() if days[0] == "rain")
    assert tw.check("5.1", first - 0.1)
    lower = sum(p[days] * math.log(phi[days]) for days in p)
    upper = sum(sigma[days] * math.log(phi[days]) for days in p)
    assert tw.check("6.1", lower)
    assert tw.check("6.2", upper)
    assert tw.check("6.3", upper - lower)
    assert tw.check("9.3", math.log(z))


def test_a_rhyme_by_hand():
    lm = tw.load_problem("one-token-infilling").target().lm
    move = torch.linalg.matrix_power(lm.transition, 5)
    assert tw.check("7.1", float(move[lm.token_id("fox"), lm.token_id("clock")]))


@pytest.mark.parametrize("name", EXERCISES)
def test_without_an_answer_it_asks(name):
    asked = tw.check(name)
    assert asked.right is None
    assert not asked
    assert repr(asked).startswith(f"? {name}: ")
    assert all(repr(choice) in asked.message for choice in EXERCISES[name].choices)


def test_numbers_of_any_kind_are_numbers():
    for two in (2, 2.0, np.float32(2), np.int64(2), torch.tensor(2.0), 2.004):
        assert tw.check("2.1", two)
    assert not tw.check("2.1", 2.05)
    assert tw.check("2.1", 17).message == f"2.1: Not yet. {EXERCISES['2.1'].question}"
    assert not tw.check("8.2", math.inf)


def test_words_in_any_letters():
    assert tw.check("3.3", " Systematic ")
    assert "stratified" in tw.check("3.3", "stratified").message


@pytest.mark.parametrize(
    ("name", "answer", "message"),
    [
        ("3.9", 1, r"exercise must be one of 1\.1, 1\.2, .*; got '3\.9'"),
        ("2.1", "two", r"The answer must be a number; got 'two'"),
        ("2.1", True, r"must be a number; got True"),
        ("2.1", math.nan, r"must be a number; got nan"),
        ("2.1", None, r"must be a number; got None"),
        ("2.1", torch.ones(3), r"must be a number; got tensor"),
        ("3.3", "stochastic", r"must be one of multinomial, residual, .*; got 'stochastic'"),
        ("3.3", 2, r"must be one of .*; got 2"),
        ("12.1", 0.5, r"must be an object with a method log_phi\(tokens\); got 0\.5"),
    ],
)
def test_what_is_no_answer_is_an_error(name, answer, message):
    with pytest.raises(ValueError, match=message):
        tw.check(name, answer)


def test_a_potential_is_checked_by_its_values():
    assert tw.check("12.1", Costs(lambda tokens: -0.5 * (tokens == 0).sum(1)))
    slips = [
        (lambda tokens: 0.5 * (tokens == 0).sum(1), "sign"),
        (lambda tokens: (-0.5 * (tokens == 0).sum(1)).exp(), "logarithm"),
        (lambda tokens: -0.5 * (tokens == 0).sum(), "each row"),
        (lambda tokens: -1.0 * (tokens == 0).sum(1), "Half a nat"),
        (lambda tokens: 1.0 * (tokens == 1).sum(1), "Not yet"),
    ]
    for function, hint in slips:
        told = tw.check("12.1", Costs(function))
        assert not told
        assert hint in told.message


def test_checks_are_computed_not_stored(monkeypatch):
    right, _ = solution("1.1")
    course._world.cache_clear()
    monkeypatch.setattr(course, "count_rain", lambda tokens: 2.0 * (tokens == 2).sum(1).double())
    assert not tw.check("1.1", right)
    assert tw.check("1.1", math.exp(tw.exact(two_days()).log_z))
    course._world.cache_clear()
