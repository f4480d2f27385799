import math
import re
import sys
import threading
import time

import interegular
import pytest
import torch
from targets.toys import every, letters, words

import tsmc_widgets as tw
from tsmc_widgets.errors import BudgetError, PotentialError
from tsmc_widgets.models.tabular import TabularLM
from tsmc_widgets.targets import (
    AvoidsToken,
    AvoidsWord,
    Constant,
    ContainsToken,
    ContainsWord,
    CountToken,
    MatchesRegex,
    Target,
)
from tsmc_widgets.targets.words import contradiction


def holds(phi, texts):
    return (phi.log_phi_of_texts(texts) == 0).tolist()


def test_whole_words_whatever_the_case():
    phi = ContainsWord("art")
    assert holds(phi, ["art", "Art!", "a part", "arts", "the (ART)", "", "art_"]) == [
        True, True, False, False, True, False, False,
    ]  # fmt: skip
    assert holds(AvoidsWord("art"), ["art", "part"]) == [False, True]
    assert holds(ContainsWord("Art", case="match"), ["art", "Art"]) == [False, True]


def test_phrases_and_several_words():
    phi = ContainsWord("broken heart", "gone")
    assert holds(phi, ["a broken  heart.", "broken\nheart", "broken", "heart broken", "gone"]) == [
        True, True, False, False, True,
    ]  # fmt: skip


def test_words_are_no_patterns():
    assert holds(ContainsWord("$5.0 (new)"), ["for $5.0 (new)", "for $500 new"]) == [True, False]
    assert holds(ContainsWord("<script>alert(1)</script>"), ["<script>alert(1)</script>"]) == [True]


@pytest.mark.parametrize("pattern", ["cat", "^ cat", "cat$", "(?i)CAT|art$", r"\bart\b", "C.t"])
@pytest.mark.parametrize("scope", ["continuation", "full"])
def test_regex_is_search(pattern, scope):
    target = Target(words(), MatchesRegex(pattern, scope=scope), prompt="art", num_steps=3)
    tokens = every(3, 3)
    texts = target.texts(tokens) if scope == "continuation" else target.full_texts(tokens)
    wanted = [re.search(pattern, text) is not None for text in texts]
    assert (target.log_phi(tokens) == 0).tolist() == wanted


def test_where_a_text_begins():
    tokens = every(3, 2)
    cat = tokens[:, 0] == 0

    def found(pattern, prompt, scope="continuation"):
        target = Target(words(), MatchesRegex(pattern, scope=scope), prompt=prompt, num_steps=2)
        values = target.log_phi(tokens)
        assert torch.equal(target.potential.automaton().log_phi(tokens), values)
        return values == 0

    assert not found("^cat", "art").any()
    assert torch.equal(found("^cat", ""), cat)
    for prompt in ("", "art"):
        assert torch.equal(found(r"^\s*cat", prompt), cat)
    assert found("^art", "art", "full").all()
    assert r"write ``^\s*phone``" in MatchesRegex.__doc__


def test_markup_in_symbols_is_text_like_any_other():
    lm = TabularLM.markov([0.5, 0.5], [[0.5, 0.5]] * 2, symbols=["<script>", "x"])
    target = Target(lm, MatchesRegex("x<script>"), prompt="", num_steps=2)
    assert target.log_phi(every(2, 2)).tolist() == [-torch.inf, -torch.inf, 0.0, -torch.inf]
    assert torch.equal(
        target.potential.automaton().log_phi(every(2, 2)), target.log_phi(every(2, 2))
    )


def test_descriptions_and_equality():
    assert ContainsWord("cat", "art").describe() == 'contains "cat" or "art"'
    assert AvoidsWord("cat").describe() == 'avoids "cat"'
    assert MatchesRegex("a|b").describe() == "matches /a|b/"
    assert AvoidsWord("cat") == AvoidsWord("cat")
    assert AvoidsWord("cat") != AvoidsWord("cat", scope="full")
    assert repr(AvoidsWord("cat")) == '<AvoidsWord: avoids "cat">'


def test_errors():
    with pytest.raises(ValueError, match="one or more words"):
        ContainsWord()
    with pytest.raises(ValueError, match="one or more words"):
        ContainsWord("cat", " ")
    with pytest.raises(ValueError, match=r"'\(a': missing \)"):
        MatchesRegex("(a")
    with pytest.raises(ValueError, match="put it in a Target"):
        ContainsWord("cat").log_phi(every(3, 2))
    assert letters() is not None


def test_a_pattern_that_takes_for_ever_is_told_and_holds_no_lock(monkeypatch):
    monkeypatch.setattr("tsmc_widgets.targets.words.MATCH_SECONDS", 0.5)
    ticks, done = [], threading.Event()

    def tick():
        while not done.wait(0.01):
            ticks.append(1)

    thread = threading.Thread(target=tick)
    thread.start()
    with pytest.raises(
        PotentialError, match=r"matches /\^\(a\|aa\)\+\$/ took over 0.5 s on the text"
    ):
        MatchesRegex("^(a|aa)+$").log_phi_of_texts(["a" * 60 + "!"])
    done.set()
    thread.join()
    assert len(ticks) > 10


def test_counts_that_memory_cannot_hold_are_refused():
    with pytest.raises(ValueError, match="repeats a piece 1000000000000 times, and 100000 are"):
        MatchesRegex("(((a{1000}){1000}){1000}){1000,}")


def test_a_natural_pattern_on_a_story():
    story = "Once upon a time there was a girl named Lily who loved to play outside with her dog!"
    assert holds(MatchesRegex("^([a-zA-Z]+ ?)+$"), [story, story[:-1]]) == [False, True]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("pattern", ["a[ab]{40}$", "a{100000}", "((a|b){1,3000}){1,3000}"])
def test_an_automaton_of_too_many_states_is_not_built(pattern):
    lm = TabularLM.markov([0.5, 0.5], [[0.5, 0.5]] * 2, symbols=["a", "b"], separator="")
    target = Target(lm, MatchesRegex(pattern), prompt="", num_steps=30)
    assert target.potential.automaton() is None
    with pytest.raises(BudgetError, match="has no automaton, or one of more states than fit"):
        tw.exact(target)
    few = Target(lm, MatchesRegex("a[ab]{3}$"), prompt="", num_steps=30)
    assert tw.exact(few).log_z == pytest.approx(-math.log(2))


@pytest.mark.parametrize("kind", [ContainsToken, ContainsWord])
def test_a_product_of_two_to_the_n_states_is_refused_at_once(kind):
    size = 20
    lm = TabularLM.markov(
        [1 / size] * size, [[1 / size] * size] * size,
        symbols=[f"w{i}" for i in range(size)], separator=" ",
    )  # fmt: skip
    phi = math.prod([kind(f"w{i}") for i in range(16)], start=Constant())
    target = Target(lm, phi, prompt="", num_steps=40)
    begun = time.process_time()
    assert target.potential.automaton() is None
    assert time.process_time() - begun < 2


def test_an_automaton_whose_tables_do_not_fit_is_not_used(monkeypatch):
    lm = TabularLM.markov([0.5, 0.5], [[0.5, 0.5]] * 2)
    target = Target(lm, ContainsToken("a"), prompt="", num_steps=30)
    assert tw.exact(target).log_z == pytest.approx(math.log1p(-(0.5**30)))
    # The package's name for the module is that of its function.
    monkeypatch.setattr(sys.modules["tsmc_widgets.smc.exact"], "CHAIN_CELLS", 2 * 2 * 30 - 1)
    with pytest.raises(BudgetError, match="states than fit"):
        tw.exact(target)


def test_counts_beyond_the_steps_take_no_state():
    for at_least in (3, 10**12):
        phi = CountToken("a", at_least=at_least) ** 2 * CountToken("b", at_most=10**12)
        target = Target(letters(), phi, prompt="", num_steps=3)
        assert len(target.potential.automaton().transition) < 100
        assert torch.equal(
            target.potential.automaton().log_phi(every(3, 3)), target.log_phi(every(3, 3))
        )


def test_other_users_of_the_library_have_no_budget(monkeypatch):
    monkeypatch.setattr("tsmc_widgets.targets.words.STEP_LIMIT", 10)
    lm = TabularLM.markov([0.5, 0.5], [[0.5, 0.5]] * 2, symbols=["a", "b"], separator="")
    assert Target(lm, MatchesRegex("abab"), prompt="", num_steps=3).potential.automaton() is None
    assert interegular.parse_pattern("abab").to_fsm().accepts("abab")


@pytest.mark.parametrize(
    ("potential", "contradict"),
    [
        (ContainsWord("broken") * AvoidsWord("Broken", "x"), True),
        (AvoidsWord("lamp") * ContainsWord("broken lamp") ** 2, True),
        (ContainsWord("a", "broken") * AvoidsWord("broken"), False),
        (ContainsWord("a", "broken") * AvoidsWord("broken", "a"), True),
        (ContainsWord("broken", case="match") * AvoidsWord("Broken", case="match"), False),
        (ContainsWord("broken", scope="full") * AvoidsWord("broken"), False),
        (MatchesRegex("^a") * MatchesRegex("^b"), True),
        (AvoidsWord("a") * AvoidsWord("b"), False),
    ],
)
def test_factors_that_no_text_satisfies_are_found_from_their_automata(potential, contradict):
    assert bool(contradiction(potential)) == contradict


def test_three_factors_that_only_together_contradict_are_named_and_no_fourth():
    phi = MatchesRegex("z") * AvoidsWord("a") * ContainsWord("a", "b") * AvoidsWord("b")
    assert contradiction(phi) == ['avoids "a"', 'contains "a" or "b"', 'avoids "b"']
    assert contradiction(phi * ContainsWord("b")) == ['avoids "b"', 'contains "b"']


def test_contradicting_tokens_are_found_too():
    lm = TabularLM.markov([0.5, 0.5], [[0.5, 0.5], [0.5, 0.5]], symbols=["a", "b"])
    for avoided, contradict in [("a", True), ("b", False)]:
        phi = ContainsToken("a") * AvoidsToken(avoided)
        found = contradiction(Target(lm, phi, prompt="a", num_steps=2).potential)
        assert bool(found) == contradict
