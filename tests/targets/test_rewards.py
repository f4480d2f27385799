import math

import pytest
import torch
from targets.toys import Stars, Tone, every, letters

from tsmc_widgets.errors import PotentialError
from tsmc_widgets.targets import RewardThreshold, Target, TemperedReward

TOKENS = every(3, 3)


def target(phi):
    return Target(letters(), phi, prompt="b", num_steps=3)


def count_a(text):
    return text.count("a")


def counts(texts):
    return [text.count("a") for text in texts]


@pytest.mark.parametrize(
    ("bounds", "holds", "line"),
    [
        ({"at_most": 1}, lambda n: n <= 1, "count_a(text) ≤ 1"),
        ({"at_least": 2}, lambda n: n >= 2, "count_a(text) ≥ 2"),
        ({"at_least": 1, "at_most": 2}, lambda n: 1 <= n <= 2, "1 ≤ count_a(text) ≤ 2"),
    ],
)
def test_threshold_on_a_function(bounds, holds, line):
    t = target(RewardThreshold(count_a, **bounds))
    wanted = [holds(count_a(text)) for text in t.full_texts(TOKENS)]
    assert (t.log_phi(TOKENS) == 0).tolist() == wanted
    assert t.potential.describe() == line
    assert t.potential.log_phi_max == 0
    batched = target(RewardThreshold(counts, takes="texts", **bounds))
    assert torch.equal(batched.log_phi(TOKENS), t.log_phi(TOKENS))


def test_threshold_and_tempered_on_a_classifier():
    t = target(RewardThreshold(Tone(), at_most=-0.5))
    rewards = Tone().logits(t.full_texts(TOKENS)).double()[:, 0]
    assert torch.equal(t.log_phi(TOKENS) == 0, rewards <= -0.5)
    tempered = target(TemperedReward(Tone(), beta=2, reward_max=4.0))
    torch.testing.assert_close(tempered.log_phi(TOKENS), 2 * rewards)
    assert tempered.potential.log_phi_max == 8.0
    assert tempered.potential.describe() == "exp(2 Tone(text))"
    assert target(TemperedReward(Tone(), beta=1)).potential.log_phi_max is None


def test_infinite_rewards_compare_but_do_not_temper():
    def reward(text):
        return math.inf if "c" in text else 0.0

    assert target(RewardThreshold(reward, at_most=1)).log_phi(TOKENS).isinf().any()
    with pytest.raises(PotentialError, match="inf"):
        target(TemperedReward(reward, beta=1)).log_phi(TOKENS)


@pytest.mark.parametrize("bound", [0.1, 0.7, 1 / 3])
@pytest.mark.parametrize("side", ["at_most", "at_least"])
def test_a_reward_on_the_bound_is_within_it(bound, side):
    for options in [
        {"reward": lambda text: bound},
        {"reward": lambda texts: [bound] * len(texts), "takes": "texts"},
    ]:
        t = target(RewardThreshold(**options, **{side: bound}))
        assert abs(t.log_sigma_tilde(TOKENS).logsumexp(0)) < 1e-12


def test_nan_does_not_slip_through_a_threshold():
    def reward(text):
        return math.nan if text == "bcab" else 0.0

    with pytest.raises(PotentialError, match="NaN at step 3 on the text 'bcab'"):
        target(RewardThreshold(reward, at_most=1)).log_phi(TOKENS)


def test_errors():
    with pytest.raises(ValueError, match="got neither"):
        RewardThreshold(count_a)
    with pytest.raises(ValueError, match="at_least must not exceed at_most"):
        RewardThreshold(count_a, at_least=2, at_most=1)
    with pytest.raises(ValueError, match=r"at_most must be a number in .*; got nan"):
        RewardThreshold(count_a, at_most=math.nan)
    for beta in (0, -1, math.nan):
        with pytest.raises(ValueError, match=r"beta must be a number .*negated reward"):
            TemperedReward(count_a, beta=beta)
    with pytest.raises(ValueError, match="1 star, 2 stars, 3 stars: use ClassProbability"):
        RewardThreshold(Stars(), at_most=0)
    with pytest.raises(PotentialError, match=r"must have shape \(27,\), got \(2,\)"):
        target(RewardThreshold(lambda texts: [0.0, 1.0], takes="texts", at_most=1)).log_phi(TOKENS)


def test_equality():
    assert RewardThreshold(count_a, at_most=1) == RewardThreshold(count_a, at_most=1)
    assert RewardThreshold(count_a, at_most=1) != RewardThreshold(count_a, at_most=2)
    tone = Tone()
    assert TemperedReward(tone, beta=1) == TemperedReward(tone, beta=1)
