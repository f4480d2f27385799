"""Training under many observations at once: it learns, resumes to the byte, refuses what is off."""

import math

import pytest
import torch
from learning.trainers import parameters, resumed
from learning.worlds import EveryPair
from smc.observed import ConditionalTables, infilling
from smc.toys import table_target
from targets.toys import ThreeTones

import tsmc_widgets as tw
from tsmc_widgets.learning import TwistTrainer
from tsmc_widgets.learning.conditional import JointPositives, RetainedPositives
from tsmc_widgets.learning.objectives import METHODS
from tsmc_widgets.learning.positives import ExactPool, WeightedPositives
from tsmc_widgets.twists import TableHeadTwist


@pytest.fixture(scope="module")
def world():
    return EveryPair()


def make_trainer(method="ctl", *, target=None, seed=0, **options):
    twist = ConditionalTables(link="sigmoid" if method == "fudge" else "log")
    options = {"batch_size": 64, "observations": 16, "learning_rate": 0.05, **options}
    target = infilling() if target is None else target
    return TwistTrainer(target, twist, method=method, seed=seed, **options)


class TestLearning:
    @pytest.mark.parametrize("method", METHODS)
    def test_every_method_brings_each_proposal_to_its_sigma(self, world, method):
        trainer = make_trainer(method, target=world.target)
        before = world.divergence(trainer.twist)
        list(trainer.updates(150 if method == "cd" else 60))
        assert before > 0.05
        assert world.divergence(trainer.twist) < 0.4 * before

    @pytest.mark.parametrize(
        ("positives", "name"),
        [
            (RetainedPositives(4), "conditional SMC, 4 particles"),
            (WeightedPositives(), "weighted batch"),
        ],
        ids=["conditional SMC", "weighted"],
    )
    def test_other_positives(self, world, positives, name):
        trainer = make_trainer(target=world.target, positives=positives)
        before = world.divergence(trainer.twist)
        list(trainer.updates(60))
        assert trainer.history[-1].positives == name
        assert world.divergence(trainer.twist) < 0.4 * before

    @pytest.mark.parametrize(("size", "observations"), [(64, 32), (9, 3), (5, 1)])
    def test_each_observation_has_two_texts_or_a_few_more(self, world, size, observations):
        trainer = make_trainer(target=world.target, batch_size=size, observations=None)
        assert trainer._batches.observations == observations
        assert trainer._batches.particles * observations == size
        trainer.update()

    def test_an_update_says_what_it_saw(self, world):
        update = make_trainer(target=world.target).update()
        assert update.positives == "joint draws"
        assert update.hits == 16
        assert make_trainer("rl", target=world.target).update().hits == 64
        assert 1 <= update.ess <= 4
        assert math.isfinite(update.log_z)
        assert list(update.losses) == ["ctl"]

    def test_each_observation_gets_as_many_texts(self, world):
        trainer = make_trainer(target=world.target, observations=None, batch_size=40)
        batch, at_sigma = trainer._batches.draw(0)
        assert len(at_sigma) == trainer._batches.observations == 20
        assert batch.group.bincount().tolist() == [2] * 20


class TestBytes:
    @pytest.mark.parametrize("method", ["ctl", "fudge", "ppo"])
    def test_a_file_is_resumed_by_another_trainer(self, method, tmp_path):
        whole, _ = resumed(lambda: make_trainer(method), tmp_path / "training", 2, 3)
        other = make_trainer(method, seed=1)
        list(other.updates(5))
        assert not torch.equal(parameters(other), parameters(whole))

    def test_the_number_of_observations_belongs_to_it(self, tmp_path):
        trainer = make_trainer()
        trainer.update()
        path = trainer.save(tmp_path / "training")
        with pytest.raises(tw.errors.CheckpointError, match="observations=16 and this trainer"):
            make_trainer(observations=8).load(path)


class TestRefused:
    @pytest.mark.parametrize(
        ("method", "numbers", "message"),
        [
            ("ctl", {"observations": 64}, "ctl normalises weights among the texts of one"),
            ("nvi", {"observations": 64}, "nvi normalises weights among the texts of one"),
            ("ctl", {"observations": 10}, "batch_size must be a multiple of observations"),
            ("ctl", {"observations": 128}, "batch_size must be a multiple of observations"),
            ("sixo", {"observations": 8}, "observations must exceed the 8 texts"),
            ("fudge", {"observations": 1}, "observations must exceed the 64 texts"),
            ("ctl", {"observations": 0}, "observations must be an integer of at least 1; got 0"),
            (
                "dpg",
                {"observations": 64, "positives": WeightedPositives()},
                "WeightedPositives normalises weights",
            ),
        ],
    )
    def test_numbers(self, method, numbers, message):
        with pytest.raises(ValueError, match=message):
            make_trainer(method, **numbers)

    def test_one_text_for_each_is_enough_without_weights(self):
        for method in ("rl", "dpg", "ppo", "sixo"):
            assert math.isfinite(make_trainer(method, observations=64).update().gradient_norm)

    def test_parts_that_do_not_fit(self):
        plain, target = table_target(3, 3, seed=1), infilling()
        with pytest.raises(TypeError, match="TableHeadTwist takes none: use ConditionalHeadTwist"):
            TwistTrainer(target, TableHeadTwist(target.lm, num_steps=3))
        with pytest.raises(TypeError, match=r"depends on an observation and .* has none"):
            TwistTrainer(plain, ConditionalTables())
        with pytest.raises(ValueError, match="observations=4 needs a target that waits"):
            TwistTrainer(plain, TableHeadTwist(plain.lm, num_steps=3), observations=4)
        with pytest.raises(TypeError, match="use ExactPool or WeightedPositives"):
            TwistTrainer(plain, TableHeadTwist(plain.lm, num_steps=3), positives=JointPositives())
        pool = ExactPool(torch.zeros(3, 3, dtype=torch.int64), torch.zeros(3).double())
        with pytest.raises(TypeError, match=r"must be JointPositives\(\), Retained.*; got ExactP"):
            make_trainer(positives=pool)
        with pytest.raises(ValueError, match="num_particles must be an integer of at least 2"):
            RetainedPositives(1)

    def test_a_power_has_no_joint_draw(self):
        target = infilling()
        power = tw.Target(target.lm, tw.Infilling(num_tokens=1) ** 2.0, prompt="", num_steps=3)
        with pytest.raises(ValueError, match="has no joint draw"):
            make_trainer(target=power)


@pytest.mark.parametrize("form", ["class, head", "tokens, body"])
@pytest.mark.parametrize("method", ["ctl", "ppo"])
def test_forms_on_a_transformers_model(form, method, gpt2):
    lm = gpt2
    if form == "class, head":
        potential, twist = tw.ClassConditional(ThreeTones()), tw.ConditionalHeadTwist
        options = {"num_classes": 3}
    else:
        potential, twist = tw.Infilling(num_tokens=2), tw.ConditionalBodyTwist
        options = {"observed_length": 2}
    target = tw.Target(lm, potential, prompt="once upon", num_steps=4)
    trainer = TwistTrainer(
        target, twist(lm, **options), method=method, batch_size=24, observations=6
    )
    updates = list(trainer.updates(2))
    assert all(update.gradient_norm > 0 for update in updates)
    assert all(p.grad is None for p in lm.model.parameters())
