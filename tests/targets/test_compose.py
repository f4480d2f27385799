import math

import numpy as np
import pytest
import torch
from targets.toys import Stars, every, letters

from tsmc_widgets.errors import PotentialError
from tsmc_widgets.targets import (
    AvoidsToken,
    AvoidsWord,
    ClassProbability,
    Constant,
    ContainsToken,
    CountToken,
    MatchesRegex,
    Mixture,
    Potential,
    Power,
    Product,
    Target,
    TextFunction,
    TextPotential,
    as_potential,
)

TOKENS = every(3, 4)


def log_phi(phi):
    return Target(letters(), phi, prompt="", num_steps=4).log_phi(TOKENS)


def soft(scale, **options):
    return TextFunction(lambda text: scale * text.count("a"), **options)


class Plain:
    """A user's own class: one method, nothing else."""

    def log_phi(self, tokens):
        return -0.5 * tokens.sum(1)


def test_product_adds_logs():
    a, b = soft(-0.7), ContainsToken("c")
    torch.testing.assert_close(log_phi(a * b), log_phi(a) + log_phi(b), rtol=0, atol=1e-12)
    assert torch.equal(log_phi(a * b), log_phi(b * a))


@pytest.mark.parametrize("beta", [0.5, 1, 2.0, 100])
def test_power_scales_logs(beta):
    for phi in (soft(-0.7), ContainsToken("c"), ContainsToken("c") * soft(0.3)):
        torch.testing.assert_close(log_phi(phi**beta), beta * log_phi(phi))


def test_power_of_zero_is_one_even_where_phi_is_zero():
    assert log_phi(ContainsToken("c") ** 0).tolist() == [0.0] * 81
    assert (ContainsToken("c") ** 0).describe() == "1"


def test_mixture_is_the_log_of_the_weighted_sum():
    a, b = soft(-0.7), ContainsToken("c")
    wanted = (0.25 * log_phi(a).exp() + 3 * log_phi(b).exp()).log()
    torch.testing.assert_close(log_phi(Mixture([a, b], [0.25, 3])), wanted)
    both = Mixture([ContainsToken("c"), ContainsToken("b")])
    assert log_phi(both)[0] == -math.inf


def test_bounds_go_through():
    a, b = soft(0.5, log_phi_max=2.0), ContainsToken("c")
    assert (a * b).log_phi_max == 2.0
    assert (a**3).log_phi_max == 6.0
    assert Mixture([a, b], [1, 2]).log_phi_max == pytest.approx(math.log(math.exp(2) + 2))
    unknown = soft(0.5)
    for phi in (a * unknown, unknown**2, Mixture([a, unknown])):
        assert phi.log_phi_max is None


def test_log_phi_next_is_offered_where_every_part_offers_it():
    token, text = ContainsToken("c"), soft(0.1)
    for phi in (token * AvoidsToken("b"), token**2, Mixture([token, AvoidsToken("a")], [1, 2])):
        target = Target(letters(), phi, prompt="", num_steps=4)
        table = target.log_phi_next(TOKENS[::3, :-1])
        torch.testing.assert_close(table.flatten(), target.log_phi(TOKENS))
    for phi in (token * text, text**2, Mixture([token, text])):
        assert Target(letters(), phi, prompt="", num_steps=4).log_phi_next is None


def test_descriptions():
    stars = ClassProbability(Stars(), label=3)
    assert (AvoidsWord("broken") * stars**2.0).describe() == (
        'avoids "broken" × p(3 stars | text)^2'
    )
    assert (MatchesRegex("a b") ** 0.5).describe() == "(matches /a b/)^0.5"
    assert Mixture([stars, ContainsToken("c")], [0.5, 2]).describe() == (
        '(0.5 p(3 stars | text) + 2 contains token "c")'
    )
    assert Constant(2).describe() == "exp(2)"


def test_factors_describe_themselves():
    phi = (ContainsToken("a") * soft(1.0)) ** 2 * CountToken("b", at_most=1)
    assert [factor.describe() for factor in phi.factors()] == [
        '(contains token "a")^2',
        "exp(f(text))^2",
        'at most 1 time token "b"',
    ]
    target = Target(letters(), phi, prompt="", num_steps=4)
    parts = [factor.log_phi(TOKENS) for factor in target.potential.factors()]
    torch.testing.assert_close(torch.stack(parts).sum(0), target.log_phi(TOKENS))
    assert len(ContainsToken("a").factors()) == 1


def test_structure_is_kept_flat():
    a, b, c = ContainsToken("a"), ContainsToken("b"), ContainsToken("c")
    assert a * b * c == a * (b * c) == Product((a, b, c))
    assert (a**2) ** 3 == Power(a, 6.0)
    assert (a * b) ** 2 == Product((Power(a, 2.0), Power(b, 2.0)))


def test_a_users_own_class_composes_on_either_side():
    wanted = -0.5 * TOKENS.sum(1).double()
    phi = ContainsToken("c")
    assert torch.equal(log_phi(Plain()), wanted)
    for both in (Plain() * phi, phi * Plain(), as_potential(Plain()) * phi):
        assert torch.equal(log_phi(both), wanted + log_phi(phi))
    assert (Plain() * phi).describe() == 'Plain × contains token "c"'
    assert torch.equal(log_phi(as_potential(Plain()) ** 2), 2 * wanted)
    torch.testing.assert_close(log_phi(Mixture([Plain(), Plain()], [0.5, 0.5])), wanted)


def test_a_users_own_class_may_know_more():
    class Rich(Plain):
        log_phi_max = 0.0

        def bind(self, context):
            self.steps = context.num_steps
            return self

        def describe(self):
            return "rich"

        def log_phi_next(self, tokens):
            return -0.5 * (tokens.sum(1, keepdim=True) + torch.arange(3))

    target = Target(letters(), Rich() * ContainsToken("c"), prompt="", num_steps=4)
    rich = target.potential.factors()[0]
    assert rich.describe() == "rich"
    assert target.potential.log_phi_max == 0.0
    assert rich.inner.steps == 4
    table = target.log_phi_next(TOKENS[::3, :-1])
    assert torch.equal(table.flatten(), target.log_phi(TOKENS))


@pytest.mark.parametrize("bad", [-1, math.nan, math.inf, True])
def test_powers_that_are_refused(bad):
    with pytest.raises(ValueError, match="finite number of at least 0; got"):
        ContainsToken("c") ** bad


def test_mixtures_that_are_refused():
    a = ContainsToken("a")
    with pytest.raises(ValueError, match="at least one potential"):
        Mixture([])
    with pytest.raises(ValueError, match="2 numbers, one for each"):
        Mixture([a, a], [1.0])
    for weights in ([1.0, 0.0], [1.0, -2.0], [1.0, math.nan]):
        with pytest.raises(ValueError, match=r"weights must be a number in \(0, inf\)"):
            Mixture([a, a], weights)


def test_what_is_no_potential_is_refused_with_a_hint():
    with pytest.raises(TypeError, match="TextFunction or TokenFunction"):
        as_potential(lambda tokens: tokens)
    with pytest.raises(TypeError, match=r"did you mean Plain\(...\)"):
        as_potential(Plain)
    with pytest.raises(TypeError, match="got 3"):
        as_potential(3)
    with pytest.raises(TypeError):
        ContainsToken("c") * 3
    with pytest.raises(ValueError, match=r"value must be a number in \(-inf, inf\); got inf"):
        Constant(math.inf)
    with pytest.raises(TypeError, match="depends on no observation"):
        (ContainsToken("c") * ContainsToken("b")).factors()[0].condition(1)


def test_sums_and_numbers_hint_at_a_mixture():
    a, b = ContainsToken("a"), ContainsToken("b")
    for add in (lambda: a + b, lambda: Plain() + a, lambda: a + Plain(), lambda: sum([a, b])):
        with pytest.raises(TypeError, match=r"write Mixture\(\[phi_a, phi_b\], \[1, 1\]\)"):
            add()
    for times in (lambda: 2 * a, lambda: a * 2, lambda: (a * b) * 2):
        with pytest.raises(TypeError, match=r"got 2\. .*write Mixture\(\[phi\], \[2\]\)"):
            times()
    with pytest.raises(TypeError, match="Mixture"):
        np.float64(0.5) * a
    with pytest.raises(TypeError, match="unsupported operand"):
        a + "b"


@pytest.mark.parametrize("base", [object, Potential, TextPotential])
def test_a_description_may_be_a_plain_text(base):
    class Mine(base):
        describe = "my reward"

        def log_phi(self, tokens):
            return [math.nan] * len(tokens)

    mine = Mine(scope="full") if base is TextPotential else Mine()
    target = Target(letters(), mine, prompt="", num_steps=4)
    assert target.potential.describe() == "my reward"
    assert (ContainsToken("c") * mine).describe() == 'contains token "c" × my reward'
    with pytest.raises(PotentialError, match="my reward gave log phi = nan"):
        target.log_phi(TOKENS)


@pytest.mark.parametrize("line", ["", None, 3])
def test_what_is_no_description_leaves_the_class_its_name(line):
    class Mine(Plain):
        describe = line

    assert as_potential(Mine()).describe() == "Mine"
