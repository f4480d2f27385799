"""Prefixes with exact or rolled-out log psi*, and twists compared with it."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from smc.toys import chain, eos_target, table_target

import tsmc_widgets as tw
from tsmc_widgets.evaluation import compare_log_psi
from tsmc_widgets.evaluation.twist_quality import (
    STATISTICS,
    all_prefixes,
    bootstrap,
    log_psi_path,
    pick_prefixes,
    roll_out,
)
from tsmc_widgets.figures import psi_scatter
from tsmc_widgets.twists import TableTwist


class Shifted:
    """Slope times the optimal log psi, plus a number for each t."""

    def __init__(self, oracle, slope):
        self.optimal, self.slope = oracle.optimal_twist(), slope

    def log_psi(self, tokens, prompt_length, base):
        log_psi = self.optimal.log_psi(tokens, prompt_length)
        return self.slope * log_psi + torch.arange(log_psi.shape[1])


def rolled(target, samples, rollouts, seed=0):
    prefixes = pick_prefixes(target, samples, seed=seed, rollouts=rollouts)
    for place in range(prefixes.size):
        roll_out(target, prefixes, place, seed=seed, rollouts=rollouts)
    return prefixes


def test_all_prefixes_have_their_exact_psi(target):
    oracle, prefixes = all_prefixes(target)
    assert prefixes.size == 3 + 9 + 27
    comparison = prefixes.compare(target, Shifted(oracle, 1.0))
    assert comparison["correlation"] == pytest.approx(1.0, abs=1e-12)
    assert comparison["interval"] == (comparison["correlation"],) * 2
    for t in range(1, 4):
        assert comparison["optimal"][comparison["step"] == t].mean() == pytest.approx(0, abs=1e-12)


def test_prefixes_that_have_ended_are_left_out():
    target = eos_target()
    _, prefixes = all_prefixes(target)
    assert prefixes.size == 2 + 4 + 8
    assert not any("c" in text for text in prefixes.texts(target))


def test_no_prefix_goes_on_after_its_end():
    target = eos_target()
    samples = tw.exact(target).sample(20, 0)
    drawn = [pick_prefixes(target, samples, seed=seed).tokens[:9] for seed in range(10)]
    tokens = torch.cat(drawn)
    ended = target.over(tokens)[:, :-1]
    assert bool(ended.any())
    assert (tokens[:, 1:][ended] == target.ending.fill).all()


@pytest.mark.parametrize("make", [lambda: table_target(3, 4, seed=11), eos_target])
def test_rollouts_agree_with_the_exact_psi(make):
    target = make()
    oracle = tw.exact(target)
    prefixes = rolled(target, oracle.sample(20, 0), rollouts=2000)
    tokens = target.after_prompt(prefixes.tokens)
    exact = oracle.optimal_twist().log_psi(tokens, len(target.prompt_tokens))
    exact = exact[prefixes.row, prefixes.step - 1]
    sure = prefixes.error > 0
    assert torch.allclose(prefixes.log_psi[~sure], exact[~sure], atol=1e-9)
    z = (prefixes.log_psi - exact)[sure] / prefixes.error[sure]
    assert float(z.abs().max()) < 4.5
    assert float((z**2).mean()) < 2.5


def test_a_prefix_without_a_hit_is_left_out():
    """Its psi* is unknown, and no value that one could put in its place moves with phi."""
    rare = tw.Target(chain(), tw.MatchesRegex(".*cc"), prompt="a", num_steps=4)
    oracle, twist = tw.exact(rare), TableTwist.random(3, 4, seed=5, prompt_length=1)
    prefixes = rolled(rare, oracle.sample(20, 0), rollouts=8)
    unknown = torch.isneginf(prefixes.log_psi)
    assert 0 < int(unknown.sum()) < prefixes.size
    assert torch.equal(prefixes.error.isnan(), unknown)
    found = compare_log_psi(rare, twist, prefixes)
    assert f"ψ* counts as 0 at {int(unknown.sum())} where no rollout has φ > 0" in found.note
    assert found.frame["error"].isna().sum() == found.one_zero == int(unknown.sum())
    assert found.worst()["error"].notna().all()
    points = psi_scatter(found.frame).data[1]
    assert len(points.x) == int((~unknown).sum()) == len(prefixes.compare(rare, twist)["optimal"])


def test_rollouts_that_agree_are_not_certain():
    """One sequence in forty is of phi = 0, and eight rollouts seldom see it."""
    target = tw.Target(chain(), tw.AvoidsToken("c"), prompt="a", num_steps=2)
    prefixes = rolled(target, tw.exact(target).sample(12, 0), rollouts=8)
    whole = prefixes.step == 2
    agreed = ~whole & (prefixes.log_psi == 0)
    assert bool(agreed.any())
    assert (prefixes.error[agreed] == 1 / 8).all()
    assert (prefixes.error[whole] == 0).all()
    with pytest.raises(ValueError, match="rollouts must be an integer of at least 2"):
        roll_out(target, prefixes, 0, seed=0, rollouts=1)


def test_statistics_are_those_of_the_books(target):
    oracle, prefixes = all_prefixes(target)
    found = compare_log_psi(target, TableTwist.random(3, 4, seed=5), prefixes)
    frame = found.frame
    line = stats.linregress(frame["optimal"], frame["learned"])
    assert found.slope == pytest.approx(line.slope, abs=1e-10)
    assert found.correlation == pytest.approx(line.rvalue, abs=1e-10)
    spearman = stats.spearmanr(frame["optimal"], frame["learned"]).statistic
    assert found.rank_correlation == pytest.approx(spearman, abs=1e-10)
    assert found.rmse == pytest.approx(np.sqrt((frame["error"] ** 2).mean()), abs=1e-12)
    assert found.intervals["slope"] == (found.slope, found.slope)
    assert found.reliability == 1.0
    half = compare_log_psi(target, Shifted(oracle, 0.5), prefixes)
    assert (half.slope, half.rank_correlation) == (pytest.approx(0.5), pytest.approx(1.0))
    right = compare_log_psi(target, oracle.optimal_twist(), prefixes)
    assert right.rmse < 1e-12


class Patched:
    """A twist with another value of log psi at all prefixes that end with one token."""

    def __init__(self, twist, token, value):
        self.twist, self.token, self.value = twist, token, value

    def log_psi(self, tokens, prompt_length):
        here = tokens[:, prompt_length:] == self.token
        return torch.where(here, self.value, self.twist.log_psi(tokens, prompt_length))


def test_zeros_of_both_agree_and_zeros_of_one_are_counted():
    target = table_target(3, 4, seed=11, zeros=0.8)
    oracle, prefixes = all_prefixes(target)
    zero = torch.isneginf(prefixes.log_psi)
    last = prefixes.tokens[prefixes.row, prefixes.step - 1]
    assert 0 < int(zero.sum()) < prefixes.size
    assert f"{int(zero.sum())} of them with ψ* = 0" in prefixes.note
    right = compare_log_psi(target, oracle.optimal_twist(), prefixes)
    assert right.rmse == 0
    assert right.correlation == pytest.approx(1, abs=1e-12)
    assert (right.rank_correlation, right.slope) == (pytest.approx(1), pytest.approx(1))
    assert (right.both_zero, right.one_zero) == (int(zero.sum()), 0)
    assert (right.frame["error"] == 0).all()
    drawn = prefixes.compare(target, oracle.optimal_twist())
    assert drawn["correlation"] == pytest.approx(1, abs=1e-12)
    assert len(drawn["optimal"]) == len(drawn["step"]) == len(drawn["error"]) == int((~zero).sum())

    lost = compare_log_psi(target, Patched(oracle.optimal_twist(), 0, -math.inf), prefixes)
    assert (lost.both_zero, lost.one_zero) == (int(zero.sum()), int((~zero & (last == 0)).sum()))
    assert lost.rmse == pytest.approx(0, abs=1e-12)
    assert lost.worst(lost.one_zero)["error"].eq(-math.inf).all()
    assert f"{lost.both_zero} where both are 0, {lost.one_zero} where one is" in lost.note
    blind = compare_log_psi(target, TableTwist.random(3, 4, seed=5), prefixes)
    assert (blind.both_zero, blind.one_zero) == (0, int(zero.sum()))
    assert 0 < blind.rmse < math.inf
    none = table_target(3, 4, seed=11, zeros=1.0)
    empty = compare_log_psi(none, TableTwist.random(3, 4, seed=5), all_prefixes(none)[1])
    assert (empty.both_zero, empty.one_zero) == (0, prefixes.size)
    assert math.isnan(empty.rmse)


def test_bootstrap_intervals_hold_what_all_prefixes_say(target):
    """Prefixes drawn at random from all: 95 % intervals hold the statistic of all of them."""
    _, everything = all_prefixes(target)
    twist = TableTwist.random(3, 4, seed=5)
    truth = compare_log_psi(target, twist, everything)
    frame, held, repeats = truth.frame, 0, 80
    generator = np.random.default_rng(0)
    for seed in range(repeats):
        rows = frame.iloc[generator.integers(len(frame), size=60)]
        both = rows["learned"].to_numpy(), rows["optimal"].to_numpy()
        low, high = bootstrap(STATISTICS, *both, seed)["rmse"]
        held += low <= truth.rmse <= high
    assert 0.86 <= held / repeats <= 1.0


def test_the_worst_prefixes_come_first(target):
    _, prefixes = all_prefixes(target)
    found = compare_log_psi(target, TableTwist.random(3, 4, seed=5), prefixes)
    worst = found.worst(5)
    assert worst["error"].abs().is_monotonic_decreasing
    assert abs(worst["error"].iloc[0]) == found.frame["error"].abs().max()
    assert list(worst.columns) == ["t", "text", "learned", "optimal", "optimal_error", "error"]
    assert worst["text"].str.len().tolist() == worst["t"].tolist()
    assert list(found.summary()["statistic"]) == [
        "slope",
        "correlation",
        "rank_correlation",
        "rmse",
    ]


def test_rolled_out_prefixes_say_how_blurred_they_are(target):
    samples = tw.exact(target).sample(20, 0)
    twist = TableTwist.random(3, 4, seed=5)
    few, many = (
        compare_log_psi(target, twist, rolled(target, samples, rollouts)) for rollouts in (4, 400)
    )
    assert 0 <= few.reliability < many.reliability < 1
    low, high = many.intervals["rmse"]
    assert low < many.rmse < high
    with pytest.raises(ValueError, match="call roll_out"):
        compare_log_psi(target, twist, pick_prefixes(target, samples, seed=0))


def test_the_path_has_phi_where_a_text_ends():
    target = eos_target()
    oracle = tw.exact(target)
    twist = TableTwist.random(3, 4, seed=5, prompt_length=2)
    path = log_psi_path(target, twist, oracle.tokens)
    assert torch.equal(path[:, -1], oracle.log_phi)
    ended = oracle.tokens[:, 0] == target.eos_token_id
    assert torch.equal(path[ended, 0], oracle.log_phi[ended])
    plain = twist.log_psi(target.after_prompt(oracle.tokens), 2)
    assert torch.equal(path[~ended, 0], plain[~ended, 0])
