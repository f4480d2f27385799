"""A training step by step, on the toy where everything is known: no thread, no widget."""

import math

import pytest

import tsmc_widgets as tw
from tsmc_widgets.targets.exact_samples import ExactDraws
from tsmc_widgets.widgets import training_run
from tsmc_widgets.widgets.train_page import encode_curves, encode_header, encode_looks, thin
from tsmc_widgets.widgets.training_run import (
    HELD_OUT,
    PLENTY,
    PROBLEM_LABELS,
    TrainingRun,
    TrainSettings,
    has_enough_held_out,
)

RIVALS = ("fudge", "rl", "dpg")
TOY = "rainy-week"


@pytest.fixture(scope="module")
def target():
    return tw.load_problem(TOY).target()


def run(training):
    while not training.done:
        training.step()
    return training


@pytest.fixture(scope="module")
def raced():
    settings = TrainSettings(problem=TOY, method="nvi", rivals=RIVALS, num_updates=60)
    return run(TrainingRun(settings))


def test_every_method_closes_the_gap_of_the_toy(raced):
    assert [one_run.method for one_run in raced.runs] == ["nvi", "dpg", "fudge", "rl"]
    for one_run in raced.runs:
        assert [done for done, _ in one_run.bounds] == [0, 20, 40, 60]
        first, last = one_run.bounds[0][1], one_run.bounds[-1][1]
        error = math.hypot(first.gap_standard_error, last.gap_standard_error)
        assert first.gap - last.gap > 3 * error, one_run.method
        assert one_run.ess[-1][1] > one_run.ess[0][1]
        # Between both bounds, as far as their errors tell.
        assert last.lower.mean - 4 * last.lower.standard_error < raced.log_z[0]
        assert last.upper.mean + 4 * last.upper.standard_error > raced.log_z[0]


def test_learned_and_optimal_line_up_where_the_method_fixes_psi(raced):
    found = {one_run.method: one_run.scatter["correlation"] for one_run in raced.runs}
    assert min(found[name] for name in ("nvi", "rl", "fudge")) > 0.85
    assert found["dpg"] < min(found["nvi"], found["rl"])


def test_untrained_twists_write_what_the_model_writes():
    training = TrainingRun(TrainSettings(problem=TOY, rivals=("fudge",), num_updates=20))
    while not (training.runs and not training._todo):
        training.step()
    for one_run in training.runs:
        assert one_run.samples["texts"] == training.before["texts"]
        assert one_run.samples["ess"] == pytest.approx(training.before["ess"], rel=1e-12)
        assert math.isnan(one_run.scatter["correlation"])


def test_the_mean_of_phi_is_told_in_nats_at_any_scale():
    training = TrainingRun(TrainSettings(problem=TOY))
    training.step()
    plain = training._sample(tw.Base())["log_mean_phi"]
    target = training.target
    tiny = target.potential * tw.Constant(-800.0)
    training.target = tw.Target(
        target.lm, tiny, prompt=target.prompt_tokens, num_steps=target.num_steps
    )
    moved = training._sample(tw.Base())["log_mean_phi"]
    assert moved.value == pytest.approx(plain.value - 800.0, abs=1e-9)
    assert moved.standard_error == pytest.approx(plain.standard_error, rel=1e-9)
    assert math.isfinite(plain.value)


def test_equal_settings_give_equal_trainings_at_any_pace():
    settings = TrainSettings(problem=TOY, num_updates=6, batch_size=20)
    once = run(TrainingRun(settings))
    twice = TrainingRun(settings)
    twice.goal = 3
    run(twice).goal = 6
    run(twice)
    assert [u.losses for u in once.runs[0].trainer.history] == [
        u.losses for u in twice.runs[0].trainer.history
    ]


def test_what_fails_is_tried_again(monkeypatch):
    training = TrainingRun(TrainSettings(problem=TOY, num_updates=1, batch_size=4))
    bound = training_run.log_z_bounds
    monkeypatch.setattr(training_run, "log_z_bounds", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(training)
    assert training.runs[0].bounds == []
    monkeypatch.setattr(training_run, "log_z_bounds", bound)
    assert [done for done, _ in run(training).runs[0].bounds] == [0, 1]


def test_rare_texts_are_not_waited_for(target, monkeypatch):
    draws = ExactDraws(target, seed=3, block=400)
    draws.extend()
    assert HELD_OUT < len(draws) < PLENTY
    assert not has_enough_held_out(draws)
    monkeypatch.setattr(training_run, "MOST_DRAWS", 10)
    assert has_enough_held_out(draws)
    assert not has_enough_held_out(ExactDraws(target, seed=3))


def test_methods_remember_batches_of_their_own(monkeypatch):
    monkeypatch.setattr(training_run, "MOST_DRAWS", 10)
    training = TrainingRun(
        TrainSettings(problem="one-star-review", rivals=("sixo",), batch_size=20)
    )
    while not training.runs:
        training.step()
    one, two = (one_run.trainer.positives for one_run in training.runs)
    assert one is not two
    for one_run in training.runs:
        one_run.update()
    assert one._parts[0] is not two._parts[0]
    # What all begin with is weighted once.
    assert one._parts[-1] is two._parts[-1]


def test_records_are_short_and_fit_json(raced):
    curves, looks, header = encode_curves(raced), encode_looks(raced), encode_header(raced)
    assert header["target"] == "exp(−2 |days of rain − 2|)"
    assert curves["log_z"] == [pytest.approx(raced.log_z[0], rel=1e-4), 0.0]
    assert len(curves["racers"]) == len(looks["racers"]) == 4
    first = curves["racers"][0]
    assert (first["done"], len(first["loss"]), len(first["bounds"])) == (60, 60, 4)
    points = thin([(i, float(i)) for i in range(2000)])
    assert len(points) == 400
    assert points[0] == [2.0, 2.0]
    assert thin([(1, math.inf)]) == [[1.0, None]]


def test_problems_are_named_as_everywhere_and_old_names_are_taken():
    for name, label in PROBLEM_LABELS.items():
        assert name in tw.PROBLEMS
        assert TrainSettings(problem=label) == TrainSettings(problem=name)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"problem": "poems"}, "problem must be one of"),
        ({"method": "rl_sigma"}, "method must be one of"),
        ({"form": "table"}, "form must be one of"),
        ({"batch_size": 1}, "batch_size"),
        ({"learning_rate": 2.0}, r"learning_rate must be from 1e-05 to 1, or 0 .* got 2.0"),
        ({"learning_rate": 1e-6}, "learning_rate must be from"),
        ({"learning_rate": -0.01}, "learning_rate must be from"),
        ({"learning_rate": float("nan")}, "learning_rate must be from"),
        ({"seed": 2**40}, "seed must be at most 2147483647; got 1099511627776"),
    ],
)
def test_bad_settings_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        TrainSettings(**settings)
