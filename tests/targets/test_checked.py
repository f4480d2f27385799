import math

import numpy as np
import pytest
import torch
from targets.toys import Stars, Tone, every, letters

from tsmc_widgets.errors import PotentialError
from tsmc_widgets.targets import (
    ClassProbability,
    ContainsToken,
    Mixture,
    Potential,
    RewardThreshold,
    Target,
    TemperedReward,
    TextFunction,
    TokenFunction,
)
from tsmc_widgets.testing import check_potential

TOKENS = every(3, 2)


def target(phi, **options):
    return Target(letters(), phi, prompt="a", num_steps=2, **options)


def at_cb(value):
    """A function of text that misbehaves on one text of nine."""
    return lambda text: value if text == "acb" else 0.0


class Returns:
    def __init__(self, value):
        self.value = value

    def log_phi(self, tokens):
        return self.value(tokens) if callable(self.value) else self.value


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda phi: phi,
        lambda phi: phi**2,
        lambda phi: ContainsToken("a") * phi,
        lambda phi: Mixture([ContainsToken("a"), phi]),
    ],
)
def test_nan_and_inf_are_refused_with_the_text(value, wrap):
    phi = TextFunction(at_cb(value), name="mood")
    with pytest.raises(PotentialError, match=rf"exp\(mood\(text\)\) gave .*{value}.*'acb'"):
        target(wrap(phi)).log_phi(TOKENS)
    tokens = TokenFunction(lambda rows: torch.where((rows == 2).all(1), value, 0.0), name="f")
    with pytest.raises(PotentialError, match=r"exp\(f\(tokens\)\).*'acc'"):
        target(wrap(tokens)).log_phi(TOKENS)
    own = Returns(lambda rows: torch.where((rows == 2).all(1), value, 0.0))
    with pytest.raises(PotentialError, match=r"Returns.*'acc'"):
        target(own).log_phi(TOKENS)


def test_minus_infinity_is_welcome():
    assert target(TextFunction(at_cb(-math.inf))).log_phi(TOKENS).isinf().sum() == 1


def test_exceptions_in_user_code_say_text_and_step():
    def score(text):
        return 1 / 0 if text == "acb" else 0.0

    with pytest.raises(
        PotentialError, match=r"ZeroDivisionError.* at step 2 on the text 'acb'"
    ) as e:
        target(TextFunction(score)).log_phi(TOKENS)
    assert isinstance(e.value.__cause__, ZeroDivisionError)
    with pytest.raises(PotentialError, match=r"score.*ZeroDivisionError.*'acb'"):
        target(RewardThreshold(score, at_most=1)).log_phi(TOKENS)
    row = TokenFunction(lambda ids: 1 / (ids != [2, 1]), takes="row")
    with pytest.raises(PotentialError, match=r"ZeroDivisionError.* at step 2 on the text 'acb'"):
        target(row).log_phi(TOKENS)


def test_exceptions_in_batched_code_say_the_first_text():
    def boom(_):
        raise RuntimeError("no weights")

    for phi in (TextFunction(boom, takes="texts"), TokenFunction(boom), Returns(boom)):
        with pytest.raises(PotentialError, match=r"no weights at step 2 .*'aaa' \(the first of 9"):
            target(phi).log_phi(TOKENS)
    with pytest.raises(PotentialError, match="no weights"):
        target(Returns(boom) * ContainsToken("a")).log_phi(TOKENS)


def test_interrupts_pass_through():
    def stop(_):
        raise KeyboardInterrupt

    for phi in (TextFunction(stop), TokenFunction(stop), Returns(stop)):
        with pytest.raises(KeyboardInterrupt):
            target(phi).log_phi(TOKENS)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (torch.zeros(3), r"shape \(9,\).*got shape \(3,\)"),
        (torch.zeros(9, 1), r"got shape \(9, 1\)"),
        (0.0, r"got shape \(\)"),
        (torch.ones(9, dtype=torch.bool), "For an indicator return 0.0"),
        (None, "got NoneType"),
        (["a"] * 9, "got list"),
    ],
)
def test_wrong_shapes_and_types_are_refused(value, says):
    with pytest.raises(PotentialError, match=says):
        target(Returns(value)).log_phi(TOKENS)
    with pytest.raises(PotentialError, match=says):
        target(ContainsToken("a") * Returns(value)).log_phi(TOKENS)


@pytest.mark.parametrize(
    "value", [torch.arange(9), torch.arange(9.0).half(), list(range(9)), torch.arange(9).numpy()]
)
def test_any_numbers_become_float64(value):
    values = target(Returns(value)).log_phi(TOKENS)
    assert values.dtype == torch.float64
    assert values.tolist() == list(range(9))


@pytest.mark.parametrize("value", [0.1, -1234.56789, 1e308, 2**24 + 1])
def test_python_numbers_keep_float64(value):
    def batch(rows):
        return [value] * len(rows)

    class Judge(Tone):
        def logits(self, texts):
            return [[value]] * len(texts)

    class Own(Potential):
        def log_phi(self, tokens):
            return batch(tokens)

        def log_phi_next(self, tokens):
            return [[value] * 3] * len(tokens)

    class Scalars(Returns):
        def log_phi_next(self, tokens):
            return np.full((len(tokens), 3), value)

    scalars = Scalars(lambda rows: np.full(len(rows), value))
    for phi in [
        TextFunction(lambda text: value),
        TextFunction(batch, takes="texts"),
        TextFunction(lambda texts: np.full(len(texts), value), takes="texts"),
        TokenFunction(lambda row: value, takes="row"),
        TokenFunction(batch),
        TemperedReward(lambda text: value, beta=1),
        TemperedReward(batch, beta=1, takes="texts"),
        TemperedReward(Judge(), beta=1),
        Returns(batch),
        Own(),
        scalars,
        scalars * ContainsToken("a") ** 0,
        Mixture([Own()]),
    ]:
        t = target(phi)
        assert t.log_phi(TOKENS).tolist() == [value] * 9, phi
        if t.log_phi_next is not None:
            assert t.log_phi_next(TOKENS[:3, :1]).tolist() == [[value] * 3] * 3, phi
    if value < 1e300:
        check_potential(Own(), letters(), prompt="a")


@pytest.mark.parametrize(
    "wrapped", [lambda v: np.array([v]), lambda v: torch.tensor([[v]]), lambda v: [v]]
)
def test_one_element_arrays_are_numbers(wrapped):
    for phi in [
        TextFunction(lambda text: wrapped(2.5)),
        TextFunction(lambda texts: [wrapped(2.5) for _ in texts], takes="texts"),
        TokenFunction(lambda row: wrapped(2.5), takes="row"),
        TemperedReward(lambda text: wrapped(2.5), beta=1),
    ]:
        assert target(phi).log_phi(TOKENS).tolist() == [2.5] * 9, phi
    two = TextFunction(lambda text: np.ones(2))
    with pytest.raises(PotentialError, match="raised TypeError"):
        target(two).log_phi(TOKENS)


def test_tensors_keep_their_own_numbers():
    single = torch.tensor([0.1] * 9)
    assert target(Returns(single)).log_phi(TOKENS).tolist() == [float(single[0])] * 9
    assert target(Returns(list(single))).log_phi(TOKENS).tolist() == [float(single[0])] * 9


@pytest.mark.parametrize("value", [[True] * 9, np.ones(9, dtype=bool), [1j] * 9])
def test_truth_values_in_lists_are_refused_too(value):
    with pytest.raises(PotentialError, match="For an indicator return"):
        target(Returns(value)).log_phi(TOKENS)


def test_no_gradient_comes_out():
    weight = torch.ones(9, requires_grad=True)
    assert not target(Returns(lambda rows: weight * 2)).log_phi(TOKENS).requires_grad


def test_distinct_rows_only_and_no_rows():
    seen = []
    phi = Returns(lambda rows: torch.zeros(len(rows) if seen.append(len(rows)) is None else 0))
    t = target(phi)
    assert t.log_phi(torch.cat([TOKENS, TOKENS])).shape == (18,)
    assert seen == [9]
    assert t.log_phi(TOKENS[:0]).shape == (0,)


def test_log_phi_next_is_checked_too():
    class Next(Returns):
        def log_phi_next(self, tokens):
            return self.table

    phi = Next(torch.zeros(9))
    t = target(phi)
    for table, says in [
        (torch.zeros(3, 2), r"shape \(3, 3\)"),
        (torch.full((3, 3), math.nan), "'aa' followed by token 0"),
    ]:
        phi.table = table
        with pytest.raises(PotentialError, match=says):
            t.log_phi_next(torch.tensor([[0], [1], [2]]))


def test_a_classifier_that_gives_nan_is_refused():
    class Broken(Stars):
        def logits(self, texts):
            return torch.tensor([[math.nan if t == "acb" else 0.0] * 3 for t in texts])

    class Wide(Tone):
        def logits(self, texts):
            return torch.zeros(len(texts), 2)

    with pytest.raises(PotentialError, match=r"Broken gave the logits .*nan.*'acb'"):
        target(ClassProbability(Broken(), label=1)).log_phi(TOKENS)
    with pytest.raises(PotentialError, match=r"shape \(9, 1\); got \(9, 2\)"):
        target(ClassProbability(Wide(), label=1)).log_phi(TOKENS)


def test_long_texts_are_cut_in_the_message():
    lm = letters()
    phi = TextFunction(lambda text: math.nan)
    with pytest.raises(PotentialError) as e:
        Target(lm, phi, prompt="a" * 5000, num_steps=1).log_phi(torch.tensor([[1]]))
    assert len(str(e.value)) < 1000
    assert " ... " in str(e.value)


class Scribbles(Potential):
    """Gives 1 where the text ends in b, and writes into what it was given."""

    def log_phi(self, tokens):
        value = (tokens[:, -1] == 1).double()
        tokens.zero_()
        return value

    def log_phi_given(self, tokens, observed):
        observed.zero_()
        return self.log_phi(tokens)

    def log_phi_next(self, tokens):
        value = tokens[:, -1:].double().expand(-1, 3)
        tokens.zero_()
        return value


def test_a_factor_that_writes_into_its_tokens_changes_no_other():
    ends = TokenFunction(lambda rows: (rows[:, -1] == 1).double())
    expected = 2 * ends.function(TOKENS)
    given, seen = TOKENS.clone(), torch.ones(len(TOKENS), 1, dtype=torch.int64)
    for phi in (Scribbles() * ends, ends * Scribbles(), Scribbles() * Scribbles()):
        assert torch.equal(target(phi).log_phi(given), expected)
        assert torch.equal(target(phi).log_phi_given(given, seen), expected)
    next_of = target(Scribbles() * Scribbles()).log_phi_next
    assert torch.equal(next_of(given[:, :1]), 2 * TOKENS[:, :1].double().expand(-1, 3))
    assert torch.equal(given, TOKENS)
    assert bool((seen == 1).all())


@pytest.mark.parametrize("dtype", [np.float64, ">f8", np.float32, object, np.longdouble, np.int64])
def test_arrays_are_numbers_of_any_kind(dtype):
    values = np.arange(9, dtype=np.float64)[::-1].astype(dtype)
    values.setflags(write=False)
    found = target(TokenFunction(lambda rows: values)).log_phi(TOKENS)
    assert found.tolist() == list(range(8, -1, -1))
    each = target(TextFunction(lambda texts: [np.array(0.5) for _ in texts], takes="texts"))
    assert bool((each.log_phi(TOKENS) == 0.5).all())


def test_code_that_ends_the_program_is_an_error_with_its_text():
    def leave(text):
        if text == "acb":
            raise SystemExit("enough")
        return 0.0

    with pytest.raises(PotentialError, match=r"raised SystemExit: enough at step 2 on .*'acb'"):
        target(TextFunction(leave)).log_phi(TOKENS)
