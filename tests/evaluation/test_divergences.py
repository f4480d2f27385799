"""KL divergences against enumerated ones, and what is said where they are odd."""

import math

import pytest
import torch
from evaluation.enumerated import divergences, log_q_of_all, near, other_model, twist_psi
from smc.toys import eos_target, table_target

import tsmc_widgets as tw
from tsmc_widgets.evaluation import (
    LogZ,
    LogZBounds,
    MeanOverRuns,
    kl_divergences,
    log_z_bounds,
    run_baseline,
)
from tsmc_widgets.evaluation.divergences import (
    Q_SIGMA,
    Sampler,
    kl_estimate,
    score_sequences,
    tail_shape,
)
from tsmc_widgets.twists import TableTwist

COUNT = 20_000


@pytest.fixture(scope="module")
def proposals(target, oracle, twist):
    """What kl_divergences takes, and log q of every text by enumeration."""
    other = other_model(3, 4)
    blank = torch.zeros(oracle.tokens.shape, dtype=torch.float64)
    return {
        "base": ({}, oracle.log_p),
        "twist": ({"twist": twist}, log_q_of_all(target, oracle, twist_psi(target, oracle, twist))),
        "model": (
            {"proposal": other},
            log_q_of_all(tw.Target(other, target.potential, prompt="", num_steps=4), oracle, blank),
        ),
    }


NAMES = ("base", "twist", "model")


@pytest.mark.parametrize("name", NAMES)
def test_texts_are_scored_as_enumerated(target, oracle, proposals, name):
    given, log_q = proposals[name]
    scores = score_sequences(
        target, oracle.tokens, Sampler.of(given.get("proposal"), given.get("twist"))
    )
    assert torch.allclose(scores.log_q, log_q, rtol=0, atol=1e-12)
    assert torch.allclose(scores.log_p, oracle.log_p, rtol=0, atol=1e-12)
    assert torch.equal(scores.log_phi, oracle.log_phi)


def test_texts_that_end_are_scored_as_enumerated():
    target = eos_target()
    oracle = tw.exact(target)
    twist = TableTwist.random(3, 4, seed=5, prompt_length=2)
    scores = score_sequences(target, oracle.tokens, Sampler.of(None, twist))
    assert float(scores.log_q.exp().sum()) == pytest.approx(1.0, abs=1e-12)
    log_q = log_q_of_all(target, oracle, twist_psi(target, oracle, twist))
    assert torch.allclose(scores.log_q, log_q, rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_scores_are_those_of_the_model_however_many_have_ended(seed):
    target = tw.load_problem("eos").target()
    tokens = tw.exact(target).sample(20, seed)
    scores = score_sequences(target, tokens, Sampler.of(None, None))
    assert torch.allclose(scores.log_p, target.log_p(tokens), atol=1e-12)
    assert torch.allclose(scores.log_q, scores.log_p, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_both_are_the_enumerated_ones(target, oracle, proposals, name):
    given, log_q = proposals[name]
    found = kl_divergences(
        target,
        num_samples=COUNT,
        exact_samples=oracle.sample(COUNT, seed=3),
        log_z=oracle,
        **given,
    )
    forward, backward = divergences(oracle, log_q)
    assert near(found.q_sigma.value, forward, found.q_sigma.standard_error)
    assert near(found.sigma_q.value, backward, found.sigma_q.standard_error)
    assert near(found.symmetrised.value, forward + backward, found.symmetrised.standard_error)
    base = float((log_q.exp() * (log_q - oracle.log_p)).sum())
    if name == "base":
        assert found.q_base.value == 0.0
    else:
        assert near(found.q_base.value, base, found.q_base.standard_error)
    mean = float((log_q.exp() * oracle.log_phi).sum())
    assert near(found.log_phi.mean, mean, found.log_phi.standard_error)


@pytest.mark.parametrize("name", NAMES)
def test_one_particle_bounds_are_f_and_g(target, oracle, twist, proposals, name):
    """Equality, although bounds go through the twist and F and G do not."""
    given = dict(proposals[name][0])
    samples = oracle.sample(50, seed=3)
    found = kl_divergences(target, num_samples=60, exact_samples=samples, log_z=oracle, **given)
    proposal = {"base": tw.Base, "twist": tw.TwistInduced}.get(
        name, lambda: tw.ModelProposal(given["proposal"])
    )()
    bounds = log_z_bounds(
        target,
        num_particles=1,
        num_runs=60,
        exact_samples=samples,
        twist=twist,
        proposal=proposal,
    )
    assert abs(bounds.lower.mean - found.f.mean) < 1e-10
    assert abs(bounds.upper.mean - found.g.mean) < 1e-10
    assert abs(bounds.gap - found.symmetrised.value) < 1e-10
    assert found.q_sigma.value == pytest.approx(oracle.log_z - bounds.lower.mean, abs=1e-10)


def test_the_optimal_twist_has_none(target, oracle):
    found = kl_divergences(
        target,
        twist=oracle.optimal_twist(),
        num_samples=30,
        exact_samples=oracle.sample(30, 1),
        log_z=oracle.log_z,
    )
    assert abs(found.q_sigma.value) < 1e-10
    assert abs(found.sigma_q.value) < 1e-10


def test_batches_change_nothing(target, oracle, twist):
    how = {"twist": twist, "num_samples": 23, "log_z": 0.0, "exact_samples": oracle.sample(9, 1)}
    assert kl_divergences(target, **how) == kl_divergences(target, **how, max_rows=4)


def test_log_z_is_named_and_its_error_is_carried(target, oracle, twist):
    samples = oracle.sample(400, 2)
    bounds = log_z_bounds(
        target, num_particles=8, num_runs=200, exact_samples=samples, twist=twist, rule="ess"
    )
    ways = {
        "given": LogZ.of(oracle.log_z),
        "oracle": LogZ.of(oracle),
        "bounds": LogZ.of(bounds),
        "pooled": LogZ.pooled(bounds),
        "mix": LogZ.of(
            LogZBounds.of(
                bounds.lower_log_z, bounds.upper_log_z, num_particles=8, exact=oracle.log_z
            )
        ),
    }
    assert [way.standard_error for way in ways.values()].count(0.0) == 3
    assert ways["bounds"].slack == pytest.approx(bounds.gap / 2)
    widths = {}
    for name, way in ways.items():
        found = kl_divergences(
            target, twist=twist, num_samples=3000, exact_samples=samples, log_z=way
        )
        low, high = way.interval(0.99999)
        assert low <= oracle.log_z <= high, name
        low, high = found.q_sigma.interval()
        widths[name] = high - low
        assert found.to_frame()["log_z_source"].iloc[0] == way.source
    assert widths["given"] == widths["oracle"] == widths["mix"] < widths["pooled"]
    assert widths["pooled"] < widths["bounds"]


def test_rejection_brings_its_own_log_z():
    hard = table_target(3, 3, seed=5)
    hard.potential.log_phi_max = float(hard.potential.log_table.max())
    samples = hard.exact_samples(300, seed=1, progress=False)
    found = kl_divergences(hard, num_samples=300, exact_samples=samples)
    assert found.log_z.value == samples.log_z
    assert found.log_z.standard_error == samples.log_z_standard_error
    assert "draws from p0" in found.q_sigma.log_z.source


def test_a_negative_estimate_stays_and_is_remarked_on(target, oracle):
    how = {"twist": oracle.optimal_twist(), "num_samples": 20}
    below = LogZ(oracle.log_z - 0.01, "a guess", standard_error=0.02, freedom=10)
    found = kl_divergences(target, log_z=below, **how).q_sigma
    assert found.value == pytest.approx(-0.01, abs=1e-9)
    assert found.interval()[0] < -0.01 < 0 < found.interval()[1]
    assert found.remark.startswith("Negative, as no KL is")
    wrong = kl_divergences(target, log_z=oracle.log_z - 1.0, **how).q_sigma
    assert "must be wrong" in wrong.remark
    assert wrong.value == pytest.approx(-1.0, abs=1e-9)


def test_dead_samples_prove_infinity():
    target = table_target(3, 3, seed=4, zeros=0.3)
    oracle = tw.exact(target)
    found = kl_divergences(
        target, num_samples=100, exact_samples=oracle.sample(50, 1), log_z=oracle
    )
    assert found.q_sigma.value == math.inf
    assert found.q_sigma.interval() == (math.inf, math.inf)
    assert "samples of q have phi = 0" in found.q_sigma.remark
    assert found.symmetrised.value == math.inf
    assert math.isfinite(found.sigma_q.value)
    assert found.to_frame()["value"].tolist()[0] == math.inf


def test_a_proposal_that_leaves_out_samples_of_sigma():
    lm = tw.TabularLM.markov([0.5, 0.5], [[0.5, 0.5], [0.5, 0.5]], symbols="ab")
    narrow = tw.TabularLM.markov([1.0, 0.0], [[0.5, 0.5], [0.5, 0.5]], symbols="ab")
    target = tw.Target(lm, tw.TokenFunction(lambda rows: 0.3 * rows.sum(1)), prompt="", num_steps=3)
    found = kl_divergences(
        target,
        proposal=narrow,
        num_samples=50,
        exact_samples=tw.exact(target).sample(50, 0),
        log_z=tw.exact(target),
    )
    assert found.sigma_q.value == math.inf
    assert "q cannot write" in found.sigma_q.remark
    assert math.isfinite(found.q_sigma.value)


def test_approximate_samples_are_called_so(target, oracle):
    found = kl_divergences(
        target, num_samples=20, approximate_samples=oracle.sample(20, 0), log_z=oracle
    )
    assert "approximate" in found.sigma_q.estimator
    assert "approximate" not in found.q_sigma.estimator


def test_without_log_z_there_is_what_does_not_need_it(target, oracle):
    found = kl_divergences(target, num_samples=20, exact_samples=oracle.sample(20, 0))
    assert (found.q_sigma, found.sigma_q) == (None, None)
    assert found.to_frame()["divergence"].tolist() == ["KL(q||σ) + KL(σ||q)", "KL(q||p0)"]


def test_what_is_no_log_z_is_refused(target, oracle):
    with pytest.raises(TypeError, match="must be a number"):
        kl_divergences(target, log_z="3")
    with pytest.raises(ValueError, match="both sides"):
        LogZ.of(log_z_bounds(target, num_particles=2, num_runs=3))
    dead = table_target(3, 3, seed=4, zeros=0.3)
    every = tw.exact(dead)
    with pytest.raises(ValueError, match="samples of sigma"):
        kl_divergences(dead, exact_samples=every.tokens, log_z=every)
    with pytest.raises(ValueError, match="num_samples"):
        kl_divergences(target, num_samples=1, log_z=0.0)


@pytest.fixture
def rare():
    """One text in a thousand has phi = 0."""
    lm = tw.TabularLM.markov([0.999, 0.001], [[0.5, 0.5], [0.5, 0.5]], symbols="ab")
    return tw.Target(lm, tw.AvoidsToken("b"), prompt="", num_steps=1)


def test_agreement_is_no_proof(rare):
    """A hundred texts of p0 do not show that KL(q||sigma) is +inf."""
    found = kl_divergences(rare, num_samples=100, log_z=0.0, seed=2).q_sigma
    assert found.value == 0
    assert found.interval()[1] == pytest.approx(math.log(40) / 100)
    assert "All 100 samples agree" in found.remark
    assert "+inf" in found.remark


def test_a_heavy_tail_is_named(target):
    """A Cauchy variable has no variance; a normal one has."""
    generator = torch.Generator().manual_seed(0)
    normal, other = torch.randn(2, 2000, generator=generator, dtype=torch.float64)
    for values, said in ((normal, False), (normal / other, True)):
        parts = (MeanOverRuns.of(values + 5),)
        found = kl_estimate(Q_SIGMA, *parts, estimator="", k_hat=tail_shape(values))
        assert ("heavy tail" in found.remark) == said
    every = kl_divergences(target, twist=TableTwist.random(3, 4, seed=12), log_z=0.0).all()
    assert [math.isnan(kl.k_hat) for kl in every] == [False, False]


def test_all_draws_accepted_is_no_certainty(rare):
    found = rare.exact_samples(200, seed=1, progress=False)
    assert found.accepted == found.proposed == 200
    low, _ = LogZ.of(found).interval()
    assert low == pytest.approx(-math.log(40) / 200)
    run = run_baseline("rejection", rare, num_samples=200, seed=1)
    assert math.isnan(run.log_z_standard_error)
    assert "all draws agree" in run.note
