"""Losses that read phi read it at a scale of its own, which the first batch sets."""

import math
import warnings

import pytest
import torch
from learning.tables import Everything, flat_gradient, prefix_index, unit_target
from learning.trainers import fresh, rare, shifted, trained
from smc.toys import chain

import tsmc_widgets as tw
from tsmc_widgets import numerics
from tsmc_widgets.errors import NoSignalError
from tsmc_widgets.learning.objectives import RECIPES, cd_loss, fudge_loss
from tsmc_widgets.learning.rates import MIN_COMPLEMENT, set_level
from tsmc_widgets.learning.samples import draw_samples
from tsmc_widgets.learning.trainer import FAINT_STEPS, TwistTrainer
from tsmc_widgets.twists import load_twist, save_twist

SCALES = [0.0, math.log(1e-4), -20.0, -300.0]


def batch_of(target, size=64):
    return draw_samples(target, num_particles=size, proposal=tw.Base(), seed=3, run=0)


def log_psi(trainer):
    return Everything(trainer.target).scored(trainer.twist).log_psi.detach()


class TestScale:
    @pytest.mark.parametrize(
        ("method", "constant"),
        [("cd", 0.0), ("rl", 0.0), *(("fudge", constant) for constant in (*SCALES, -1e4))],
    )
    def test_learning_at_any_scale_below_the_bound(self, method, constant):
        """FUDGE's bound stays 1, as for infilling, whose phi is far below it.

        Other methods read no bound, and learn the same at any scale: see ``test_scale.py``.
        """
        trainer = trained(shifted(constant, bounded=False), method, updates=100)
        world = Everything(trainer.target)
        before = float((world.log_psi_star - world.log_z).abs().mean())
        after = float((log_psi(trainer) - world.log_psi_star).abs().mean())
        assert after < before / 2
        assert not trainer.warning

    @pytest.mark.parametrize("constant", SCALES)
    @pytest.mark.parametrize("loss", [cd_loss, fudge_loss])
    def test_the_slope_is_0_at_the_optimal_twist_alone(self, loss, constant):
        target = shifted(constant, bounded=False)
        world = Everything(target)
        twist = fresh(target, "fudge" if loss is fudge_loss else "cd")
        twist.start_at(min(world.log_z, -0.1))
        with torch.no_grad():
            for t, table in enumerate(twist.log_tables):
                raw = world.log_psi_star[:, t] - twist.level
                if twist.link == "sigmoid":
                    raw = world.log_psi_star[:, t] - numerics.log1mexp(world.log_psi_star[:, t])
                    raw -= twist.level - float(
                        numerics.log1mexp(torch.tensor(twist.level, dtype=torch.float64))
                    )
                table.view(-1)[prefix_index(world.tokens, t)] = raw
        found = world.scored(twist).log_psi.detach()
        assert float((found - world.log_psi_star).abs().max()) < 1e-9

        def slope():
            return float(flat_gradient(twist, loss(world.scored(twist))).abs().max())

        assert slope() < 1e-12
        with torch.no_grad():
            twist.log_tables[1][0] += 0.1
        assert slope() > 1e-5


class TestVanishing:
    @pytest.mark.filterwarnings("default")
    def test_gradients_that_vanish_are_told_once(self):
        target = shifted(-30.0)
        twist = fresh(target, "cd")
        with torch.no_grad():
            for table in twist.log_tables:
                table -= 30.0
        trainer = TwistTrainer(target, twist, method="cd", batch_size=24)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            list(trainer.updates(FAINT_STEPS - 1))
            assert not told
            list(trainer.updates(30))
        assert [str(each.message) for each in told] == [trainer.warning]
        assert "gradients of cd vanish" in trainer.warning
        assert f"at update {FAINT_STEPS}, below Adam's eps of 1e-08" in trainer.warning
        assert trainer.skipped == 0


class TestSetting:
    @pytest.mark.parametrize("method", RECIPES)
    def test_only_losses_that_read_phi_set_it(self, method):
        target = unit_target()
        batch, twist = batch_of(target), fresh(target)
        set_level(twist, batch, [method])
        expected = float(numerics.logmeanexp(batch.log_phi)) if RECIPES[method].reads_phi else 0.0
        assert twist.level == expected
        tokens = torch.zeros(1, 3, dtype=torch.int64)
        assert twist.log_psi(tokens, 0)[0].tolist() == [expected] * 3

    def test_a_twist_that_has_learned_stays(self):
        target = unit_target()
        twist = fresh(target)
        with torch.no_grad():
            twist.log_tables[1][2, 0] = 0.25
        set_level(twist, batch_of(target), ["rl"])
        assert twist.level == 0.0

    @pytest.mark.parametrize("method", ["rl", "cd", "fudge"])
    def test_without_a_hit_nothing_is_learned(self, method):
        target = rare(4)
        batch = batch_of(target, size=2)
        assert not batch.has_hits
        twist = fresh(target, method)
        level = twist.level
        with pytest.raises(NoSignalError, match="scale of phi is not known"):
            set_level(twist, batch, [method])
        trainer = TwistTrainer(target, twist, method=method, batch_size=2, seed=3)
        assert trainer.update().skipped
        assert twist.is_fresh
        assert twist.level == level

    def test_the_sigmoid_stays_below_its_bound(self):
        target = tw.Target(chain(), tw.Constant(2.0), prompt="a", num_steps=2)
        twist = fresh(target, "fudge")
        set_level(twist, batch_of(target), ["fudge"], log_bound=2.0)
        assert (twist.level, twist.log_bound) == (2.0 - MIN_COMPLEMENT, 2.0)
        found = twist.log_psi(torch.zeros(1, 3, dtype=torch.int64), 1)
        torch.testing.assert_close(found, torch.full_like(found, twist.level))

    def test_processes_agree_on_one_level(self):
        """Each gives its number and hears the mean; one of two has found nothing."""
        target = unit_target()
        alone, other = fresh(target), fresh(target)
        set_level(alone, batch_of(target), ["rl"])
        heard = iter([0.5, alone.level / 2])
        set_level(other, batch_of(target), ["rl"], average=lambda _: next(heard))
        assert other.level == pytest.approx(alone.level)

    def test_it_is_saved(self, tmp_path):
        trainer = trained(shifted(-1e4), "fudge")
        folder = save_twist(trainer.twist, tmp_path / "twist", dtype=torch.float16)
        loaded = load_twist(folder, trainer.target.lm)
        assert (loaded.level, loaded.log_bound) == (trainer.twist.level, -1e4)
