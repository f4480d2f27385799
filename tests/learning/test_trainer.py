"""The training loop: it learns, stops anywhere, and goes on to the byte."""

import math
import sys

import pytest
import torch
from learning.tables import Everything
from models.checkpoints import make_checkpoint
from smc.toys import chain, table_target

import tsmc_widgets as tw
from tsmc_widgets.errors import CheckpointError
from tsmc_widgets.evaluation import log_z_bounds
from tsmc_widgets.learning.positives import ExactPool, WeightedPositives
from tsmc_widgets.learning.recipes import METHODS, RECIPES, resolve_method
from tsmc_widgets.learning.replay import REMIND, ReplayedPositives
from tsmc_widgets.learning.samples import Samples
from tsmc_widgets.learning.trainer import TwistTrainer
from tsmc_widgets.twists import TableHeadTwist


def unit_target():
    """A toy with phi <= 1, rejection possible."""
    target = table_target(3, 3, seed=21)
    table = target.potential.log_table
    table -= table.max() + 0.1
    target.potential.log_phi_max = 0.0
    return target


def make_trainer(method="ctl", *, target=None, seed=0, **options):
    target = unit_target() if target is None else target
    link = "sigmoid" if method == "fudge" else "log"
    twist = TableHeadTwist(target.lm, num_steps=target.num_steps, link=link)
    options = {"batch_size": 64, "learning_rate": 0.05, **options}
    return TwistTrainer(target, twist, method=method, seed=seed, **options)


def parameters(trainer):
    return torch.cat([p.detach().reshape(-1) for p in trainer._modules.parameters()])


def divergence(target, twist):
    """KL(sigma || q) of the twist-induced proposal, by enumeration."""
    world = Everything(target)
    log_q = world.scored(twist).log_q_psi.detach().sum(1)
    log_sigma = world.oracle.log_sigma
    return float((log_sigma.exp() * (log_sigma - log_q)).sum())


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
        said = [update.positives for update in trainer.updates(REMIND)]
        assert said[: REMIND - 1] == ["weighted batch"] * (REMIND - 1)
        assert said[-1] == f"{REMIND + 1} weighted batches"
        assert isinstance(trainer.positives, ReplayedPositives)

    def test_no_hit_is_counted_and_skipped(self):
        target = tw.Target(chain(), tw.MatchesRegex("c{7}"), prompt="a", num_steps=7)
        twist = TableHeadTwist(target.lm, num_steps=7, prompt_length=1)
        trainer = TwistTrainer(
            target, twist, batch_size=4, positives=WeightedPositives(), learning_rate=0.1
        )
        before = parameters(trainer).clone()
        update = trainer.update()
        assert (update.skipped, update.hits, update.losses) == (True, 0, {})
        assert update.log_z == -math.inf
        assert trainer.skipped == 1
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


class Stop:
    """Raises KeyboardInterrupt before the n-th line of the package."""

    def __init__(self, at):
        self.left = at

    def __call__(self, frame, event, arg):
        if "tsmc_widgets" not in frame.f_code.co_filename:
            return None
        if event == "line":
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
        return self


class TestBytes:
    @pytest.mark.parametrize("method", ["ctl", "rl", "ppo", "sixo"])
    def test_equal_arguments_give_equal_bytes(self, method):
        one, two = make_trainer(method), make_trainer(method)
        list(one.updates(5))
        list(two.updates(5))
        assert torch.equal(parameters(one), parameters(two))
        other = make_trainer(method, seed=1)
        list(other.updates(5))
        assert not torch.equal(parameters(one), parameters(other))

    @pytest.mark.parametrize("method", ["ctl", "ppo"])
    def test_a_state_is_resumed_by_another_trainer(self, method):
        whole, first, second = (make_trainer(method) for _ in range(3))
        list(whole.updates(7))
        list(first.updates(3))
        second.load_state(first.state())
        list(second.updates(4))
        assert torch.equal(parameters(second), parameters(whole))
        assert [u.losses for u in second.history] == [u.losses for u in whole.history]

    @pytest.mark.parametrize("method", ["ctl", "ppo", "rl"])
    def test_a_file_is_resumed_by_another_trainer(self, method, tmp_path):
        whole, first, second = (make_trainer(method) for _ in range(3))
        list(whole.updates(7))
        list(first.updates(3))
        second.load(first.save(tmp_path / "training"))
        assert second.history[:3] == first.history
        list(second.updates(4))
        assert torch.equal(parameters(second), parameters(whole))

    def test_other_files_and_other_arguments_are_refused(self, tmp_path):
        trainer = make_trainer()
        trainer.update()
        path = trainer.save(tmp_path / "training")
        with pytest.raises(CheckpointError, match="seed=0 and this trainer has seed=4"):
            make_trainer(seed=4).load(path)
        with pytest.raises(CheckpointError, match="method"):
            make_trainer("nvi").load(path)
        data = path.read_bytes()
        for content in (b"", b"hello", data[: len(data) // 2], data[:-1]):
            path.write_bytes(content)
            with pytest.raises(CheckpointError, match="no checkpoint of a trainer"):
                make_trainer().load(path)
        with pytest.raises(FileNotFoundError, match="no file"):
            make_trainer().load(tmp_path / "nothing")

    def test_an_interrupt_anywhere_loses_nothing(self):
        whole = make_trainer()
        list(whole.updates(3))
        at, interrupted = 1, 0
        while True:
            trainer = make_trainer()
            trainer.update()
            before = parameters(trainer).clone()
            sys.settrace(Stop(at))
            try:
                trainer.update()
                break
            except KeyboardInterrupt:
                interrupted += 1
            finally:
                sys.settrace(None)
            assert trainer.done == 1 or trainer.done == 2
            if trainer.done == 1:
                assert torch.equal(parameters(trainer), before)
            list(trainer.updates(3 - trainer.done))
            assert torch.equal(parameters(trainer), parameters(whole))
            at += 211
        assert interrupted > 5

    def test_leaving_the_loop_is_a_pause(self):
        whole, paused = make_trainer(), make_trainer()
        list(whole.updates(4))
        for update in paused.updates(4):
            if update.number == 2:
                break
        list(paused.updates(2))
        assert torch.equal(parameters(paused), parameters(whole))


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

    def test_a_twist_that_can_not_learn(self):
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
        with pytest.raises(ValueError, match="learning_rate must be positive"):
            make_trainer(learning_rate=0.0)
        with pytest.raises(ValueError, match="n must be an integer"):
            list(make_trainer().updates(0))

    def test_samples_of_a_run_that_resampled(self):
        trace = tw.run_smc(unit_target(), num_particles=8, rule="always", seed=1)
        with pytest.raises(ValueError, match="without resampling"):
            Samples.of_trace(trace)

    def test_every_recipe_has_a_name(self):
        assert set(METHODS) == {*RECIPES, "ppo"}


def test_a_head_on_a_transformers_model(tmp_path):
    lm = tw.load_language_model(make_checkpoint("gpt2", tmp_path))
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
