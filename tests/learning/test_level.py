"""Losses that say how large psi is start a fresh twist at the mean of phi; q stays p0."""

import math

import pytest
import torch
from learning.tables import unit_target
from smc.observed import ConditionalTables, infilling
from smc.toys import chain

import tsmc_widgets as tw
from tsmc_widgets import numerics
from tsmc_widgets.learning.objectives import RECIPES
from tsmc_widgets.learning.rates import MIN_COMPLEMENT, set_level
from tsmc_widgets.learning.samples import draw_samples
from tsmc_widgets.learning.trainer import TwistTrainer
from tsmc_widgets.twists import TableHeadTwist


def batch_of(target, size=64):
    return draw_samples(target, num_particles=size, proposal=tw.Base(), seed=3, run=0)


def values(twist):
    return torch.cat([table.reshape(-1) for table in twist.log_tables]).detach()


@pytest.mark.parametrize("method", RECIPES)
def test_only_losses_that_fix_the_level_set_it(method):
    target = unit_target()
    batch = batch_of(target)
    twist = TableHeadTwist(target.lm, num_steps=3)
    level = set_level(twist, batch, [method])
    expected = float(numerics.logmeanexp(batch.log_phi)) if RECIPES[method].fixes_level else 0.0
    assert (level is not None) == RECIPES[method].fixes_level
    torch.testing.assert_close(values(twist), torch.full_like(values(twist), expected))


def test_a_twist_that_has_learned_stays():
    target = unit_target()
    twist = TableHeadTwist(target.lm, num_steps=3)
    with torch.no_grad():
        twist.log_tables[1][2, 0] = 0.25
    assert set_level(twist, batch_of(target), ["rl"]) is None
    assert values(twist).sum() == 0.25


def test_without_a_hit_psi_stays_1():
    target = tw.Target(chain(), tw.MatchesRegex("c{4}"), prompt="a", num_steps=4)
    batch = batch_of(target, size=2)
    assert not batch.has_hits
    twist = TableHeadTwist(target.lm, num_steps=4, prompt_length=1)
    assert set_level(twist, batch, ["rl"]) is None
    assert not bool(values(twist).any())


def test_the_sigmoid_stays_below_1():
    target = tw.Target(chain(), tw.Constant(0.0), prompt="a", num_steps=2)
    twist = TableHeadTwist(target.lm, num_steps=2, prompt_length=1, link="sigmoid")
    assert set_level(twist, batch_of(target), ["fudge"]) == -MIN_COMPLEMENT
    log_psi = twist.log_psi(torch.zeros(1, 3, dtype=torch.int64), 1)
    torch.testing.assert_close(log_psi, torch.full_like(log_psi, -MIN_COMPLEMENT))


def test_processes_agree_on_one_level():
    """Each gives its number and hears the mean; one of two has found nothing."""
    target = unit_target()
    alone = set_level(TableHeadTwist(target.lm, num_steps=3), batch_of(target), ["rl"])
    heard = iter([0.5, alone / 2])
    twist = TableHeadTwist(target.lm, num_steps=3)
    assert math.isclose(set_level(twist, batch_of(target), ["rl"], lambda _: next(heard)), alone)


def test_the_trainer_sets_it_before_the_first_step():
    target = unit_target()
    twist = TableHeadTwist(target.lm, num_steps=3)
    trainer = TwistTrainer(target, twist, method="rl", batch_size=64, learning_rate=1e-6)
    first = trainer.update()
    assert first.log_z < -0.5
    assert abs(float(values(twist).mean()) - first.log_z) < 0.11 * abs(first.log_z)
    before = trainer.update().losses["rl"]
    plain = TableHeadTwist(target.lm, num_steps=3)
    plain.log_tables[0].data.fill_(1e-9)
    other = TwistTrainer(target, plain, method="rl", batch_size=64, learning_rate=1e-6)
    assert before < other.update().losses["rl"] / 2


def test_conditional_twists_take_the_mean_over_observations():
    target, twist = infilling(), ConditionalTables(seed=2)
    trainer = TwistTrainer(target, twist, method="rl", batch_size=24, observations=6)
    assert math.isfinite(trainer.update().losses["rl"])
