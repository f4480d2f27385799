"""Language models given by their tables."""

import re

import pytest
import torch

from tsmc_widgets.errors import ContextLengthError, UnknownTokenError
from tsmc_widgets.models.tabular import TabularLM
from tsmc_widgets.testing import check_language_model

INITIAL = [0.5, 0.3, 0.2]
TRANSITION = [[0.1, 0.2, 0.7], [0.3, 0.3, 0.4], [0.0, 0.25, 0.75]]
TABLES = [
    torch.tensor([0.25, 0.75]),
    torch.tensor([[0.5, 0.5], [0.0, 1.0]]),
    torch.tensor([[[0.1, 0.9], [0.2, 0.8]], [[0.3, 0.7], [0.4, 0.6]]]),
]
HALF = torch.tensor([0.5, 0.5])


def chain(**options):
    return TabularLM.markov(INITIAL, TRANSITION, **options)


@pytest.mark.parametrize(
    "lm",
    [chain(), chain(symbols=["x", "yy", "<end>"], eos="<end>"), TabularLM.random(2, 7, seed=1)],
    ids=["chain", "eos", "random"],
)
@pytest.mark.parametrize("prompt_length", [0, 2])
def test_contract(lm, prompt_length):
    for seed in range(3):
        check_language_model(lm, prompt_length=prompt_length, num_steps=4, seed=seed, tolerance=0.0)


def test_a_chain_answers_with_the_row_of_the_last_token():
    lm = chain()
    tokens = torch.tensor([[0, 1, 2, 2]])
    found = lm.log_prob(tokens, 0)[0].exp()
    expected = torch.tensor([0.5, 0.2, 0.4, 0.75], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-15)
    assert lm.is_markov
    assert lm.context_length is None
    torch.testing.assert_close(lm.initial, torch.tensor(INITIAL).double(), rtol=0, atol=1e-7)
    torch.testing.assert_close(lm.transition, torch.tensor(TRANSITION).double(), rtol=0, atol=1e-7)


def test_tables_answer_with_the_entry_of_the_whole_prefix():
    lm = TabularLM.from_tables(TABLES)
    tokens = torch.tensor([[0, 1, 1], [1, 0, 0], [1, 1, 0]])
    expected = torch.tensor([[0.25, 0.5, 0.8], [0.75, 0.0, 0.3], [0.75, 1.0, 0.4]])
    torch.testing.assert_close(lm.log_prob(tokens, 0).exp(), expected.double(), rtol=0, atol=1e-7)
    assert (lm.context_length, lm.is_markov, lm.initial, lm.transition) == (3, False, None, None)


def test_a_chain_written_as_tables_is_the_same_model():
    first, rows = torch.tensor(INITIAL), torch.tensor(TRANSITION)
    written = TabularLM.from_tables([first, rows, rows.expand(3, 3, 3), rows.expand(3, 3, 3, 3)])
    tokens = torch.cartesian_prod(*[torch.arange(3)] * 4)
    chained = TabularLM.markov(first, rows)
    assert torch.equal(written.log_prob(tokens, 0), chained.log_prob(tokens, 0))


def test_random_tables_follow_seed_and_concentration():
    tokens = torch.cartesian_prod(*[torch.arange(3)] * 3)
    once = TabularLM.random(3, 3, seed=0).log_prob(tokens, 0)
    assert torch.equal(TabularLM.random(3, 3, seed=0).log_prob(tokens, 0), once)
    assert not torch.equal(TabularLM.random(3, 3, seed=1).log_prob(tokens, 0), once)
    even = TabularLM.random(3, 3, seed=0, concentration=1e6).log_prob(tokens, 0).exp()
    assert bool(((even - 1 / 3).abs() < 0.01).all())


def test_random_tables_are_dirichlet():
    """Each of V coordinates of a flat Dirichlet has mean 1 / V and variance (V-1) / V²(V+1)."""
    table = TabularLM.random(4, 6, seed=0)
    probabilities = table.log_prob(torch.cartesian_prod(*[torch.arange(4)] * 6), 5).exp()[::4, 0]
    z = (probabilities.mean() - 1 / 4) / (3 / 80 / len(probabilities)) ** 0.5
    assert abs(float(z)) < 4.5


def test_everything_is_float64():
    lm = TabularLM.markov(torch.tensor([0.1, 0.9]), torch.tensor([[0.5, 0.5], [0.2, 0.8]]))
    step = lm.prefill(torch.tensor([[0]]))
    assert step.log_probs.dtype == torch.float64
    assert float(step.log_probs.exp().sum()) == 1
    assert step.hidden is None


def test_letters_stand_for_tokens_unless_symbols_are_given():
    assert chain().symbols == ["a", "b", "c"]
    many = TabularLM.random(30, 1, seed=0).symbols
    assert (many[0], many[25], many[26], len(set(many))) == ("aa", "az", "ba", 30)
    assert TabularLM.random(26, 1, seed=0).symbols[-1] == "z"


def test_texts_without_separator():
    lm = chain(symbols=["a", "ab", "c"])
    assert lm.encode("abca") == [1, 2, 0]
    assert lm.encode("") == []
    assert lm.decode(torch.tensor([[1, 2, 0], [0, 0, 0]])) == ["abca", "aaa"]


def test_texts_with_a_separator():
    lm = chain(symbols=["the", "fox", "."], separator=" ")
    assert lm.encode("the fox  .") == [0, 1, 2]
    assert lm.decode(torch.tensor([[0, 1, 2]])) == ["the fox ."]


def test_the_end_of_a_text_is_not_shown():
    lm = chain(symbols=["x", "y", "<end>"], separator=" ", eos="<end>")
    assert lm.eos_token_id == 2
    assert lm.decode(torch.tensor([[0, 1, 2, 2]])) == ["x y"]
    assert lm.token_text(2) == "<end>"
    assert chain().eos_token_id is None


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: chain().encode("abz"), "'z' at position 2 of 'abz' .*is not a symbol .* a, b, c"),
        (lambda: chain(separator=" ").encode("a b z"), "'z' .*is not a symbol of this.* a, b, c"),
        (lambda: chain().token_id("zz"), "'zz' is not a symbol"),
        (lambda: chain(eos="."), r"'\.' is not a symbol"),
    ],
)
def test_unknown_tokens_are_named(ask, message):
    with pytest.raises(UnknownTokenError, match=message):
        ask()


def test_reading_past_the_tables_is_refused():
    lm = TabularLM.from_tables(TABLES)
    step = lm.prefill(torch.tensor([[0, 1]]))
    with pytest.raises(ContextLengthError, match="tables for 3 tokens and 3 have been read"):
        lm.advance(torch.tensor([0]), step.carry)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: TabularLM.markov([0.5, 0.5], torch.eye(3).tolist()),
            "transition must have shape (2, 2) to go with initial; got (3, 3)",
        ),
        (
            lambda: TabularLM.markov(torch.tensor([0.5, 0.6]), torch.eye(2)),
            "initial must hold probabilities that sum to 1 over the last axis; got 0.5, 0.6, which "
            "sum to 1.1.",
        ),
        (
            lambda: TabularLM.markov(HALF, torch.tensor([[1.5, -0.5], [0.5, 0.5]])),
            "transition must hold probabilities that sum to 1 over the last axis; got 1.5, -0.5,",
        ),
        (
            lambda: TabularLM.from_tables([HALF, torch.tensor([[0.5, 0.5], [torch.nan, 1.0]])]),
            "tables[1] must hold probabilities that sum to 1 over the last axis; got nan, 1,",
        ),
        (
            lambda: TabularLM.from_tables([]),
            "at least one table, that of the first token; got",
        ),
        (lambda: TabularLM.from_tables([HALF, HALF]), "tables[1] must have 2 axes; got shape (2,)"),
        (
            lambda: TabularLM.from_tables([HALF, torch.eye(3)]),
            "tables[1] must have 2 axes of size 2; got (3, 3)",
        ),
        (
            lambda: TabularLM.markov(HALF, torch.eye(2), symbols=["a"]),
            "symbols must be 2 different, non-empty texts, one a token; got ['a']",
        ),
        (
            lambda: TabularLM.markov(HALF, torch.eye(2), symbols=["a", "a"]),
            "non-empty texts, one a token; got ['a', 'a']",
        ),
        (
            lambda: TabularLM.markov(HALF, torch.eye(2), symbols=["a", ""]),
            "non-empty texts, one a token; got ['a', '']",
        ),
    ],
)
def test_wrong_tables_are_refused(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


@pytest.mark.parametrize("lm", [chain(), TabularLM.random(3, 7, seed=1)], ids=["chain", "random"])
def test_no_rows_have_no_answers(lm):
    none = torch.empty(0, 4, dtype=torch.int64)
    step = lm.prefill(none)
    for empty in (step, lm.advance(none[:, 0], step.carry.select(none[:, 0]))):
        assert empty.log_probs.shape == (0, 3)
    assert lm.log_prob(none, 1).shape == (0, 3)
    assert lm.teacher_force(none, 1).log_probs.shape == (0, 3, 3)
