import math

import numpy as np
import pytest
import torch
from scipy.stats import binom, chisquare, nbinom
from targets.toys import Stars, Tone, every, letters

from tsmc_widgets.errors import BudgetError, PotentialError
from tsmc_widgets.models import load_language_model
from tsmc_widgets.models.tabular import TabularLM
from tsmc_widgets.targets import (
    ClassConditional,
    ClassProbability,
    ContainsToken,
    Context,
    ExactSamples,
    Infilling,
    JointSamples,
    Length,
    Mixture,
    Potential,
    RewardThreshold,
    Target,
    TemperedReward,
    TextFunction,
    joint_samples,
    rejection_samples,
)
from tsmc_widgets.targets.exact_samples import _Search

T = 3
N = 4000


def p_value(samples, cells, probabilities):
    """Chi-square of counts of rows against their probabilities; an impossible row gives 0."""
    match = (samples.unsqueeze(1) == cells).all(-1)
    assert match.any(1).all()
    counts = match.sum(0).double()
    possible = probabilities > 0
    if counts[~possible].any():
        return 0.0
    expected = probabilities[possible] / probabilities.sum() * len(samples)
    large = expected >= 5
    observed, wanted = counts[possible][large], expected[large]
    if not large.all():
        observed = torch.cat([observed, counts[possible][~large].sum().reshape(1)])
        wanted = torch.cat([wanted, expected[~large].sum().reshape(1)])
    return chisquare(observed.numpy(), wanted.numpy()).pvalue


@pytest.mark.parametrize(
    ("lm", "eos"),
    [
        (letters("c"), "ignore"),
        (letters("c"), "absorb"),
        (TabularLM.random(3, 5, seed=1), "ignore"),
    ],
    ids=["chain", "chain with EOS", "tables"],
)
def test_base_samples_follow_p0(lm, eos):
    target = Target(lm, TextFunction(len), prompt="a", num_steps=T, eos=eos)
    generator = torch.Generator().manual_seed(0)
    samples = target.context.draw(N, generator)
    assert p_value(samples, every(3, T), target.log_p(every(3, T)).exp()) > 1e-6


def test_base_samples_in_small_pieces(monkeypatch):
    monkeypatch.setattr("tsmc_widgets.targets.context.PIECE", 100)
    target = Target(letters(), TextFunction(len), prompt="", num_steps=T)
    generator = torch.Generator().manual_seed(0)
    samples = target.context.draw(N, generator)
    assert p_value(samples, every(3, T), target.log_p(every(3, T)).exp()) > 1e-6


def test_kv_caches_of_base_samples_are_bounded(monkeypatch):
    lm = load_language_model("storybook")
    prompt = torch.tensor(lm.encode("I bought this"))
    row = lm.prefill(prompt.unsqueeze(0)).carry.most_bytes(1, len(prompt) + 5)
    monkeypatch.setattr("tsmc_widgets.targets.context.CACHED", 8 * row)
    read, advance = [], lm.advance
    monkeypatch.setattr(lm, "advance", lambda t, carry: read.append(len(t)) or advance(t, carry))

    def drawn(n, generator):
        return Context(lm, prompt, 6).draw(n, generator)

    together = drawn(20, torch.Generator().manual_seed(0))
    assert read == [8] * 10 + [4] * 5
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(together, torch.cat([drawn(n, generator) for n in (8, 8, 4)]))


TARGETS = {
    "contains": (ContainsToken("c"), "ignore"),
    "class^3.5": (ClassProbability(Stars(), label=2) ** 3.5, "ignore"),
    "threshold": (RewardThreshold(Tone(), at_most=-0.5), "ignore"),
    "tempered": (TemperedReward(Tone(), beta=0.5, reward_max=5.0), "ignore"),
    "product": (ContainsToken("a") * ClassProbability(Tone(), label=1), "absorb"),
    "mixture": (Mixture([ContainsToken("a"), ContainsToken("bb")], [0.3, 4]), "ignore"),
    "length": (Length(at_least=1, at_most=2), "absorb"),
    "function": (TextFunction(lambda t: -0.5 * t.count("a"), log_phi_max=0), "absorb"),
}


@pytest.mark.parametrize("name", TARGETS)
def test_rejection_samples_follow_sigma(name):
    phi, eos = TARGETS[name]
    lm = letters("c" if eos == "absorb" else None)
    target = Target(lm, phi, prompt="a", num_steps=T, eos=eos)
    samples = target.exact_samples(N, seed=7, progress=False)
    assert isinstance(samples, ExactSamples)
    assert samples.tokens.shape == (N, T)
    cells = every(3, T)
    sigma = target.log_sigma_tilde(cells)
    assert p_value(samples.tokens, cells, sigma.exp()) > 1e-6
    torch.testing.assert_close(samples.log_phi, target.log_phi(samples.tokens))
    log_z = sigma.logsumexp(0).item()
    if samples.log_z_standard_error > 0:
        assert abs(samples.log_z - log_z) / samples.log_z_standard_error < 4.5
    rate = math.exp(log_z - target.potential.log_phi_max)
    if samples.acceptance_rate < 1:
        z = (samples.acceptance_rate - rate) / samples.acceptance_rate_standard_error
        assert abs(z) < 4.5


def test_a_wrong_generator_would_be_caught():
    target = Target(letters(), TARGETS["tempered"][0], prompt="a", num_steps=T)
    generator = torch.Generator().manual_seed(0)
    p0 = target.context.draw(N, generator)
    assert p_value(p0, every(3, T), target.log_sigma_tilde(every(3, T)).exp()) < 1e-6


@pytest.mark.parametrize("c", [1, 2])
@pytest.mark.parametrize("eos", ["ignore", "absorb"])
def test_joint_draws_of_an_infilling_are_exact_for_their_suffix(c, eos):
    target = Target(letters("c"), Infilling(num_tokens=c), prompt="a", num_steps=2, eos=eos)
    samples = target.exact_samples(3 * N, seed=3)
    assert isinstance(samples, JointSamples)
    assert samples.observed.shape == (3 * N, c)
    tried = 0
    for o in every(3, c):
        mine = samples.tokens[(samples.observed == o).all(1)]
        fixed = target.condition(o).log_sigma_tilde(every(3, 2)).exp()
        if len(mine) > 100:
            assert p_value(mine, every(3, 2), fixed) > 1e-6
            tried += 1
    assert tried >= 2


def test_joint_draws_of_a_class_are_exact_for_their_class():
    target = Target(letters(), ClassConditional(Stars()), prompt="a", num_steps=2)
    samples = target.exact_samples(3 * N, seed=3)
    for index in range(3):
        mine = samples.tokens[samples.observed[:, 0] == index]
        fixed = target.condition(torch.tensor([index])).log_sigma_tilde(every(3, 2)).exp()
        assert p_value(mine, every(3, 2), fixed) > 1e-6
        z = (len(mine) / (3 * N) - fixed.sum()) / (fixed.sum() * (1 - fixed.sum()) / (3 * N)).sqrt()
        assert abs(z) < 4.5


def test_same_seed_same_samples_with_or_without_a_bar(capsys):
    target = Target(letters(), ContainsToken("cc"), prompt="a", num_steps=T)
    quiet = target.exact_samples(300, seed=1, progress=False)
    assert capsys.readouterr().err == ""
    shown = target.exact_samples(300, seed=1, progress=True)
    assert "exact samples" in capsys.readouterr().err
    assert torch.equal(quiet.tokens, shown.tokens)
    assert (quiet.proposed, quiet.log_z) == (shown.proposed, shown.log_z)
    assert not torch.equal(quiet.tokens, target.exact_samples(300, seed=2, progress=False).tokens)
    joint = Target(letters(), Infilling(num_tokens=1), prompt="a", num_steps=T)
    assert torch.equal(
        joint_samples(joint, 9, seed=1).tokens, joint_samples(joint, 9, seed=1).tokens
    )


def test_the_budget_ends_honestly():
    target = Target(letters(), ContainsToken("aaa"), prompt="", num_steps=T)
    with pytest.raises(BudgetError) as e:
        target.exact_samples(1000, seed=0, budget=2000, progress=False)
    found = e.value.samples
    assert 0 < len(found.tokens) < 1000
    assert found.proposed == 2000
    assert (found.tokens == 0).all()
    message = str(e.value)
    assert f"budget of 2,000 draws ended with {len(found.tokens)} of 1000" in message
    assert "95 % interval" in message
    assert "draws are needed" in message


def test_a_budget_without_a_single_hit():
    target = Target(letters(), ContainsToken("aaaa"), prompt="", num_steps=T)
    with pytest.raises(
        BudgetError, match=r"0 of 5 .*interval 0 to 0\.036\).*more than 1\d\d draws"
    ):
        target.exact_samples(5, seed=0, budget=100, progress=False)


def test_enough_samples_at_the_last_draw_are_no_error():
    target = Target(letters(), ContainsToken("a") ** 0, prompt="", num_steps=T)
    samples = target.exact_samples(64, seed=0, budget=64, progress=False)
    assert samples.proposed == samples.accepted == 64
    assert samples.log_z == 0
    assert samples.log_z_standard_error == 0


def test_an_interrupt_keeps_what_was_found():
    calls = []

    def stop_later(texts):
        calls.append(len(texts))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return [-1.0] * len(texts)

    lm = TabularLM.random(3, 8, seed=0)
    phi = TextFunction(stop_later, takes="texts", log_phi_max=0)
    target = Target(lm, phi, prompt="", num_steps=8)
    with pytest.raises(KeyboardInterrupt) as e:
        target.exact_samples(3000, seed=0, progress=False)
    assert len(e.value.samples.tokens) > 100
    assert e.value.samples.accepted == len(e.value.samples.tokens)


def test_where_no_exact_samples_exist():
    unbounded = Target(letters(), TextFunction(len), prompt="", num_steps=T)
    with pytest.raises(PotentialError, match=r"upper bound.*none is known.*give log_phi_max"):
        unbounded.exact_samples(5, seed=0)
    lying = Target(letters(), TextFunction(len, log_phi_max=2), prompt="", num_steps=T)
    with pytest.raises(PotentialError, match=r"log_phi_max = 2, and log phi = 3 for the text"):
        lying.exact_samples(5, seed=0)
    both = Target(letters(), Infilling(num_tokens=1) * ContainsToken("a"), prompt="", num_steps=T)
    with pytest.raises(PotentialError, match="condition on one observation and use rejection"):
        both.exact_samples(5, seed=0)
    assert both.condition("b").exact_samples(5, seed=0, progress=False).tokens.shape == (5, T)
    with pytest.raises(PotentialError, match="waits for an observation"):
        rejection_samples(both, 5, seed=0)
    with pytest.raises(PotentialError, match="p\\(o \\| s\\) itself"):
        joint_samples(unbounded, 5, seed=0)
    with pytest.raises(ValueError, match="n must be an integer of at least 1"):
        unbounded.exact_samples(0, seed=0)


RUNS = 200


def many_runs(n, beta=0.3, **options):
    """Estimates of many seeds and the standard errors they come with, and what is estimated."""
    phi = TemperedReward(Tone(), beta=beta, reward_max=5.0)
    target = Target(letters(), phi, prompt="a", num_steps=T)
    found = []
    for seed in range(RUNS):
        try:
            found.append(target.exact_samples(n, seed=seed, progress=False, **options))
        except BudgetError as error:
            found.append(error.samples)
    log_z = target.log_sigma_tilde(every(3, T)).logsumexp(0).item()
    return found, log_z, math.exp(log_z - phi.log_phi_max)


def columns(found, *names):
    return (torch.tensor([getattr(run, name) for run in found]).double() for name in names)


@pytest.mark.parametrize("beta", [0.05, 0.3], ids=["most are accepted", "few are accepted"])
@pytest.mark.parametrize("ending", ["n found", "budget"])
def test_standard_errors_are_the_spread_over_seeds(ending, beta):
    n, options = (200, {}) if ending == "n found" else (601, {"budget": 600})
    found, log_z, rate = many_runs(n, beta, **options)
    assert (rate > 0.6) == (beta < 0.1)
    for name, truth in [("log_z", log_z), ("acceptance_rate", rate)]:
        value, error = columns(found, name, f"{name}_standard_error")
        assert 0.8 < error.mean() / value.std() < 1.25
        # The stopping rule's bias is a small part of a standard error.
        assert abs(((value - truth) / error).mean()) < 4.5 / math.sqrt(RUNS)


def bias_of_stopping(n, rate):
    """Relative bias of the acceptance rate and bias of log Z where phi is 0 or 1, by exact sums."""
    target = Target(letters(), ContainsToken("a"), prompt="a", num_steps=T)
    search, bias, log_bias = _Search(target, 0.0, torch.Generator()), 0.0, 0.0
    live = {(0, 0): 1.0}
    while live:
        after = {}
        for (accepted, proposed), chance in live.items():
            search.accepted, search.proposed = accepted, proposed
            size = search.batch_size(n)
            more = np.arange(size + 1)
            mass, done = chance * binom.pmf(more, size, rate), more >= n - accepted
            ratio = (accepted + more[done]) / (proposed + size) / rate
            bias += float(mass[done] @ (ratio - 1))
            log_bias += float(mass[done] @ np.log(ratio))
            for found, part in zip(more[~done].tolist(), mass[~done].tolist(), strict=True):
                if part > 1e-10:
                    key = (accepted + found, proposed + size)
                    after[key] = after.get(key, 0.0) + part
        live = after
    return bias, log_bias


@pytest.mark.parametrize("n", [2, 5, 20])
def test_without_batches_the_bias_of_stopping_is_as_large_as_it_says(n):
    """Draws until the n-th success are negative binomial; the smaller the rate, the more bias."""
    most = 0.5 / n + 1 / (12 * n**2)
    rate = 1e-3
    draws = np.arange(n, int(60 * n / rate))
    mass = nbinom.pmf(draws - n, n, rate)
    assert 0.98 / (n - 1) < mass @ (n / draws) / rate - 1 < 1 / (n - 1)
    assert 0.99 < mass @ np.log(n / draws / rate) / most < 1.001


@pytest.mark.parametrize("n", [2, 8, 20, 40])
def test_the_bias_of_stopping_is_as_small_as_it_says(n):
    for rate in (0.1, 0.3, n / 64, 0.7, 0.9):
        bias, log_bias = bias_of_stopping(n, rate)
        assert -1e-6 < bias < 1 / (n - 1)
        assert abs(log_bias) < 0.64 / n


def test_a_full_first_batch_has_the_largest_bias():
    assert bias_of_stopping(40, 40 / 64)[1] > 0.63 / 40


def test_the_sums_are_those_of_real_searches():
    n = 8
    found, log_z, rate = many_runs(n)
    value, rates = columns(found, "log_z", "acceptance_rate")
    excess, error = rates.mean() / rate - 1, rates.std() / rate / math.sqrt(RUNS)
    assert abs(excess - bias_of_stopping(n, rate)[0]) < 4.5 * error
    bias, error = value.mean() - log_z, value.std() / math.sqrt(RUNS)
    assert abs(bias) < 0.64 / n + 4.5 * error


def test_a_search_that_the_budget_ends_is_unbiased():
    found, log_z, rate = many_runs(17, budget=16)
    value, rates = columns(found, "log_z", "acceptance_rate")
    for got, truth in [(rates, rate), (value.exp(), math.exp(log_z))]:
        assert abs(got.mean() - truth) / (got.std() / math.sqrt(RUNS)) < 4.5


def test_joint_draws_keep_to_the_budget(monkeypatch):
    monkeypatch.setattr("tsmc_widgets.targets.exact_samples.LARGEST_BATCH", 64)
    target = Target(letters(), Infilling(num_tokens=2), prompt="a", num_steps=T)
    whole = target.exact_samples(150, seed=1, budget=150, progress=False)
    assert (whole.tokens.shape, whole.observed.shape) == ((150, T), (150, 2))
    for few in (1, 64, 100):
        with pytest.raises(BudgetError, match=rf"150 exact samples .* the budget is {few}") as e:
            target.exact_samples(150, seed=1, budget=few, progress=False)
        assert len(e.value.samples.tokens) == len(e.value.samples.observed) == few
        start = few // 64 * 64
        assert torch.equal(e.value.samples.tokens[:start], whole.tokens[:start])


def test_joint_draws_show_a_bar_if_asked(capsys):
    target = Target(letters(), ClassConditional(Stars()), prompt="a", num_steps=T)
    quiet = target.exact_samples(9, seed=1, progress=False)
    assert capsys.readouterr().err == ""
    shown = target.exact_samples(9, seed=1)
    assert "exact samples" in capsys.readouterr().err
    assert torch.equal(quiet.tokens, shown.tokens)
    assert torch.equal(quiet.observed, shown.observed)


@pytest.mark.parametrize("calls", [0, 2])
def test_an_interrupt_keeps_joint_draws(monkeypatch, calls):
    monkeypatch.setattr("tsmc_widgets.targets.exact_samples.LARGEST_BATCH", 64)
    left = [None] * calls

    class Interrupted(Infilling):
        def draw_joint(self, n, generator):
            if not left:
                raise KeyboardInterrupt
            left.pop()
            return super().draw_joint(n, generator)

    target = Target(letters(), Interrupted(num_tokens=2), prompt="a", num_steps=T)
    with pytest.raises(KeyboardInterrupt) as e:
        target.exact_samples(1000, seed=0, progress=False)
    assert e.value.samples.tokens.shape == (64 * calls, T)
    assert len(e.value.samples.observed) == 64 * calls


@pytest.mark.parametrize("bound", [math.inf, -math.inf, math.nan, "0", len])
@pytest.mark.parametrize("base", [object, Potential])
def test_a_bound_that_is_none_is_refused_before_anything_is_drawn(bound, base):
    class Mine(base):
        log_phi_max = bound

        def log_phi(self, tokens):
            raise AssertionError("never asked")

    with pytest.raises(PotentialError, match="log_phi_max of Mine must be a finite number in nats"):
        Target(letters(), Mine(), prompt="a", num_steps=T).exact_samples(5, seed=0)
    if base is object:
        with pytest.raises(PotentialError, match="log_phi_max of Mine must be"):
            Target(letters(), ContainsToken("a") * Mine(), prompt="a", num_steps=T)


@pytest.mark.parametrize("phi", [ContainsToken("a"), Infilling(num_tokens=1)], ids=["one", "joint"])
def test_seeds_that_are_refused(phi):
    target = Target(letters(), phi, prompt="a", num_steps=T)
    draw = joint_samples if phi.is_conditional else rejection_samples
    for wrong in (-5, 2**63, 2**70):
        with pytest.raises(ValueError, match=f"seed must be an integer .*got {wrong}"):
            target.exact_samples(5, seed=wrong, progress=False)
        with pytest.raises(ValueError, match=f"seed must be an integer .*got {wrong}"):
            draw(target, 5, seed=wrong, progress=False)
    largest = target.exact_samples(5, seed=2**63 - 1, progress=False)
    assert largest.tokens.shape == (5, T)
    same = [target.exact_samples(5, seed=seed, progress=False) for seed in (7, np.int64(7))]
    assert torch.equal(same[0].tokens, same[1].tokens)
