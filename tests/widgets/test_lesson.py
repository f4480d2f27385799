"""A training step by step, on the toy where everything is known: no thread, no widget."""

import math

import pytest

from tsmc_widgets.targets.exact_samples import ExactDraws
from tsmc_widgets.widgets import lesson as lessons
from tsmc_widgets.widgets import lesson as yardstick
from tsmc_widgets.widgets.lesson import (
    FORMS,
    HELD_OUT,
    PLENTY,
    PROBLEMS,
    Lesson,
    TrainSettings,
    enough,
)
from tsmc_widgets.widgets.train_record import encode_curves, encode_header, encode_looks, thin

RIVALS = ("fudge", "rl", "dpg")
TOY = "two days of rain (toy)"


@pytest.fixture(scope="module")
def target():
    return PROBLEMS[TOY].make()


def run(lesson):
    while not lesson.done:
        lesson.step()
    return lesson


@pytest.fixture(scope="module")
def raced():
    settings = TrainSettings(problem=TOY, method="nvi", rivals=RIVALS, num_updates=60)
    return run(Lesson(settings))


def test_every_method_closes_the_gap_of_the_toy(raced):
    assert [racer.method for racer in raced.racers] == ["nvi", "dpg", "fudge", "rl"]
    for racer in raced.racers:
        assert [done for done, _ in racer.bounds] == [0, 20, 40, 60]
        first, last = racer.bounds[0][1], racer.bounds[-1][1]
        error = math.hypot(first.gap_standard_error, last.gap_standard_error)
        assert first.gap - last.gap > 3 * error, racer.method
        assert racer.ess[-1][1] > racer.ess[0][1]
        # Between both bounds, as far as their errors tell.
        assert last.lower.mean - 4 * last.lower.standard_error < raced.log_z[0]
        assert last.upper.mean + 4 * last.upper.standard_error > raced.log_z[0]


def test_learned_and_optimal_line_up_where_the_method_fixes_psi(raced):
    found = {racer.method: racer.scatter["correlation"] for racer in raced.racers}
    assert min(found[name] for name in ("nvi", "rl", "fudge")) > 0.85
    assert found["dpg"] < min(found["nvi"], found["rl"])


def test_untrained_twists_write_what_the_model_writes():
    lesson = Lesson(TrainSettings(problem=TOY, rivals=("fudge",), num_updates=20))
    while not (lesson.racers and not lesson._todo):
        lesson.step()
    for racer in lesson.racers:
        assert racer.samples["texts"] == lesson.before["texts"]
        assert racer.samples["ess"] == pytest.approx(lesson.before["ess"], rel=1e-12)
        assert math.isnan(racer.scatter["correlation"])


def test_equal_settings_give_equal_trainings_at_any_pace():
    settings = TrainSettings(problem=TOY, num_updates=6, batch_size=20)
    once = run(Lesson(settings))
    twice = Lesson(settings)
    twice.goal = 3
    run(twice).goal = 6
    run(twice)
    assert [u.losses for u in once.racers[0].trainer.history] == [
        u.losses for u in twice.racers[0].trainer.history
    ]


def test_what_fails_is_tried_again(monkeypatch):
    lesson = Lesson(TrainSettings(problem=TOY, num_updates=1, batch_size=4))
    bound = lessons.log_z_bounds
    monkeypatch.setattr(lessons, "log_z_bounds", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(lesson)
    assert lesson.racers[0].bounds == []
    monkeypatch.setattr(lessons, "log_z_bounds", bound)
    assert [done for done, _ in run(lesson).racers[0].bounds] == [0, 1]


def test_rare_texts_are_not_waited_for(target, monkeypatch):
    draws = ExactDraws(target, seed=3, block=400)
    draws.extend()
    assert HELD_OUT < len(draws) < PLENTY
    assert not enough(draws)
    monkeypatch.setattr(yardstick, "MOST_DRAWS", 10)
    assert enough(draws)
    assert not enough(ExactDraws(target, seed=3))


def test_racers_remember_batches_of_their_own():
    lesson = Lesson(TrainSettings(problem="1-star reviews", rivals=("sixo",), batch_size=20))
    while not lesson.racers:
        lesson.step()
    one, two = (racer.trainer.positives for racer in lesson.racers)
    assert one is not two
    for racer in lesson.racers:
        racer.update()
    assert one._parts[0] is not two._parts[0]
    # What all begin with is weighed once.
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


@pytest.mark.parametrize("form", ["linear head", "MLP head", "own body"])
def test_forms_start_at_psi_one_on_the_shipped_model(form):
    target = PROBLEMS["1-star reviews"].make()
    twist = FORMS[form].make(target, "log", 0)
    rows = target.prompt_tokens.repeat(2, 3)
    log_psi = twist.log_psi(rows, len(target.prompt_tokens)).detach()
    assert float(log_psi.abs().max()) == 0.0


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
