"""Sigma proportional to p0**alpha phi: by hand, by the oracles, by enumerating the algorithm."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from learning.tables import Everything, flat_gradient
from smc.enumeration import expected_inverse_z, expected_z
from smc.toys import TablePhi, chain, eos_target, reweight, table_target

import tsmc_widgets as tw
from tsmc_widgets.evaluation.divergences import Sampler, score_sequences
from tsmc_widgets.evaluation.twist_quality import all_prefixes, log_psi_path, rollout_log_phi
from tsmc_widgets.learning import Samples, ctl_loss, dpg_loss, rl_loss, score
from tsmc_widgets.smc.exact import ChainOracle, EnumeratedOracle
from tsmc_widgets.smc.replay import CannotReweightError, Recording
from tsmc_widgets.testing import check_twist
from tsmc_widgets.twists import TableTwist

POWERS = [0.5, 2.5]


def powered(target, power):
    return target.with_(power=power)


def by_hand(power):
    """p0 and phi of every sequence of ``eos_target(3)``, from its tables."""
    rows, found = chain().transition.tolist(), {}
    worth = [-0.4, 0.7, 0.9]
    for text in itertools.product(range(3), repeat=3):
        p, last, ended = 1.0, 1, False
        for token in text:
            p *= float(token == 2) if ended else rows[last][token] ** power
            ended, last = ended or token == 2, token
        if p:
            found[text] = (p, math.exp(sum(worth[v] * (1 + t) for t, v in enumerate(text))))
    return found


@pytest.mark.parametrize("power", POWERS)
def test_sigma_and_z_are_those_of_the_tables(power):
    target, known = powered(eos_target(3), power), by_hand(power)
    tokens = torch.tensor(list(known))
    expected = torch.tensor([math.log(p * phi) for p, phi in known.values()], dtype=torch.float64)
    torch.testing.assert_close(target.log_sigma_tilde(tokens), expected, rtol=0, atol=1e-12)
    oracle = EnumeratedOracle(target)
    assert oracle.log_z == pytest.approx(float(expected.logsumexp(0)), abs=1e-12)
    torch.testing.assert_close(oracle.log_p, target.log_p(oracle.tokens), rtol=0, atol=1e-12)
    at_first = [sum(p * w for s, (p, w) in known.items() if s[0] == v) for v in range(3)]
    found = oracle.marginals()[0] * math.exp(oracle.log_z)
    torch.testing.assert_close(found, torch.tensor(at_first, dtype=torch.float64))


@pytest.mark.parametrize("stop", [None, "ab"])
@pytest.mark.parametrize("power", POWERS)
def test_chain_enumeration_bracket_and_rejection_agree(power, stop):
    target = tw.Target(
        chain(eos="c"), tw.ContainsToken("b"), prompt="a", num_steps=4, eos="absorb", power=power,
        stop=stop,
    )  # fmt: skip
    by_chain, by_tree = tw.exact(target), EnumeratedOracle(target)
    assert isinstance(by_chain, ChainOracle)
    assert by_chain.log_z == pytest.approx(by_tree.log_z, abs=1e-12)
    torch.testing.assert_close(by_chain.marginals(), by_tree.marginals(), rtol=0, atol=1e-12)
    bracket = tw.bracket_log_z(target)
    assert bracket.done
    assert by_tree.log_z - 1e-9 < bracket.lower <= by_tree.log_z <= bracket.upper
    assert bracket.upper < by_tree.log_z + 1e-9
    early = tw.bracket_log_z(target, max_tokens=6)
    assert not early.done
    assert early.lower <= by_tree.log_z <= early.upper
    samples = target.exact_samples(300, seed=3, progress=False)
    assert abs(samples.log_z - by_tree.log_z) < 4.5 * samples.log_z_standard_error
    torch.testing.assert_close(samples.log_phi, target.log_phi(samples.tokens))
    share = float((samples.tokens[:, 0] == 1).double().mean())
    expected = float(by_tree.marginals()[0, 1])
    assert abs(share - expected) < 4.5 * math.sqrt(expected * (1 - expected) / 300)


def ways(target):
    random = TableTwist.random(2 if target.lm.vocab_size == 2 else 3, 3, seed=2,
                               prompt_length=len(target.prompt_tokens))  # fmt: skip
    induced = tw.TwistInduced()
    return {
        "base": {},
        "twist": {"twist": random},
        "twist-induced": {"twist": random, "proposal": induced},
        "ramp": {"twist": tw.PowerRamp(target), "proposal": induced},
        "ramp from 3 of a twist": {
            "twist": tw.PowerRamp(target, start=3, twist=random),
            "proposal": induced,
        },
    }


TARGETS = {
    "tables": lambda power: powered(table_target(2, 3, seed=1), power),
    "eos": lambda power: powered(eos_target(3), power),
}


@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("way", ways(eos_target(3)))
def test_the_algorithm_is_unbiased(name, way, power):
    target = TARGETS[name](power)
    how = ways(target)[way] | {"num_particles": 2}
    log_z = EnumeratedOracle(target).log_z
    scheme = "systematic" if name == "eos" else "multinomial"
    assert expected_z(target, resampler=scheme, **how) == pytest.approx(math.exp(log_z), rel=1e-12)


@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize("way", ways(eos_target(3)))
def test_conditional_smc_has_the_reciprocal_identity(way, power):
    target = TARGETS["tables"](power)
    oracle = EnumeratedOracle(target)
    inverse = expected_inverse_z(target, oracle, num_particles=2, **ways(target)[way])
    assert inverse == pytest.approx(math.exp(-oracle.log_z), rel=1e-12)


def test_the_ramp_sets_the_power_of_every_step_and_ends_at_the_target_s():
    target = TARGETS["tables"](4.0)
    ramp = tw.PowerRamp(target)
    trace = tw.run_smc(
        target, num_particles=8, twist=ramp, proposal=tw.TwistInduced(), rule="never", seed=1
    )
    tokens = trace.tokens
    log_p0 = target.lm.log_prob(tokens, 0)
    torch.testing.assert_close(trace.paths("log_p")[0], 4 * log_p0, rtol=0, atol=1e-12)
    for t, alpha in ((1, 2.0), (2, 3.0), (3, 4.0)):
        shares = log_p0[:, t - 1] * alpha - (
            alpha * target.lm.prefill(tokens[:, : t - 1]).log_probs
        ).logsumexp(1)
        torch.testing.assert_close(trace.paths("log_q")[0][:, t - 1], shares, rtol=0, atol=1e-12)
        weight = (trace.paths("log_p") + 0)[0][:, :t].sum(1) + trace.paths("log_psi")[0][:, t - 1]
        own = alpha * log_p0[:, :t].sum(1) + (target.log_phi(tokens) if t == 3 else 0.0)
        torch.testing.assert_close(weight, own, rtol=0, atol=1e-12)


def test_the_ramp_keeps_the_contract_of_a_twist():
    lm = tw.TabularLM.random(3, 8, seed=0)
    target = tw.Target(lm, tw.Constant(), prompt=[0, 1], num_steps=6, power=3)
    check_twist(tw.PowerRamp(target, start=0.5), lm, prompt_length=2, num_steps=6)
    inner = TableTwist.random(3, 6, seed=1, prompt_length=2)
    check_twist(tw.PowerRamp(target, twist=inner), lm, prompt_length=2, num_steps=6)


@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize("name", TARGETS)
def test_optimal_twist_scores_and_rollouts(name, power):
    target = TARGETS[name](power)
    oracle = EnumeratedOracle(target)
    twist = oracle.optimal_twist()
    trace = oracle.trace(50)
    torch.testing.assert_close(
        trace.columns.log_z[0],
        torch.full((3,), oracle.log_z, dtype=torch.float64),
        rtol=0,
        atol=1e-10,
    )
    sampler = Sampler.of(tw.TwistInduced(), twist)
    scores = score_sequences(target, trace.tokens, sampler)
    torch.testing.assert_close(scores.log_p, target.log_p(trace.tokens), rtol=0, atol=1e-10)
    log_sigma = target.log_sigma_tilde(trace.tokens) - oracle.log_z
    torch.testing.assert_close(scores.log_q, log_sigma, rtol=0, atol=1e-10)
    assert all_prefixes(target)[0].log_z == pytest.approx(oracle.log_z)
    assert bool((log_psi_path(target, twist, trace.tokens)[:, -1] == trace.log_phi).all())
    begun = oracle.tokens[0, :1]
    found = rollout_log_phi(target, begun[None], 4000, torch.Generator().manual_seed(0)).exp()
    whole = torch.cat([target.prompt_tokens, begun]).unsqueeze(0)
    expected = math.exp(float(twist.log_psi(whole, len(target.prompt_tokens))[0, 0]))
    assert abs(float((found.mean() - expected) / (found.std() / 4000**0.5))) < 4.5


@pytest.mark.parametrize("loss", [lambda s: ctl_loss(s, s), rl_loss, dpg_loss])
def test_losses_have_their_optimum_at_the_optimal_twist_of_the_power(loss):
    """At psi* the gradient over all sequences is zero, and it is not at psi* of p0 itself."""
    plain, world = (Everything(powered(table_target(3, 3, seed=21), a)) for a in (1, 2.0))

    def gradient(source):
        twist = source.optimal_table()
        return float(flat_gradient(twist, loss(world.scored(twist))).abs().max())

    assert gradient(world) < 1e-12
    assert gradient(plain) > 1e-4


def test_a_trainer_learns_it_from_weighted_samples():
    target = powered(table_target(3, 3, seed=1), 2.0)
    samples = Samples.of_trace(tw.run_smc(target, num_particles=200, rule="never", seed=1))
    for power, least, most in ((2.0, 0.0, 1e-20), (1.0, 1e-3, math.inf)):
        twist = Everything(powered(target, power)).optimal_table()
        assert least <= float(rl_loss(score(target, twist, samples)).detach()) < most
    with pytest.raises(ValueError, match="cd learns the mean of phi"):
        tw.TwistTrainer(target, tw.TableHeadTwist(target.lm, num_steps=3), method="cd")
    trainer = tw.TwistTrainer(target, tw.TableHeadTwist(target.lm, num_steps=3), batch_size=64)
    assert not trainer.update().skipped


def test_a_record_says_the_power_and_is_that_of_no_other(tmp_path):
    plain = eos_target(3)
    target = powered(plain, 2.0)
    session = tw.start_smc(target, num_particles=4, seed=0)
    trace = session.run()
    assert tw.SMCTrace.load(trace.save(tmp_path / "run")).info == trace.info
    assert trace.info.rules == {"power": 2.0}
    assert tw.run_smc(plain, num_particles=4, seed=0).info.rules == {}
    assert target.describe().startswith("p₀^2 × ")
    again = reweight(Recording(trace, target, session.config), target, session.config)
    assert torch.equal(again.columns.log_weights, trace.columns.log_weights)
    with pytest.raises(CannotReweightError, match="the power of p0 differs"):
        reweight(Recording(trace, target, session.config), plain, session.config)


def test_what_a_power_cannot_do_is_refused():
    lm = tw.TabularLM.random(3, 5, seed=0)
    for power in (0, -1, math.nan, True):
        with pytest.raises(ValueError, match="power must be a number"):
            tw.Target(lm, tw.Constant(), prompt="", num_steps=3, power=power)
    with pytest.raises(ValueError, match="needs a potential that waits for no observation"):
        tw.Target(lm, tw.Infilling(num_tokens=1), prompt="", num_steps=3, power=2)


def test_tempering_every_token_is_another_target():
    """With phi = 1 a power of whole sequences is not the product of tempered tokens."""
    target = powered(table_target(2, 3, seed=1), 3.0)
    flat = target.with_potential(TablePhi(torch.zeros(2, 2, 2, dtype=torch.float64)))
    tempered = tw.Tempered(target.lm, temperature=1 / 3)
    log_sigma = EnumeratedOracle(flat).log_sigma
    found = tempered.log_prob(EnumeratedOracle(flat).tokens, 0).sum(1)
    assert float((found - log_sigma).abs().max()) > 0.1
    assert replace(tempered, temperature=1.0).settings == {}
