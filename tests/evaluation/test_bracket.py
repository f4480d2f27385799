"""Brackets hold the exact log Z at every budget, and close on it in the end."""

import math
import random
from dataclasses import replace
from decimal import Decimal, localcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planting import planted
from scipy.special import logsumexp
from smc.toys import TablePhi, chain, eos_target, table_target

import tsmc_widgets as tw
from tsmc_widgets.errors import PotentialError
from tsmc_widgets.evaluation import BracketSearch, LogZ, bracket_log_z
from tsmc_widgets.evaluation import bracket as bracket_module
from tsmc_widgets.evaluation.bracket import BITS, CLOSED_BITS, log_of_units, phi_bounds, units
from tsmc_widgets.smc.exact import EnumeratedOracle
from tsmc_widgets.targets import Potential


def bounded_table(vocab, steps, *, seed, zeros=0.0):
    """A random table with the bound that a search needs."""
    target = table_target(vocab, steps, seed=seed, zeros=zeros)
    table = target.potential.log_table
    phi = TablePhi(table)
    phi.log_phi_max = max(-30.0, float(table.max()))
    return tw.Target(target.lm, phi, prompt="", num_steps=steps)


def all_brackets(target, **how):
    """Brackets from the first to the last, each checked against the one before."""
    search = BracketSearch(target, **how)
    log_z = tw.exact(target).log_z
    before = search.bracket
    assert before.contains(log_z)
    for bracket in search:
        assert bracket.contains(log_z), (bracket, log_z)
        assert bracket.lower >= before.lower - 1e-9
        assert bracket.upper <= before.upper + 1e-9
        assert bracket.undecided <= before.undecided + 1e-12
        assert bracket.tokens_spent > before.tokens_spent
        before = bracket
    assert before.done
    return before, log_z


@settings(max_examples=60, deadline=None)
@given(
    vocab=st.integers(2, 4),
    steps=st.integers(1, 4),
    seed=st.integers(0, 10_000),
    zeros=st.sampled_from([0.0, 0.5, 0.9]),
    batch_size=st.integers(1, 5),
    fanout=st.integers(1, 5),
)
def test_random_tables(vocab, steps, seed, zeros, batch_size, fanout):
    target = bounded_table(vocab, steps, seed=seed, zeros=zeros)
    last, log_z = all_brackets(target, batch_size=batch_size, fanout=fanout)
    if log_z > -math.inf:
        assert last.width < 1e-10
        assert last.texts == vocab**steps
        assert last.undecided == 0
    else:
        assert last.upper == -math.inf


POTENTIALS = {
    "contains": tw.ContainsToken("b"),
    "avoids": tw.AvoidsToken("b"),
    "counts": tw.CountToken("a", at_least=2),
    "product": tw.ContainsToken("b") * tw.AvoidsToken("c"),
    "half by table": tw.ContainsToken("b")
    * tw.TokenFunction(lambda rows: -0.3 * rows.sum(1), log_phi_max=0.0),
    "power": tw.TokenFunction(lambda rows: -0.3 * rows.sum(1), log_phi_max=0.0) ** 2,
    "constant": tw.Constant(-3.0),
    "regular": tw.MatchesRegex("ab|ca"),
}


@pytest.fixture(params=[None, "c"])
def eos(request):
    return request.param


@pytest.fixture(params=POTENTIALS)
def target(request, eos):
    ends = "absorb" if eos else "ignore"
    return tw.Target(chain(eos=eos), POTENTIALS[request.param], prompt="a", num_steps=4, eos=ends)


@pytest.mark.parametrize("fanout", [1, 8])
def test_potentials_that_know_more(target, fanout):
    last, _ = all_brackets(target, batch_size=2, fanout=fanout)
    assert last.width < 1e-10


def test_what_a_prefix_decides_needs_no_more_reading():
    """Of 4**12 texts, those that have b early are summed up by what they begin with."""
    lm = tw.TabularLM.markov([0.1, 0.7, 0.1, 0.1], [[0.1, 0.7, 0.1, 0.1]] * 4, symbols="abcd")
    target = tw.Target(lm, tw.ContainsToken("b"), prompt="", num_steps=12)
    search = BracketSearch(target)
    bracket = search.run(20_000)
    assert bracket.contains(tw.exact(target).log_z)
    assert bracket.width < 1e-3
    assert bracket.prefixes_read < 4**8


class Sure(Potential):
    """Counts a's, and knows from a prefix what may come."""

    def log_phi(self, tokens):
        return 0.7 * (tokens == 0).sum(1).double()

    def log_phi_bounds(self, prefixes):
        sure = 0.7 * (prefixes == 0).sum(1).double()
        return sure, sure + 0.7 * (4 - prefixes.shape[1])


def test_a_potential_may_bound_itself():
    target = tw.Target(chain(), Sure(), prompt="a", num_steps=4)
    last, _ = all_brackets(target, batch_size=3, fanout=2)
    assert last.width < 1e-10
    assert last.texts == 0


def test_bounds_of_prefixes_hold_for_every_ending(target, eos):
    oracle = EnumeratedOracle(target)
    bounds = phi_bounds(target)
    for t in range(1, 5):
        live = (oracle.tokens[:, : t - 1] != (target.eos_token_id if eos else -1)).all(1)
        rows, log_phi = oracle.tokens[live], oracle.log_phi[live]
        low, high = bounds(rows[:, : t - 1])
        chosen = rows[:, t - 1 : t]
        assert bool((low.gather(1, chosen).squeeze(1) <= log_phi + 1e-12).all())
        assert bool((log_phi <= high.gather(1, chosen).squeeze(1) + 1e-12).all())


@pytest.mark.parametrize("max_tokens", [0, 1, 7, 50, 10**6])
def test_the_budget_is_kept(max_tokens):
    target = eos_target(potential=tw.ContainsToken("b"))
    bracket = bracket_log_z(target, max_tokens=max_tokens, batch_size=4)
    assert bracket.tokens_spent <= max_tokens
    assert bracket.contains(tw.exact(target).log_z)
    assert bracket.done or max_tokens <= 7


def test_nothing_is_lost_on_interrupt(monkeypatch):
    """Cut short while reading, and at every push of a commit: the end is the same."""
    target = bounded_table(3, 4, seed=5)
    straight = BracketSearch(target, batch_size=3, fanout=2).run(10**6)
    search = BracketSearch(target, batch_size=3, fanout=2)
    prefill, push = type(target.lm).prefill, bracket_module.heapq.heappush
    dice = random.Random(0)

    def sometimes(function, chance):
        def call(*args):
            if dice.random() < chance:
                raise KeyboardInterrupt
            return function(*args)

        return call

    monkeypatch.setattr(type(target.lm), "prefill", sometimes(prefill, 0.3))
    monkeypatch.setattr(bracket_module.heapq, "heappush", sometimes(push, 0.1))
    interrupts = 0
    for _ in range(10_000):
        try:
            last = search.run(10**6)
            break
        except KeyboardInterrupt:
            interrupts += 1
    monkeypatch.undo()
    assert interrupts > 20
    assert (last.lower, last.upper) == (straight.lower, straight.upper)
    assert last.tokens_spent == straight.tokens_spent


def test_an_error_carries_the_bracket():
    target = bounded_table(3, 4, seed=5)

    def stop(bracket):
        if bracket.prefixes_read > 4:
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError) as caught:
        bracket_log_z(target, batch_size=2, on_step=stop)
    assert caught.value.bracket.prefixes_read > 4


def test_bounds_that_are_none_are_refused():
    table = table_target(2, 3, seed=1)
    with pytest.raises(PotentialError, match="give log_phi_max"):
        BracketSearch(table)
    table.potential.log_phi_max = -5.0
    with pytest.raises(PotentialError, match="raise log_phi_max"):
        bracket_log_z(table)
    lm = tw.TabularLM.random(2, 4, seed=0)
    with pytest.raises(ValueError, match="waits for an observation"):
        BracketSearch(tw.Target(lm, tw.Infilling(num_tokens=1), prompt="", num_steps=3))


def test_it_is_a_log_z_for_divergences():
    target = bounded_table(3, 3, seed=1)
    known = LogZ.of(bracket_log_z(target, max_tokens=12))
    assert known.slack > 0
    low, high = known.interval()
    assert low <= tw.exact(target).log_z <= high
    with pytest.raises(ValueError, match="is open"):
        LogZ.of(bracket_log_z(target, max_tokens=0))


@given(st.lists(st.floats(-740, 0), min_size=1, max_size=20))
def test_sums_are_exact(logs):
    parts = [units(value) for value in logs]
    assert sum(parts) - sum(parts[1:]) == parts[0]
    assert log_of_units(sum(parts)) == pytest.approx(logsumexp(logs), abs=1e-9)
    assert units(0.0) == 1 << BITS
    assert (units(-5000.0), units(-5000.0, up=True), units(-math.inf, up=True)) == (0, 1, 0)


@given(st.lists(st.floats(-80_000, 0), min_size=1, max_size=20))
def test_closed_sums_have_no_floor(logs):
    total = sum(units(value, bits=CLOSED_BITS) for value in logs)
    assert log_of_units(total, CLOSED_BITS) == pytest.approx(logsumexp(logs), rel=1e-14, abs=1e-14)


@pytest.mark.parametrize("below", [-100.0, -750.0, -5000.0])
def test_phi_far_below_its_bound(below):
    target = bounded_table(3, 3, seed=2, zeros=0.3)
    target.potential.log_table += below
    target.potential.log_phi_max = 0.0
    last, _ = all_brackets(target, batch_size=2, fanout=2)
    assert last.width < 1e-13 * (1000 + abs(below))


def test_phi_below_the_smallest_unit_leaves_an_open_bracket():
    target = bounded_table(3, 2, seed=2)
    target.potential.log_table -= 1e5
    target.potential.log_phi_max = 0.0
    bracket = bracket_log_z(target)
    assert bracket.lower == -math.inf
    assert tw.exact(target).log_z < bracket.upper < -9e4


def test_a_high_power_of_a_class():
    class Unlikely:
        labels = ("no", "yes")

        def logits(self, texts):
            return torch.tensor([[8.1 + 0.1 * text.count("a"), 0.0] for text in texts])

    phi = tw.ClassProbability(Unlikely(), label=1) ** 100
    target = tw.Target(chain(), phi, prompt="a", num_steps=3)
    last, log_z = all_brackets(target, batch_size=4, fanout=2)
    assert log_z < -800
    assert last.width < 1e-9


def test_the_ends_allow_for_the_rounding_of_sums():
    """The exact mean of phi, from its float64 logs by rational arithmetic, lies between them."""
    for seed in range(40):
        target = bounded_table(3, 2, seed=seed)
        target.potential.log_table -= 600
        bracket = bracket_log_z(target)
        rows = target.log_sigma_tilde(EnumeratedOracle(target).tokens).tolist()
        with localcontext(prec=60):
            log_z = sum(Decimal(row).exp() for row in rows).ln()
            assert Decimal(bracket.lower) <= log_z <= Decimal(bracket.upper)


UNTOUCHED = ("ends[:] = True", "ends[:] = True")
BUGS = {
    "what was split off stays in the rest": ("self.log_mass[rows, tokens] = -math.inf", "pass"),
    "certain endings summed again": (
        "seen & (self.low == self.high)",
        "seen & (self.low > self.high)",
    ),
    "the rest forgotten": ("if mass > -math.inf:", "if False:"),
    "bounded by the mass squared": (
        "self.log_mass + self.high, self.log_mass)",
        "self.log_mass * 2, self.log_mass)",
    ),
    "a text goes on after its end": ("ends = target.ending.next(self.prefixes).cpu()", "pass"),
    "texts counted at their bound": (
        "self.low = torch.where(where, values, self.low)",
        "self.low = torch.where(where, self.high, self.low)",
    ),
}


@pytest.mark.parametrize("bug", [None, *BUGS])
def test_planted_bugs_are_caught(monkeypatch, bug):
    copy = planted(bracket_module, *BUGS.get(bug, UNTOUCHED))
    copy.Node = bracket_module.Node
    monkeypatch.setattr(bracket_module, "Expansion", copy.Expansion)
    weigh = tw.TokenFunction(lambda rows: -0.3 * rows.sum(1), log_phi_max=0.0)
    four = tw.TabularLM.markov([0.25] * 4, [[0.4, 0.3, 0.2, 0.1]] * 4, symbols="abcd")
    targets = [
        bounded_table(3, 3, seed=2),
        tw.Target(chain(eos="c"), weigh, prompt="a", num_steps=4, eos="absorb"),
        tw.Target(four, tw.ContainsToken("b"), prompt="", num_steps=4),
    ]
    assert all(is_sound(target) for target in targets) == (bug is None)


def is_sound(target):
    """Whether all brackets hold log Z, and what is undecided never grows."""
    search = BracketSearch(target, batch_size=2, fanout=1)
    log_z, before = tw.exact(target).log_z, search.bracket
    for _ in range(300):
        if before.done:
            return before.width < 1e-9
        try:
            bracket = search.step()
        except ValueError:  # A negative mass has no logarithm.
            return False
        if not bracket.contains(log_z) or bracket.undecided > before.undecided + 1e-12:
            return False
        before = bracket
    return True


@pytest.fixture(scope="module")
def storybook():
    return tw.load_language_model("storybook")


def test_the_model_that_ships(storybook):
    """Two tokens of 653 are 426,409 texts: enumerable, in float32, in other batches."""
    worth = torch.linspace(-2, 0, storybook.vocab_size, dtype=torch.float64)
    phi = tw.TokenFunction(lambda rows: worth[rows].sum(1), log_phi_max=0.0)
    target = tw.Target(storybook, phi, prompt="Once upon a time there was a", num_steps=2)
    log_z = tw.exact(target).log_z
    search = BracketSearch(target)
    widths = []
    for max_tokens in (8, 300, 2000, 8000):
        bracket = search.run(max_tokens)
        assert bracket.contains(log_z)
        widths.append(bracket.width)
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < 0.01


def test_rounding_stays_within_the_margin(storybook):
    """Log p0 of the same texts alone, in a batch and in a larger one."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(storybook.vocab_size, (64, 12), generator=generator)
    whole = storybook.prefill(tokens).log_probs.double().log_softmax(1)
    parts = torch.cat([storybook.prefill(row.unsqueeze(0)).log_probs for row in tokens])
    gap = (whole - parts.double().log_softmax(1)).abs()
    assert float(gap.max()) < bracket_module.ROUNDING * torch.finfo(torch.float32).eps


def test_contradictions_are_told():
    target = bounded_table(3, 3, seed=1)
    bracket = bracket_log_z(target)
    bounds = tw.log_z_bounds(
        target, num_particles=8, num_runs=200, exact_samples=tw.exact(target).sample(200, 1)
    )
    assert bracket.contradiction(bounds) == ""
    below = replace(bracket, lower=bracket.lower - 2, upper=bracket.upper - 2)
    above = replace(bracket, lower=bracket.lower + 2, upper=bracket.upper + 2)
    assert "lower bound" in below.contradiction(bounds)
    assert "upper bound" in above.contradiction(bounds)
