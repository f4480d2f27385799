"""Every method on the model that ships: KL(sigma || q) falls, and no chance could explain it."""

import pytest
import torch
from scipy import stats

import tsmc_widgets as tw
from tsmc_widgets.learning import METHODS, Samples, score
from tsmc_widgets.learning.objectives import link_for
from tsmc_widgets.targets.exact_samples import ExactDraws

HELD_OUT = 300
# Path consistency alone passes its values back one step at a time.
UPDATES = {"rl": 250}
USUAL = 40


@pytest.fixture(scope="module")
def target():
    return tw.load_problem("one-star-review").target()


@pytest.fixture(scope="module")
def draws(target):
    draws = ExactDraws(target, 11)
    while len(draws) < HELD_OUT:
        draws.extend()
    return draws


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_the_proposal_comes_closer_to_sigma(target, draws, method):
    twist = tw.MLPHeadTwist(target.lm, link=link_for(method))
    exact = Samples.exact(target, draws.tokens[:HELD_OUT])
    trainer = tw.TwistTrainer(target, twist, method=method, seed=4)
    list(trainer.updates(UPDATES.get(method, USUAL)))
    with torch.no_grad():
        scored = score(target, twist, exact)
    # KL(sigma || p0) - KL(sigma || q), of which each exact sample is an unbiased estimate.
    gain = (scored.log_q_psi - scored.log_p).sum(1)
    standard_error = float(gain.std()) / HELD_OUT**0.5
    low = float(gain.mean()) - float(stats.t.ppf(0.9995, HELD_OUT - 1)) * standard_error
    assert low > 0
