import numpy as np
import pytest
import torch
from targets.toys import every, letters, log_phi_by_hand

from tsmc_widgets.errors import UnknownTokenError
from tsmc_widgets.targets import (
    AvoidsToken,
    ContainsToken,
    Continuation,
    CountToken,
    Infilling,
    Length,
    Target,
)
from tsmc_widgets.targets.tokens import check_pattern

T = 5


def occurs(row, *pattern):
    width = len(pattern)
    return sum(tuple(row[i : i + width]) == pattern for i in range(len(row) - width + 1))


def length(row):
    return row.index(2) if 2 in row else len(row)


CASES = [
    (ContainsToken("c"), lambda row: 2 in row),
    (ContainsToken(2), lambda row: 2 in row),
    (ContainsToken("a", "bb"), lambda row: 0 in row or occurs(row, 1, 1)),
    (ContainsToken(["a", "b", 0]), lambda row: occurs(row, 0, 1, 0)),
    (ContainsToken("aabbaabb"), lambda row: False),
    (AvoidsToken("c"), lambda row: 2 not in row),
    (AvoidsToken("ab", [2, 2]), lambda row: not occurs(row, 0, 1) and not occurs(row, 2, 2)),
    (CountToken("a", at_least=2), lambda row: row.count(0) >= 2),
    (CountToken("a", at_most=1), lambda row: row.count(0) <= 1),
    (CountToken("a", "b", at_least=1, at_most=3), lambda row: 1 <= 5 - row.count(2) <= 3),
    (CountToken("aa", at_least=2, at_most=2), lambda row: occurs(row, 0, 0) == 2),
    (CountToken("aab", "ab", at_least=1, at_most=1), lambda row: occurs(row, 0, 1) == 1),
    (Length(at_most=3), lambda row: length(row) <= 3),
    (Length(at_least=2), lambda row: length(row) >= 2),
    (Length(at_least=1, at_most=1), lambda row: length(row) == 1),
]


@pytest.mark.parametrize(("phi", "holds"), CASES, ids=lambda case: getattr(case, "__doc__", None))
def test_log_phi_is_what_a_loop_over_rows_says(phi, holds):
    target = Target(letters(eos="c"), phi, prompt="a", num_steps=T)
    tokens = every(3, T)
    wanted = log_phi_by_hand(target, tokens, holds)
    assert torch.equal(target.log_phi(tokens), wanted)
    assert torch.equal(target.potential.automaton().log_phi(tokens), wanted)
    assert torch.equal(target.log_phi_next(tokens[::3, :-1]).flatten(), wanted)
    assert target.potential.log_phi_max == 0


@pytest.mark.parametrize(
    ("phi", "line"),
    [
        (ContainsToken("c"), 'contains token "c"'),
        (AvoidsToken("c", 0), 'avoids token "c" or token 0'),
        (CountToken(["a", "b"], at_least=1), 'at least 1 time token "a" then token "b"'),
        (CountToken("a", at_least=2, at_most=2), 'exactly 2 times token "a"'),
        (Length(at_most=3), "at most 3 tokens long"),
        (Length(at_least=2, at_most=3), "2 to 3 tokens long"),
    ],
)
def test_descriptions(phi, line):
    assert phi.describe() == line


def test_a_bound_potential_shows_ids_as_text():
    target = Target(letters(), ContainsToken(1), prompt="", num_steps=2)
    assert target.potential.describe() == 'contains token "b"'


def test_equal_by_what_they_ask():
    assert ContainsToken("c") == ContainsToken("c")
    assert hash(CountToken("c", at_most=1)) == hash(CountToken("c", at_most=1))
    assert ContainsToken("c") != AvoidsToken("c")
    assert CountToken("c", at_most=1) != CountToken("c", at_most=2)
    target = Target(letters(), ContainsToken("c"), prompt="", num_steps=2)
    assert target.potential == ContainsToken("c")


def test_binding_again_forgets_the_first_model():
    phi = ContainsToken("c")
    first = Target(letters(), phi, prompt="", num_steps=2).potential
    assert first.automaton().transition.shape[1] == 3
    from tsmc_widgets.models.tabular import TabularLM

    other = TabularLM.markov([0.5, 0.5], [[0.5, 0.5], [0.5, 0.5]], symbols="cd")
    second = Target(other, first, prompt="", num_steps=2).potential
    assert second.automaton().transition.shape[1] == 2
    assert second.token_ids == ((0,),)
    assert first.token_ids == ((2,),)
    assert phi.automaton() is None


@pytest.mark.parametrize("bad", ["", [], True, ["a", ""], ["a", True]])
def test_what_is_no_token_is_refused(bad):
    with pytest.raises(ValueError, match="non-empty text, an id"):
        ContainsToken(bad)


def test_errors_name_the_value_and_what_is_allowed():
    with pytest.raises(ValueError, match="at least one token"):
        AvoidsToken()
    with pytest.raises(ValueError, match="got neither"):
        CountToken("a")
    with pytest.raises(ValueError, match="at_most must be at least at_least=3; got 2"):
        Length(at_least=3, at_most=2)
    with pytest.raises(ValueError, match="at_least must be an integer of at least 0; got -1"):
        Length(at_least=-1)
    with pytest.raises(UnknownTokenError, match="ids are 0 to 2"):
        Target(letters(), ContainsToken(3), prompt="", num_steps=2)
    with pytest.raises(UnknownTokenError, match="'z'"):
        Target(letters(), ContainsToken("z"), prompt="", num_steps=2)
    with pytest.raises(ValueError, match="has no EOS token"):
        Target(letters(), Length(at_most=1), prompt="", num_steps=2)
    with pytest.raises(ValueError, match="Length"):
        Target(letters("c"), CountToken("c", at_most=1), prompt="", num_steps=2, eos="absorb")
    with pytest.raises(ValueError, match="put it in a Target"):
        ContainsToken("c").log_phi(every(3, 2))


def test_ids_from_numpy_are_ids():
    one, two = np.int64(1), np.uint8(2)
    assert ContainsToken(one) == ContainsToken(1)
    assert AvoidsToken([one, two], 0) == AvoidsToken([1, 2], 0)
    assert CountToken(one, at_least=1) == CountToken(1, at_least=1)
    assert Continuation([one, two]) == Continuation([1, 2])
    assert Infilling(num_tokens=two) == Infilling(num_tokens=2)
    for phi in (ContainsToken(one), AvoidsToken([one, two]), Continuation([one, two])):
        log_phi = Target(letters(), phi, prompt="a", num_steps=2).log_phi(every(3, 2))
        assert log_phi.shape == (9,)
    for wrong in (np.bool_(True), np.float64(1)):
        with pytest.raises(ValueError, match="non-empty text, an id"):
            check_pattern(wrong)
