"""A twist known only up to a function of the prefix may propose and must not weigh."""

import math

import pytest
import torch
from twists.forms import CONDITIONAL, stir

import tsmc_widgets as tw

LM = tw.TabularLM.random(3, 5, seed=0)
FAVOURED = tw.TokenFunction(lambda tokens: (tokens == 0).sum(-1).double())
TARGET = tw.Target(LM, FAVOURED, prompt=[0], num_steps=4)


def learnt(method):
    twist = stir(tw.TableHeadTwist(LM, num_steps=4, prompt_length=1), head=1.0)
    twist.method = method
    return twist


@pytest.mark.parametrize("method", ["dpg", "ppo"])
def test_it_is_refused_as_the_twist_of_a_run(method):
    message = rf"learned by {method} is known only up to a function of the prefix.*TwistInduced"
    with pytest.raises(ValueError, match=message):
        tw.SMCConfig(num_particles=4, twist=learnt(method))
    with pytest.raises(ValueError, match=message):
        tw.run_smc(TARGET, num_particles=4, twist=learnt(method), proposal=tw.TwistInduced())


@pytest.mark.parametrize("method", [None, "ctl", "rl", "sixo", "fudge", "nvi", "cd"])
def test_others_may_weigh(method):
    assert not learnt(method).proposal_only
    config = tw.start_smc(TARGET, num_particles=4, twist=learnt(method)).config
    assert config.rule == tw.ESSBelow(0.5)


def test_a_view_of_one_observation_is_refused_too(gpt2):
    twist = CONDITIONAL["class, head"](gpt2)
    twist.method = "dpg"
    with pytest.raises(ValueError, match="learned by dpg"):
        tw.SMCConfig(num_particles=4, twist=twist.condition(1))


@pytest.mark.parametrize("method", ["dpg", "ppo"])
def test_a_run_follows_it_without_resampling(method):
    trace = tw.run_smc(TARGET, num_particles=16, proposal=tw.TwistInduced(learnt(method)), seed=1)
    assert not bool(trace.columns.resampled.any())
    tokens = trace.tokens.reshape(16, 4)
    whole = torch.cat([torch.zeros(16, 1, dtype=torch.int64), tokens], dim=1)
    with torch.no_grad():
        log_q = torch.log_softmax(
            LM.teacher_force(whole, 1).log_probs + learnt(method).log_psi_next(whole, 1), -1
        )
    log_q = log_q.gather(-1, tokens.unsqueeze(-1)).squeeze(-1).sum(-1)
    weights = TARGET.log_sigma_tilde(tokens) - log_q
    log_z = float(torch.logsumexp(weights, 0)) - math.log(16)
    assert trace.log_z == pytest.approx(log_z, abs=1e-12)


def test_a_rule_that_is_asked_for_is_kept():
    proposal = tw.TwistInduced(learnt("dpg"))
    settings = {"num_particles": 4, "proposal": proposal}
    assert tw.start_smc(TARGET, **settings).config.rule == tw.Never()
    assert tw.start_smc(TARGET, ess_threshold=0.7, **settings).config.rule == tw.ESSBelow(0.7)
    assert tw.start_smc(TARGET, rule="always", **settings).config.rule == tw.Always()
