"""The training loop: it learns, evaluates, and refuses what it cannot do."""

import math

import pytest
import torch
from learning.tables import Everything, unit_target
from learning.trainers import divergence, make_trainer, parameters, rare
from smc.toys import table_target

import tsmc_widgets as tw
from tsmc_widgets.evaluation import log_z_bounds
from tsmc_widgets.learning.objectives import METHODS, RECIPES, SUMS, resolve_method
from tsmc_widgets.learning.positives import (
    REPLAY_EVERY,
    ExactPool,
    ReplayedPositives,
    WeightedPositives,
)
from tsmc_widgets.learning.samples import Samples
from tsmc_widgets.learning.trainer import TwistTrainer
from tsmc_widgets.twists import TableHeadTwist


class TestLearning:
    @pytest.mark.parametrize("method", METHODS)
    def test_every_method_brings_the_proposal_to_sigma(self, method):
        trainer = make_trainer(method)
        before = divergence(trainer.target, trainer.twist)
        list(trainer.updates(120))
        after = divergence(trainer.target, trainer.twist)
        assert before > 0.1
        assert after < 0.25 * before

    def test_a_sum_of_losses(self):
        trainer = make_trainer({"ctl": 1.0, "rl": 0.5})
        update = trainer.update()
        assert set(update.losses) == {"ctl", "rl"}
        assert trainer.twist.method == "ctl+rl"

    def test_what_it_learned_from_is_said(self):
        trainer = make_trainer()
        said = [update.positives for update in trainer.updates(REPLAY_EVERY)]
        assert said[: REPLAY_EVERY - 1] == ["weighted batch"] * (REPLAY_EVERY - 1)
        assert said[-1] == f"{REPLAY_EVERY + 1} weighted batches"
        assert isinstance(trainer.positives, ReplayedPositives)

    def test_more_steps_on_each_batch_learn_more_from_it(self):
        few, many = (make_trainer("rl", steps=steps) for steps in (1, 5))
        for trainer in (few, many):
            list(trainer.updates(20))
        assert many.done == 20
        assert divergence(many.target, many.twist) < 0.7 * divergence(few.target, few.twist)

    def test_no_hit_is_counted_and_skipped(self):
        trainer = make_trainer(target=rare(7), batch_size=4, positives=WeightedPositives(), seed=1)
        before = parameters(trainer).clone()
        update = trainer.update()
        assert (update.skipped, update.hits, update.losses) == (True, 0, {})
        assert update.log_z == -math.inf
        assert trainer.skipped == 1
        assert torch.equal(parameters(trainer), before)

    @pytest.mark.parametrize("method", ["rl", "ppo"])
    def test_values_are_not_learned_from_a_batch_without_a_hit(self, method):
        trainer = make_trainer(method, target=rare(7), batch_size=4, seed=1)
        before = parameters(trainer).clone()
        assert all(update.skipped for update in trainer.updates(2))
        assert torch.equal(parameters(trainer), before)

    def test_the_level_is_that_of_the_first_batch_with_a_hit(self):
        numbers = {"batch_size": 3, "learning_rate": 1e-9, "averaging": 0, "seed": 1}
        trainer = make_trainer("rl", target=rare(2), **numbers)
        while not trainer.history or trainer.history[-1].skipped:
            update = trainer.update()
        assert trainer.skipped > 0
        how = {"num_particles": 2, "twist": trainer.twist, "dead_runs": "keep"}
        started = tw.run_smc(trainer.target, seed=0, **how)
        assert float(started.columns.log_psi[0, 0, 0]) == pytest.approx(update.log_z, abs=1e-6)

    def test_it_learns_from_no_noise_that_runs_have(self):
        trainer = make_trainer(batch_size=8)
        drawn, _ = trainer._batches.draw(0)
        found = tw.run_smc(trainer.target, num_particles=8, rule="never", seed=0)
        assert not torch.equal(found.paths("tokens").reshape(8, -1), drawn.tokens)

    def test_a_gradient_that_is_not_finite_is_told_and_changes_nothing(self):
        target = table_target(3, 3, seed=21)
        target.potential.log_table += 100.0
        trainer = make_trainer("cd", target=target)
        trainer.twist.float()
        with torch.no_grad():
            for parameter in trainer.twist.parameters():
                parameter += 90.0
        before = parameters(trainer).clone()
        with pytest.raises(FloatingPointError, match=r"gradient's length is (nan|inf) at update 1"):
            trainer.update()
        assert torch.equal(parameters(trainer), before)

    def test_the_critic_trains(self):
        trainer = make_trainer("ppo")
        first = trainer.update().losses["critic"]
        list(trainer.updates(60))
        assert trainer.history[-1].losses["critic"] < 0.7 * first
        assert float(trainer._policy.critic.by_step.detach().abs().max()) > 0.1

    def test_dpg_and_ppo_give_proposals_only(self):
        for method in ("dpg", "ppo"):
            trainer = make_trainer(method)
            trainer.update()
            assert trainer.twist.proposal_only
            with pytest.raises(ValueError, match="cannot weigh"):
                tw.run_smc(trainer.target, num_particles=4, twist=trainer.twist)
            trace = tw.run_smc(
                trainer.target, num_particles=4, proposal=tw.TwistInduced(trainer.twist)
            )
            assert trace.info.rule == "never"


BATCH = Everything(unit_target()).samples()


class TestEvaluation:
    def test_the_hook_is_asked_every_n_updates(self):
        trainer = make_trainer()
        asked = [
            update.number
            for update in trainer.updates(7, evaluate=lambda twist: twist.method, every=3)
            if update.evaluation == "ctl"
        ]
        assert asked == [3, 6]
        assert [u.evaluation for u in trainer.history].count("ctl") == 2

    def test_training_stops_on_a_small_gap(self):
        trainer = make_trainer()
        exact = trainer.target.exact_samples(60, seed=9, progress=False).tokens

        def evaluate(twist):
            return log_z_bounds(
                trainer.target,
                twist=twist,
                proposal=tw.TwistInduced(),
                num_particles=2,
                num_runs=60,
                exact_samples=exact,
            )

        assert evaluate(trainer.twist).gap > 0.05
        taken = list(trainer.updates(300, evaluate=evaluate, every=10, stop_gap=0.02))
        assert len(taken) < 300
        assert taken[-1].evaluation.gap <= 0.02

    def test_a_gap_needs_a_measure(self):
        with pytest.raises(ValueError, match="needs evaluate"):
            list(make_trainer().updates(3, stop_gap=0.1))


class TestPool:
    def pool(self, size=7):
        tokens = torch.arange(size).unsqueeze(1)
        return ExactPool(tokens, torch.zeros(size, dtype=torch.float64), seed=3)

    def test_each_round_deals_every_sample_once(self):
        dealt = [self.pool().draw(u, 3, BATCH).tokens[:, 0].tolist() for u in range(7)]
        flat = [token for hand in dealt for token in hand]
        rounds = [flat[at : at + 7] for at in (0, 7, 14)]
        assert all(sorted(round_) == list(range(7)) for round_ in rounds)
        assert rounds[0] != rounds[1]

    def test_more_than_the_pool_holds(self):
        drawn = self.pool().draw(0, 20, BATCH)
        assert len(drawn) == 20
        assert torch.equal(drawn.tokens, self.pool().draw(0, 20, BATCH).tokens)

    def test_a_pool_of_exact_samples(self):
        target = unit_target()
        pool = ExactPool.by_rejection(target, 50, seed=1)
        assert torch.equal(pool.log_phi, target.log_phi(pool.tokens))


class TestRefused:
    def test_an_unknown_method(self):
        with pytest.raises(ValueError, match=r"method must be one of cd, ctl, .*; got 'ctrl'"):
            resolve_method("ctrl")

    def test_methods_that_share_no_batch(self):
        with pytest.raises(ValueError, match="different proposals"):
            resolve_method({"ctl": 1.0, "sixo": 1.0})
        with pytest.raises(ValueError, match="ppo takes several steps"):
            resolve_method({"ctl": 1.0, "ppo": 1.0})
        with pytest.raises(ValueError, match="at least one loss"):
            resolve_method({})

    def test_a_twist_that_cannot_learn(self):
        with pytest.raises(TypeError, match="trainable form such as"):
            TwistTrainer(unit_target(), tw.exact(unit_target()).optimal_twist())

    def test_fudge_without_a_sigmoid(self):
        with pytest.raises(ValueError, match="link='sigmoid'"):
            TwistTrainer(
                unit_target(), TableHeadTwist(unit_target().lm, num_steps=3), method="fudge"
            )

    def test_numbers(self):
        with pytest.raises(ValueError, match="batch_size must be an integer of at least 2; got 1"):
            make_trainer(batch_size=1)
        with pytest.raises(ValueError, match=r"learning_rate must be a number in \(0, inf\)"):
            make_trainer(learning_rate=0.0)
        for norm in (0.0, -10.0, math.nan):
            with pytest.raises(
                ValueError, match=r"max_gradient_norm must be a number in \(0, inf\]; got"
            ):
                make_trainer(max_gradient_norm=norm)
        make_trainer(max_gradient_norm=math.inf).update()
        with pytest.raises(ValueError, match="n must be an integer"):
            list(make_trainer().updates(0))

    def test_several_steps_of_a_method_that_takes_its_own(self):
        with pytest.raises(ValueError, match=r"steps=2 .* PPOSettings\(epochs=2\)"):
            make_trainer("ppo", steps=2)

    def test_samples_of_a_run_that_resampled(self):
        trace = tw.run_smc(unit_target(), num_particles=8, rule="always", seed=1)
        with pytest.raises(ValueError, match="without resampling"):
            Samples.of_trace(trace)

    def test_a_sum_has_a_name(self):
        named, spelt = make_trainer("ctl+dpg"), make_trainer({"ctl": 1.0, "dpg": 10.0})
        for trainer in (named, spelt):
            list(trainer.updates(3))
        assert torch.equal(parameters(named), parameters(spelt))
        assert not named.twist.proposal_only
        with pytest.raises(ValueError, match=r"the loss must be one of cd, ctl, dpg, .*'ctl\+dpg'"):
            resolve_method({"ctl+dpg": 1.0})

    def test_every_recipe_has_a_name(self):
        assert set(METHODS) == {*RECIPES, *SUMS, "ppo"}


def test_a_head_on_a_transformers_model(checkpoint):
    lm = tw.HuggingFaceLM.from_pretrained(checkpoint("gpt2"))
    favoured = tw.TokenFunction(
        lambda tokens: 1.5 * ((tokens % 3 == 0).sum(-1) - 6.0).double(), log_phi_max=0.0
    )
    target = tw.Target(lm, favoured, prompt="once upon", num_steps=6)
    pool = ExactPool.by_rejection(target, 1000, seed=1)
    exact = ExactPool.by_rejection(target, 400, seed=2).tokens
    twist = tw.LinearHeadTwist(lm)

    def measure():
        return log_z_bounds(
            target,
            proposal=tw.TwistInduced(twist),
            rule="never",
            num_particles=1,
            num_runs=400,
            exact_samples=exact,
        )

    before = measure()
    trainer = TwistTrainer(target, twist, learning_rate=0.003, positives=pool)
    updates = list(trainer.updates(60))
    after = measure()
    assert updates[-1].positives == "1000 exact samples"
    error = math.hypot(before.gap_standard_error, after.gap_standard_error)
    assert 0.5 * before.gap - after.gap > 4.5 * error
    assert all(p.grad is None for p in lm.model.parameters())
