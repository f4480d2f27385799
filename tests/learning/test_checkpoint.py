"""Equal arguments give equal bytes, and a training stopped anywhere goes on to the byte."""

import random

import pytest
import torch
from damage import flipped
from learning.tables import unit_target
from learning.trainers import make_trainer, parameters, resumed

from tsmc_widgets.errors import CheckpointError
from tsmc_widgets.evaluation import log_z_bounds
from tsmc_widgets.learning import trainer as trainer_module
from tsmc_widgets.learning.positives import ReplayedPositives, WeightedPositives
from tsmc_widgets.learning.trainer import TwistTrainer, read_checkpoint
from tsmc_widgets.twists import TableHeadTwist


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

    @pytest.mark.parametrize("method", ["ctl", "ppo", "rl"])
    def test_a_file_is_resumed_by_another_trainer(self, method, tmp_path):
        resumed(lambda: make_trainer(method), tmp_path / "training", 3, 4)

    def replayed(self, target):
        positives = ReplayedPositives(target, keep=4, start=64, on_policy_ess=2.0)
        return make_trainer(target=target, positives=positives)

    def test_what_is_remembered_is_part_of_the_state(self):
        whole, first, second = (self.replayed(unit_target()) for _ in range(3))
        list(whole.updates(14))
        list(first.updates(6))
        state = first.state()
        list(first.updates(8))
        first.load_state(state)
        second.load_state(state)
        for trainer in (first, second):
            list(trainer.updates(8))
            assert torch.equal(parameters(trainer), parameters(whole))

    def test_what_is_remembered_is_in_the_file(self, tmp_path):
        path = tmp_path / "training"
        resumed(lambda: self.replayed(unit_target()), path, 6, 8, into=make_trainer)

    @pytest.mark.parametrize("way", ["state", "file"])
    def test_parameters_set_by_hand_are_learned_from(self, way, tmp_path):
        whole, first = make_trainer(), make_trainer()
        for trainer in (whole, first):
            list(trainer.updates(5))
            with torch.no_grad():
                for parameter in trainer.twist.parameters():
                    parameter.fill_(0.25)
        if way == "state":
            first.load_state(first.state())
        else:
            first.load(first.save(tmp_path / "training"))
        whole.update()
        first.update()
        assert torch.equal(parameters(first), parameters(whole))

    def test_evaluations_that_hold_tensors_are_saved(self, tmp_path):
        trainer = make_trainer()

        def evaluate(twist):
            return log_z_bounds(trainer.target, num_particles=2, num_runs=3, seed=0, twist=twist)

        (update,) = trainer.updates(1, evaluate=evaluate, every=1)
        other = make_trainer()
        other.load(trainer.save(tmp_path / "training"))
        found = other.history[0].evaluation
        assert found["lower_log_z"] == update.evaluation.lower_log_z.tolist()

    def test_a_source_or_form_of_another_kind_is_refused(self, tmp_path):
        target = unit_target()
        trainer = make_trainer(target=target, positives=WeightedPositives())
        trainer.update()
        path = trainer.save(tmp_path / "training")
        with pytest.raises(CheckpointError, match=r"positives='WeightedPositives\(\)' and this"):
            make_trainer(target=target).load(path)
        other = TwistTrainer(
            target,
            TableHeadTwist(target.lm, num_steps=3, link="sigmoid"),
            batch_size=64,
            learning_rate=0.05,
            positives=WeightedPositives(),
        )
        with pytest.raises(CheckpointError, match=r"options=.*'link': 'log'.* and this"):
            other.load(path)

    def test_a_file_that_does_not_fit_changes_nothing(self, tmp_path, monkeypatch):
        trainer, other = make_trainer(), make_trainer()
        list(trainer.updates(2))
        path = trainer.save(tmp_path / "training")
        other.update()
        before, done = parameters(other).clone(), list(other.history)

        def cut(*arguments):
            state, pool = read_checkpoint(*arguments)
            return state | {"learning": state["learning"][:-1]}, pool

        monkeypatch.setattr(trainer_module, "read_checkpoint", cut)
        with pytest.raises(CheckpointError, match=r"does not fit this trainer: .*same arguments"):
            other.load(path)
        assert torch.equal(parameters(other), before)
        assert other.history == done

    def test_other_files_and_other_arguments_are_refused(self, tmp_path):
        trainer = make_trainer()
        trainer.update()
        path = trainer.save(tmp_path / "training")
        with pytest.raises(CheckpointError, match="seed=0 and this trainer has seed=4"):
            make_trainer(seed=4).load(path)
        with pytest.raises(CheckpointError, match="method"):
            make_trainer("nvi").load(path)
        several = make_trainer(steps=2)
        with pytest.raises(CheckpointError, match="steps=None and this trainer has steps=2"):
            several.load(path)
        with pytest.raises(CheckpointError, match="steps=2 and this trainer has steps=None"):
            make_trainer().load(several.save(tmp_path / "several"))
        data = path.read_bytes()
        for content in (b"", b"hello", data[: len(data) // 2], data[:-2]):
            path.write_bytes(content)
            with pytest.raises(CheckpointError, match="no checkpoint that this trainer can resume"):
                make_trainer().load(path)
        with pytest.raises(FileNotFoundError, match="no file"):
            make_trainer().load(tmp_path / "nothing")

    def test_a_flipped_bit_never_loads_as_another_training(self, tmp_path):
        trainer, other = make_trainer(), make_trainer()
        trainer.update()
        data = trainer.save(tmp_path / "training").read_bytes()
        dice, damaged = random.Random(0), tmp_path / "damaged"
        for _ in range(300):
            damaged.write_bytes(flipped(data, dice.randrange(8 * len(data))))
            with pytest.raises(CheckpointError, match="no checkpoint that this trainer can resume"):
                other.load(damaged)
        assert other.done == 0

    def test_leaving_the_loop_is_a_pause(self):
        whole, paused = make_trainer(), make_trainer()
        list(whole.updates(4))
        for update in paused.updates(4):
            if update.number == 2:
                break
        list(paused.updates(2))
        assert torch.equal(parameters(paused), parameters(whole))
