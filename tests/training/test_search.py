"""The search finds settings that learn, halves its field, and says what to call."""

import math

import pytest
import torch
from learning.tables import unit_target

import tsmc_widgets as tw
from training.search import search_settings
from tsmc_widgets.learning import FallingRate, TwistTrainer
from tsmc_widgets.twists.forms import make_twist


@pytest.fixture(scope="module")
def found():
    rounds = []
    result = search_settings(
        unit_target(),
        form="table",
        learning_rates=[1e-5, FallingRate(0.05), 1e-4],
        batch_sizes=[32, 64],
        first_sequences=640,
        num_held_out=200,
        on_round=lambda number, left: rounds.append((number, left)),
    )
    return result, rounds


def test_the_field_is_halved_and_the_texts_doubled(found):
    result, rounds = found
    assert rounds == [(1, 6), (2, 3), (3, 2), (4, 1)]
    for number, left in rounds:
        trials = [trial for trial in result.trials if trial.round == number]
        assert len(trials) == left
        assert [trial.gap for trial in trials] == sorted(trial.gap for trial in trials)
        assert {trial.updates * trial.batch_size for trial in trials} == {640 * 2 ** (number - 1)}
        going = {(str(t.learning_rate), t.batch_size) for t in trials if t.kept}
        after = {
            (str(t.learning_rate), t.batch_size) for t in result.trials if t.round == number + 1
        }
        assert going == after


def test_it_finds_what_learns(found):
    result, _ = found
    assert result.best.learning_rate == FallingRate(0.05)
    assert result.best.interval[1] < result.start.interval()[0]
    slow = [t for t in result.trials if t.round == 1 and t.learning_rate == 1e-5]
    assert all(t.interval[0] < result.start.mean < t.interval[1] for t in slow)
    assert all(t.interval[0] < t.gap < t.interval[1] for t in result.trials)


def test_it_says_what_to_call(found):
    result, _ = found
    names = {"FallingRate": FallingRate, "TwistTrainer": TwistTrainer, "make_twist": make_twist}
    trainer = eval(result.call, {"target": unit_target(), **names})
    assert trainer.learning_rate == FallingRate(0.05)
    assert trainer.batch_size == result.best.batch_size
    shown = str(result).splitlines()
    assert shown[0].startswith("untrained: gap ")
    assert len(shown) == 2 + len(result.trials) + 2
    assert shown[-1] == result.call


def test_a_training_that_breaks_down_is_last(monkeypatch):
    true = TwistTrainer._take

    def broken(self):
        if self.batch_size == 32:
            raise FloatingPointError("the loss is nan")
        return true(self)

    monkeypatch.setattr(TwistTrainer, "_take", broken)
    result = search_settings(
        unit_target(),
        form="table",
        learning_rates=[0.05],
        batch_sizes=[32, 64],
        first_sequences=64,
        num_held_out=20,
    )
    assert [t.gap == math.inf for t in result.trials if t.round == 1] == [False, True]
    assert result.best.batch_size == 64


def test_conditional_targets(checkpoint):
    lm = tw.HuggingFaceLM.from_pretrained(checkpoint("gpt2"))
    target = tw.Target(lm, tw.Infilling(num_tokens=1), prompt="once upon", num_steps=2)
    result = search_settings(
        target,
        form="conditional head",
        learning_rates=[None, 0.01],
        batch_sizes=[16],
        first_sequences=32,
        num_held_out=20,
    )
    assert len(result.trials) == 3
    assert torch.isfinite(torch.tensor([t.gap for t in result.trials])).all()
    with pytest.raises(ValueError, match="at least one learning rate"):
        search_settings(target, learning_rates=[])
