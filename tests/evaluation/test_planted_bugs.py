"""One wrong line in an estimator, and the tests' identities must fail."""

import math

import pytest
import torch
from evaluation.enumerated import divergences, log_q_of_all, twist_psi
from planting import planted
from smc.toys import eos_target, table_target

import tsmc_widgets as tw
from tsmc_widgets.evaluation import bellman as reading
from tsmc_widgets.evaluation import divergences as true_scoring
from tsmc_widgets.evaluation import estimates as true_intervals
from tsmc_widgets.twists import TableTwist


def scoring_error(module):
    """Largest error of KL(q||sigma), where texts end early, and of q's own mass."""
    target = eos_target()
    oracle = tw.exact(target)
    twist = TableTwist.random(3, 4, seed=5, prompt_length=2)
    scores = module.score_sequences(target, oracle.tokens, module.Sampler.of(None, twist))
    q = scores.log_q.exp()
    log_q = log_q_of_all(target, oracle, twist_psi(target, oracle, twist))
    kl = oracle.log_z - float((q * scores.log_weight).sum())
    return max(abs(kl - divergences(oracle, log_q)[0]), abs(float(q.sum()) - 1))


SCORING_BUGS = {
    "phi left out": (
        "return self.log_p + self.log_phi - self.log_q",
        "return self.log_p - self.log_q",
    ),
    "q after the end": (
        "log_q += torch.where(live, read.log_q, 0.0)",
        "log_q += read.log_q",
    ),
    "base in place of q": ("live, read.log_q", "live, read.log_p"),
}


def test_the_true_scores_are_enumerated():
    assert scoring_error(true_scoring) < 1e-12


@pytest.mark.parametrize("bug", SCORING_BUGS)
def test_scoring_bugs_are_caught(bug):
    assert scoring_error(planted(true_scoring, *SCORING_BUGS[bug])) > 1e-4


def test_rows_of_the_wrong_parents_are_caught(monkeypatch):
    wrong = planted(reading, "rows[members] = pairs.inverse", "rows[members] = 0 * pairs.inverse")
    monkeypatch.setattr(true_scoring, "PathReader", wrong.PathReader)
    assert scoring_error(true_scoring) > 1e-4


def pooling_z(module):
    """Largest z-score of pooled estimates against the exact log Z."""
    target = table_target(3, 3, seed=3)
    oracle = tw.exact(target)
    bounds = tw.log_z_bounds(
        target,
        num_particles=8,
        num_runs=4000,
        exact_samples=oracle.sample(4000, seed=1),
        twist=TableTwist.random(3, 3, seed=12),
    )
    scores = []
    for values, reciprocal in ((bounds.lower_log_z, False), (bounds.upper_log_z, True)):
        pooled = module.PooledOverRuns.of(values, reciprocal=reciprocal)
        scores.append(abs(pooled.value - oracle.log_z) / pooled.standard_error)
    return max(scores)


POOLING_BUGS = {
    "conditional runs pooled like forward ones": ("-1.0 if reciprocal else 1.0", "1.0"),
    "forward runs pooled like conditional ones": ("-1.0 if reciprocal else 1.0", "-1.0"),
    "a sum for a mean": ("numerics.logmeanexp(logs)", "numerics.logsumexp(logs)"),
    "the mean of logs": ("float(numerics.logmeanexp(logs))", "float(logs.mean())"),
}


def test_the_true_pools_are_log_z():
    assert pooling_z(true_intervals) < 4.5


@pytest.mark.parametrize("bug", POOLING_BUGS)
def test_pooling_bugs_are_caught(bug):
    assert pooling_z(planted(true_intervals, *POOLING_BUGS[bug])) > 6


def coverage(module):
    """Share of t-intervals of five normal numbers that hold 0."""
    values = torch.randn(2000, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    held = [
        low <= 0 <= high for low, high in (module.MeanOverRuns.of(v).interval() for v in values)
    ]
    return sum(held) / len(held)


INTERVAL_BUGS = {
    "normal in place of Student": ("stats.t.ppf((1 + confidence) / 2, freedom)", "1.96"),
    "spread in place of error": ("/ math.sqrt(count), count", ", count"),
    "a degree of freedom too many": ("return self.num_runs - 1", "return self.num_runs + 4"),
}


@pytest.mark.parametrize("bug", INTERVAL_BUGS)
def test_interval_bugs_are_caught(bug):
    spread = math.sqrt(0.95 * 0.05 / 2000)
    assert abs(coverage(true_intervals) - 0.95) < 4.5 * spread
    assert abs(coverage(planted(true_intervals, *INTERVAL_BUGS[bug])) - 0.95) > 4.5 * spread
