import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from targets.toys import every, letters, words

from tsmc_widgets.targets import (
    AvoidsToken,
    AvoidsWord,
    ContainsToken,
    ContainsWord,
    CountToken,
    MatchesRegex,
    Mixture,
    Target,
    TextFunction,
)
from tsmc_widgets.targets import words as text_automata
from tsmc_widgets.targets.automata import combine
from tsmc_widgets.targets.words import search_pattern

TOKENS = st.one_of(
    st.integers(0, 2), st.sampled_from("abc"), st.lists(st.integers(0, 2), min_size=1, max_size=4)
)
PATTERNS = st.lists(TOKENS, min_size=1, max_size=3)
REGEXES = [
    "a",
    "a+b",
    "^c?b",
    "[ab]{2}c$",
    "(a|bc)*c",
    "a.c",
    "(?i)A[^b]",
    "^(?:a|bb)*$",
    "(?s:.)b",
]
SIMPLE = st.one_of(
    st.tuples(st.just("contains"), PATTERNS),
    st.tuples(st.just("avoids"), PATTERNS),
    st.tuples(st.just("count"), PATTERNS, st.integers(0, 2), st.integers(0, 2)),
    st.tuples(st.just("regex"), st.sampled_from(REGEXES)),
)
WEIGHTS = st.floats(0.1, 5.0)
RECIPES = st.recursive(
    SIMPLE,
    lambda recipes: st.one_of(
        st.tuples(st.just("product"), recipes, recipes),
        st.tuples(st.just("power"), recipes, WEIGHTS),
        st.tuples(st.just("mixture"), recipes, recipes, WEIGHTS),
    ),
    max_leaves=4,
)


def build(recipe):
    """A potential from a recipe (strategies may not run checked code, which draws at random)."""
    kind, *parts = recipe
    match kind:
        case "contains":
            return ContainsToken(*parts[0])
        case "avoids":
            return AvoidsToken(*parts[0])
        case "count":
            return CountToken(*parts[0], at_least=parts[1], at_most=parts[1] + parts[2])
        case "regex":
            return MatchesRegex(parts[0])
        case "product":
            return build(parts[0]) * build(parts[1])
        case "power":
            return build(parts[0]) ** parts[1]
        case _:
            return Mixture([build(parts[0]), build(parts[1])], [parts[2], 1.0])


@settings(max_examples=60, deadline=None)
@given(recipe=RECIPES, prompt=st.sampled_from(["", "a", "cb"]), steps=st.integers(1, 4))
def test_automaton_is_log_phi(recipe, prompt, steps):
    target = Target(letters(), build(recipe), prompt=prompt, num_steps=steps)
    tokens = every(3, steps)
    wanted = target.log_phi(tokens)
    torch.testing.assert_close(target.potential.automaton().log_phi(tokens), wanted)
    torch.testing.assert_close(target.log_phi_next(tokens[::3, :-1]).flatten(), wanted)
    if (bound := target.potential.log_phi_max) is not None:
        assert wanted.max() <= bound + 1e-9


WORDS = ["cat", "Cat.", "cat art", "art  cat", "at", "cat. art", "ART"]


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from([ContainsWord, AvoidsWord]),
    chosen=st.lists(st.sampled_from(WORDS), min_size=1, max_size=2, unique=True),
    case=st.sampled_from(["ignore", "match"]),
    scope=st.sampled_from(["continuation", "full"]),
    prompt=st.sampled_from(["", "art", "Cat. cat"]),
    ends=st.sampled_from([("ignore", None), ("ignore", "Cat."), ("absorb", "Cat.")]),
)
def test_word_automaton_is_log_phi(kind, chosen, case, scope, prompt, ends):
    eos, symbol = ends
    phi = kind(*chosen, case=case, scope=scope)
    target = Target(words(eos=symbol), phi, prompt=prompt, num_steps=4, eos=eos)
    tokens = every(3, 4)
    assert torch.equal(target.potential.automaton().log_phi(tokens), target.log_phi(tokens))


@pytest.mark.parametrize(
    ("pattern", "text", "found"),
    [
        ("^a$", "a\n", True),
        ("^a$", "a\n\n", False),
        (r"a\$", "a$", True),
        (r"a\\$", "a\\", True),
        ("(?s)a.b", "a\nb", True),
        ("a.b", "a\nb", False),
        ("(?i)^AB", "ab", True),
        ("^(a|b)$", "b", True),
        ("[|]$", "a|", True),
    ],
)
def test_search_pattern_holds_where_search_finds(pattern, text, found):
    assert (re.search(pattern, text) is not None) == found
    assert (re.fullmatch(search_pattern(pattern), text) is not None) == found


@pytest.mark.parametrize(
    "pattern", [r"\bcat\b", r"(a)\1", "(?=a)", "(?<!a)b", "a*+b", "^a|b", "(?m)^a", "a(^b)", "a|b$"]
)
def test_patterns_without_an_automaton_still_work(pattern):
    target = Target(letters(), MatchesRegex(pattern), prompt="", num_steps=3)
    assert target.potential.automaton() is None
    assert target.log_phi_next is None
    tokens = every(3, 3)
    found = [re.search(pattern, text) is not None for text in target.texts(tokens)]
    assert torch.equal(target.log_phi(tokens) == 0, torch.tensor(found))


def test_no_automaton_where_character_classes_differ():
    lm = words(symbols=("é", "a", "b"))
    target = Target(lm, ContainsWord("a"), prompt="", num_steps=3)
    assert target.potential.automaton() is None


@pytest.mark.parametrize("lie", ["(?s:.)*c(?s:.)*|(?s:.){5,}", "((?s:.)*c(?s:.)*)?", "(?s:.)*"])
def test_a_machine_that_disagrees_with_the_regex_is_not_used(lie, monkeypatch):
    honest = text_automata._character_machine
    tokens = every(3, 3)
    for kind in (MatchesRegex, ContainsWord, AvoidsWord):
        target = Target(letters(), kind("c"), prompt="", num_steps=3)
        wanted = target.log_phi(tokens)
        with monkeypatch.context() as patch:
            patch.setattr(text_automata, "_character_machine", lambda pattern: honest(lie))
            lied = Target(letters(), kind("c"), prompt="", num_steps=3)
            assert lied.potential.automaton() is None
            assert lied.log_phi_next is None
            assert torch.equal(lied.log_phi(tokens), wanted)
        assert Target(letters(), kind("c"), prompt="", num_steps=3).log_phi_next is not None


def test_no_automaton_for_a_product_with_a_function():
    phi = ContainsToken("a") * TextFunction(lambda text: 0.0)
    target = Target(letters(), phi, prompt="", num_steps=3)
    assert target.potential.automaton() is None
    assert target.log_phi_next is None


def test_combine_stops_at_its_limit(monkeypatch):
    counts = [CountToken(token, at_most=9) for token in "abc"]
    target = Target(letters(), counts[0] * counts[1] * counts[2], prompt="", num_steps=2)
    parts = [part.automaton() for part in target.potential.factors()]
    assert combine(parts, lambda logs: logs.sum(-1)) is not None
    monkeypatch.setattr("tsmc_widgets.targets.automata.STATE_LIMIT", 20)
    assert combine(parts, lambda logs: logs.sum(-1)) is None
