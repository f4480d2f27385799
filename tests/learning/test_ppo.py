"""What leaving p0 costs: fixed at 1 the optimum is sigma; steered, it follows the KL."""

import pytest
import torch
from learning.tables import Everything, ParameterTable, flat_gradient, full_target, unit_target
from learning.trainers import make_trainer, parameters, resumed

import tsmc_widgets as tw
from tsmc_widgets.learning import AdaptiveKL, FixedKL, PPOSettings, TwistTrainer
from tsmc_widgets.learning.objectives import advantages_and_returns, ppo_loss


def base_divergence(trainer):
    """KL(q || p0) of the twist-induced proposal, by enumeration."""
    scored = Everything(trainer.target).scored(trainer.twist)
    log_q = scored.log_q_psi.detach().sum(1)
    return float((log_q.exp() * (log_q - scored.log_p.sum(1))).sum())


class TestOptimum:
    @pytest.mark.parametrize("coefficient", [1.0, 2.5])
    def test_it_is_p0_times_a_power_of_phi(self, coefficient):
        """There no text is better than another, so that the slope is zero; elsewhere it is not."""
        target = unit_target()
        world = Everything(target)
        target.potential.log_table /= coefficient
        twist = Everything(target).optimal_table()
        assert self.slope(world, twist, coefficient) < 1e-12
        assert self.slope(world, twist, coefficient + 0.5) > 1e-3

    def slope(self, world, twist, coefficient):
        scored = world.scored(twist)
        log_q = scored.log_q_psi.detach()
        advantages, _ = advantages_and_returns(
            scored, log_q, torch.zeros_like(log_q), kl_penalty=coefficient, decay=1.0
        )
        weights = log_q.sum(1).exp().unsqueeze(1) * len(log_q)
        loss = ppo_loss(scored, log_q, weights * advantages)
        return float(flat_gradient(twist, loss).abs().max())


class TestSteering:
    def test_the_coefficient_follows_the_error(self):
        kl = AdaptiveKL(target=2.0)
        assert kl.after(1.0, 2.0) == 1.0
        assert kl.after(1.0, 2.2) == pytest.approx(1.01, abs=1e-12)
        assert kl.after(3.0, 50.0) == pytest.approx(3.06, abs=1e-12)
        assert kl.after(3.0, 0.0) == pytest.approx(2.94, abs=1e-12)
        assert FixedKL(0.5).after(0.5, 50.0) == 0.5

    def test_an_update_says_what_a_nat_cost_and_was(self):
        trainer = make_trainer("ppo", ppo=PPOSettings(kl=AdaptiveKL(target=0.5, initial=2.0)))
        first, second = trainer.updates(2)
        assert first.kl == pytest.approx(0.0, abs=1e-9)
        assert (first.kl_coefficient, second.kl_coefficient) == (2.0, pytest.approx(1.96))
        fixed = make_trainer("ppo")
        assert [update.kl_coefficient for update in fixed.updates(3)] == [1.0] * 3
        assert make_trainer("ctl").update().kl is None

    @pytest.mark.slow
    def test_the_divergence_is_steered_to_the_target(self):
        """A target near p0 makes leaving it dear, a far one cheap; each is reached."""
        found = {}
        for goal in (0.1, 0.8):
            kl = AdaptiveKL(target=goal, rate=0.5)
            trainer = make_trainer("ppo", ppo=PPOSettings(kl=kl), batch_size=200)
            updates = list(trainer.updates(120))
            late = torch.tensor([update.kl for update in updates[60:]], dtype=torch.float64)
            found[goal] = updates[-1].kl_coefficient, float(late.mean())
            assert abs(float(late.mean()) - goal) < 0.2 * goal
            assert abs(base_divergence(trainer) - goal) < 0.4 * goal
        plain = make_trainer("ppo", batch_size=200)
        list(plain.updates(120))
        assert 0.1 < base_divergence(plain) < 0.8
        assert found[0.1][0] > 1.0 > found[0.8][0]

    def test_it_is_resumed_to_the_byte(self, tmp_path):
        settings = PPOSettings(kl=AdaptiveKL(target=0.05), epochs=2, clip=0.3, decay=1.0)
        path = tmp_path / "training"
        whole, rest = resumed(lambda: make_trainer("ppo", ppo=settings), path, 2, 4)
        assert [u.kl_coefficient for u in rest.history] == [u.kl_coefficient for u in whole.history]

    def test_settings_matter(self):
        one, other = make_trainer("ppo"), make_trainer("ppo", ppo=PPOSettings(epochs=1))
        one.update()
        other.update()
        assert not torch.equal(parameters(one), parameters(other))


def test_the_first_critic_does_not_depend_on_other_random_numbers(checkpoint):
    lm = tw.HuggingFaceLM.from_pretrained(checkpoint("gpt2"))
    favoured = tw.TokenFunction(lambda tokens: -1.0 * (tokens % 3 == 0).sum(-1).double())
    target = tw.Target(lm, favoured, prompt="once upon", num_steps=3)
    found = []
    for other in range(2):
        torch.manual_seed(other)
        trainer = TwistTrainer(target, tw.LinearHeadTwist(lm), method="ppo", batch_size=8)
        list(trainer.updates(2))
        found.append(parameters(trainer))
    assert torch.equal(*found)


class TestRefused:
    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: FixedKL(0.0), r"coefficient must be a number in \(0, inf\); got 0\.0"),
            (lambda: AdaptiveKL(target=-1.0), r"target must be a number in \(0, inf\); got -1\.0"),
            (lambda: AdaptiveKL(target=1.0, rate=0), "rate must be a number in"),
            (lambda: PPOSettings(clip=0), "clip must be a number in"),
            (lambda: PPOSettings(epochs=0), "epochs must be an integer of at least 1; got 0"),
            (lambda: PPOSettings(decay=1.5), r"decay must be a number in \[0, 1\]; got 1\.5"),
            (lambda: make_trainer("ctl", ppo=PPOSettings()), "needs method='ppo'; got 'ctl'"),
        ],
    )
    def test_numbers(self, make, message):
        with pytest.raises(ValueError, match=message):
            make()


class TestAdvantages:
    def test_monte_carlo_by_hand(self):
        world = full_target()
        scored = world.scored(ParameterTable(3, 3, seed=5))
        log_q = scored.log_q_psi.detach()
        values = torch.randn(log_q.shape, dtype=torch.float64)
        advantages, returns = advantages_and_returns(
            scored, log_q, values, kl_penalty=0.7, decay=1.0
        )
        rewards = -0.7 * (log_q - scored.log_p)
        rewards[:, -1] += scored.samples.log_phi
        expected = rewards.flip(1).cumsum(1).flip(1)
        torch.testing.assert_close(returns, expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(advantages, expected - values, rtol=0, atol=1e-12)
