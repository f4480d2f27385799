import pytest
import torch
from targets.toys import every, letters, words

from tsmc_widgets.targets import Target, TextFunction, TextPotential, TokenFunction
from tsmc_widgets.targets.text import TextCache


def test_a_text_is_evaluated_once():
    seen = []

    def score(text):
        seen.append(text)
        return -float(len(text))

    target = Target(letters(), TextFunction(score), prompt="a", num_steps=2)
    tokens = torch.tensor([[0, 1], [1, 1], [0, 1], [2, 2]])
    first = target.log_phi(tokens)
    assert sorted(seen) == ["aab", "abb", "acc"]
    assert torch.equal(target.log_phi(tokens.flip(0)), first.flip(0))
    target.log_phi(torch.tensor([[0, 0], [2, 2]]))
    assert sorted(seen) == ["aaa", "aab", "abb", "acc"]


def test_different_tokens_of_one_text_share_its_value():
    from tsmc_widgets.models.tabular import TabularLM

    lm = TabularLM.markov([0.4, 0.3, 0.3], [[0.4, 0.3, 0.3]] * 3, symbols=["a", "aa", "b"])
    seen = []
    phi = TextFunction(lambda text: float(len(seen.append(text) or text)))
    target = Target(lm, phi, prompt="", num_steps=2)
    assert target.log_phi(torch.tensor([[0, 1], [1, 0]])).tolist() == [3.0, 3.0]
    assert seen == ["aaa"]


def test_batched_function_sees_distinct_texts_in_one_call():
    calls = []

    def score(texts):
        calls.append(list(texts))
        return [float(len(text)) for text in texts]

    target = Target(letters(), TextFunction(score, takes="texts"), prompt="", num_steps=2)
    target.log_phi(torch.cat([every(3, 2)] * 2))
    assert len(calls) == 1
    assert len(calls[0]) == 9


def test_cache_lets_the_oldest_go():
    cache = TextCache(3)
    computed = []

    def compute(texts):
        computed.append(texts)
        return [text.upper() for text in texts]

    assert cache.look_up(["a", "b", "a"], compute) == ["A", "B", "A"]
    assert cache.look_up(["c", "d"], compute) == ["C", "D"]
    assert len(cache) == 3
    assert cache.look_up(["b", "a"], compute) == ["B", "A"]
    assert computed == [["a", "b"], ["c", "d"], ["a"]]
    assert cache.look_up(list("vwxyz"), compute) == list("VWXYZ")
    assert len(cache) == 3


@pytest.mark.parametrize("stop", [KeyboardInterrupt, MemoryError])
def test_an_interrupt_leaves_the_cache_as_it_was(stop):
    calls = []

    def score(text):
        calls.append(text)
        if len(calls) == 3:
            raise stop
        return 0.0

    target = Target(letters(), TextFunction(score), prompt="", num_steps=2)
    target.log_phi(torch.tensor([[0, 0]]))
    with pytest.raises(KeyboardInterrupt if stop is KeyboardInterrupt else ValueError):
        target.log_phi(every(3, 2))
    assert len(target.potential._cache) == 1
    assert target.log_phi(every(3, 2)).tolist() == [0.0] * 9


def test_scopes():
    texts = {}
    for scope in ("full", "continuation"):
        seen = texts[scope] = []
        phi = TextFunction(lambda text, seen=seen: float(len(seen.append(text) or "")), scope=scope)
        Target(words(), phi, prompt="art", num_steps=2).log_phi(torch.tensor([[0, 2]]))
    assert texts == {"full": ["art cat art"], "continuation": [" cat art"]}


def test_token_functions():
    tokens = every(3, 2)
    batch = TokenFunction(lambda rows: -rows.sum(1).float())
    row = TokenFunction(lambda ids: -sum(ids), takes="row")
    wanted = -tokens.sum(1).double()
    for phi in (batch, row):
        assert torch.equal(Target(letters(), phi, prompt="", num_steps=2).log_phi(tokens), wanted)


def test_a_text_potential_of_ones_own():
    class Short(TextPotential):
        def __init__(self):
            super().__init__(scope="continuation")

        def log_phi_of_texts(self, texts):
            return [-float(len(text)) for text in texts]

    target = Target(words(), Short() ** 2, prompt="", num_steps=1)
    assert target.log_phi(every(3, 1)).tolist() == [-6.0, -8.0, -6.0]


def test_descriptions_and_errors():
    def score(text):
        return 0.0

    assert TextFunction(score).describe() == "exp(score(text))"
    assert TokenFunction(lambda rows: rows).describe() == "exp(f(tokens))"
    assert TextFunction(score, name="mood").describe() == "exp(mood(text))"
    assert TextFunction(score) == TextFunction(score)
    with pytest.raises(ValueError, match="log_phi_max must be a finite number"):
        TextFunction(score, log_phi_max=float("inf"))
