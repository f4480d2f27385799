"""Runs under different observations in one batch: each is what it would be alone."""

import math
import pickle

import pytest
import torch
from smc.observed import ConditionalTables, every, infilling, number
from smc.toys import table_target, z_score

import tsmc_widgets as tw
from tsmc_widgets.smc import sampler
from tsmc_widgets.smc.exact import EnumeratedOracle
from tsmc_widgets.smc.sampler import init, step

ONE_FOR_EACH = torch.tensor([[2], [0], [1], [0], [2]])
RUNS = 20_000


def all_log_z(target):
    rows = every(target.potential.num_tokens)
    return torch.tensor(
        [EnumeratedOracle(target.condition(o)).log_z for o in rows], dtype=torch.float64
    )


@pytest.fixture(scope="module")
def target():
    return infilling()


@pytest.fixture(scope="module")
def log_z(target):
    """Log Z(o) of each observation."""
    return all_log_z(target)


def options(twist, proposal):
    proposal = {"base": tw.Base(), "induced": tw.TwistInduced(), "own": tw.TwistInduced(twist)}[
        proposal
    ]
    return {"num_particles": 6, "proposal": proposal, "rule": "always", "seed": 3}


@pytest.mark.parametrize("proposal", ["base", "induced", "own"])
@pytest.mark.parametrize("conditional", [False, True])
def test_a_run_is_what_it_is_alone(target, proposal, conditional):
    twist = ConditionalTables(seed=1)
    together = options(twist, proposal) | {"twist": twist, "observed": ONE_FOR_EACH}
    retained = target.exact_samples(5, seed=1, progress=False).tokens
    if conditional:
        whole = tw.run_conditional_smc(target, retained=retained, **together)
    else:
        whole = tw.run_smc(target, **together)
    for r, o in enumerate(ONE_FOR_EACH):
        view = twist.condition(o)
        alone = options(view, proposal) | {"twist": view, "first_run": r}
        if conditional:
            one = tw.run_conditional_smc(target.condition(o), retained=retained[r : r + 1], **alone)
        else:
            one = tw.run_smc(target.condition(o), **alone)
        assert torch.equal(one.columns.tokens, whole.columns.tokens[r : r + 1])
        for name in ("log_p", "log_q", "log_psi", "log_weights", "log_z"):
            found = getattr(whole.columns, name)[r : r + 1]
            torch.testing.assert_close(getattr(one.columns, name), found, rtol=0, atol=1e-12)


def forward_and_backward(target, log_z):
    """z-scores of E[Z_hat / Z(o)] and conditional E[Z(o) / Z_hat], each against 1."""
    joint = target.exact_samples(RUNS, seed=2, progress=False)
    expected = log_z[joint.observed[:, 0]]
    settings = {
        "num_particles": 4,
        "twist": ConditionalTables(seed=1, scale=1.0),
        "proposal": tw.TwistInduced(),
    }
    forward = tw.run_smc(target, observed=joint.observed, **settings)
    backward = tw.run_conditional_smc(target, retained=joint, **settings)
    return (
        z_score((forward.log_z - expected).exp(), 1.0),
        z_score((expected - backward.log_z).exp(), 1.0),
    )


def test_estimates_are_unbiased_for_each_observation(target, log_z):
    assert all(abs(z) < 4.5 for z in forward_and_backward(target, log_z))


@pytest.mark.parametrize("bug", ["phi", "prefixes"])
def test_a_mix_up_is_seen(target, log_z, bug, monkeypatch):
    true = sampler._observed
    if bug == "phi":
        monkeypatch.setattr(sampler, "_observed", lambda c, at: true(c, at.flip(0)))
    else:
        # Equal prefixes of different observations made one.
        monkeypatch.setattr(
            sampler, "_places", lambda c, tokens, members: (members[:1], members * 0)
        )
    assert max(abs(z) for z in forward_and_backward(target, log_z)) > 4.5


def test_a_state_without_answers_goes_on_the_same(target):
    trace = tw.start_smc(
        target, num_particles=6, observed=ONE_FOR_EACH, twist=ConditionalTables(seed=1)
    )
    config, states = trace.config, [init(target, trace.config)]
    for _ in range(2):
        states.append(step(states[-1], target, config)[0])
    for state in states:
        bare = pickle.loads(pickle.dumps(state))
        assert bare.steps is None
        _, expected = step(state, target, config)
        _, found = step(bare, target, config)
        assert torch.equal(found.tokens, expected.tokens)
        torch.testing.assert_close(found.log_weights, expected.log_weights, rtol=0, atol=1e-12)


def test_a_retained_joint_draw_brings_its_observations(target):
    joint = target.exact_samples(4, seed=1, progress=False)
    given = tw.run_conditional_smc(target, retained=joint, num_particles=3)
    named = tw.run_conditional_smc(
        target, retained=joint.tokens, observed=joint.observed, num_particles=3
    )
    assert torch.equal(given.log_z, named.log_z)
    assert given.info.observed == joint.observed.tolist()


def test_traces_remember(target, tmp_path):
    trace = tw.run_smc(target, num_particles=3, observed=ONE_FOR_EACH)
    assert trace.num_runs == 5
    assert trace.run(2).info.observed == [[1]]
    assert tw.SMCTrace.load(trace.save(tmp_path / "run")).info == trace.info


def test_a_wider_observation():
    target = infilling(2, 2)
    joint = target.exact_samples(50, seed=4, progress=False)
    log_z = all_log_z(target)
    trace = tw.run_smc(
        target,
        num_particles=2,
        observed=joint.observed,
        twist=ConditionalTables.optimal(target),
        proposal=tw.TwistInduced(),
    )
    expected = log_z[number(joint.observed)]
    assert math.isclose(float(log_z.logsumexp(0)), 0.0, abs_tol=1e-10)
    torch.testing.assert_close(trace.log_z, expected, rtol=0, atol=1e-10)


class TestRefused:
    def test_nothing_observed(self, target):
        message = r"waits for an observation: sample target\.cond.*or give observed=, one for each"
        with pytest.raises(ValueError, match=message):
            tw.run_smc(target, num_particles=2)

    def test_nothing_to_observe(self):
        with pytest.raises(ValueError, match="waits for no observation"):
            tw.run_smc(table_target(3, 3, seed=1), num_particles=2, observed=[[1]])

    @pytest.mark.parametrize("observed", [[1, 2], [[0.5]], [], [[True]]])
    def test_shapes(self, target, observed):
        with pytest.raises(
            ValueError, match=r"integers of shape \(num_runs, width\)|token ids; got dtype"
        ):
            tw.run_smc(target, num_particles=2, observed=observed)

    def test_other_observations(self, target):
        with pytest.raises(ValueError, match="num_tokens=2 tokens; got 1"):
            tw.run_smc(infilling(2, 2), num_particles=2, observed=[[1]])
        with pytest.raises(ValueError, match="smallest entry of observed"):
            tw.run_smc(target, num_particles=2, observed=[[-1]])

    def test_other_numbers(self, target):
        with pytest.raises(ValueError, match="one observation for each of the 3 runs; got 2"):
            tw.run_smc(target, num_particles=2, num_runs=3, observed=[[1], [2]])
        with pytest.raises(ValueError, match="each of the 2 retained samples; got 1"):
            tw.run_conditional_smc(
                target, num_particles=2, retained=[[0, 0, 0], [1, 1, 1]], observed=[[1]]
            )
