"""The training widget without a browser: controls and presses in, curves and status out."""

import re

import pytest
from gating import Gate
from widgets.conftest import press

import tsmc_widgets as tw
from tsmc_widgets.experiments.spec import METHODS as COMPARED
from tsmc_widgets.experiments.spec import TEXT_METHODS
from tsmc_widgets.learning.objectives import METHODS as LEARNED
from tsmc_widgets.targets import functions
from tsmc_widgets.twists.storage import load_twist
from tsmc_widgets.widgets.front_end import CompareView
from tsmc_widgets.widgets.session import error_text
from tsmc_widgets.widgets.train_page import TrainControls, TrainSession
from tsmc_widgets.widgets.training_run import METHOD_LABELS, MethodRun, TrainSettings

TOY = "rainy-week"


@pytest.fixture
def session(opened):
    return opened(TrainSession, TOY, num_updates=20, batch_size=20)


def test_every_method_has_a_name_and_a_look_of_its_own():
    assert set(METHOD_LABELS) == {*LEARNED} - {"rl_sigma"}
    looks = re.findall(
        r'^  "?([\w+-]+)"?: \{ light: .* dash: (.*), marker: (.*) \},$',
        CompareView._esm,
        flags=re.MULTILINE,
    )
    drawn = {*COMPARED} - {*TEXT_METHODS, "saved"}
    assert {name for name, *_ in looks} == drawn
    assert len({(dash, marker) for _, dash, marker in looks}) == len(looks)


def test_start_trains_and_a_second_start_goes_on(session):
    assert session.view.status["state"] == "idle"
    press(session, "start")
    assert session.wait(60)
    view = session.view
    assert view.status["state"] == "done"
    assert view.status["text"].startswith("update 20 of 20 · ")
    assert "500 exact samples" in view.status["text"]
    assert view.curves["racers"][0]["done"] == 20
    assert view.looks["racers"][0]["at"] == 20
    press(session, "start")
    assert session.wait(60)
    assert view.curves["racers"][0]["done"] == 40
    assert [update.number for update in session.trainers["ctl"].history] == list(range(1, 41))


def test_pause_acts_within_one_update_and_stop_keeps_all(session, monkeypatch):
    gate = Gate(monkeypatch, MethodRun, "update")
    session.start()
    assert gate.has_begun()
    press(session, "pause")
    gate.open.release()
    assert session.wait(20)
    assert session.view.status["state"] == "paused"
    assert len(session.trainers["ctl"].history) == 1
    press(session, "start")
    assert gate.has_begun()
    press(session, "stop")
    gate.open.release(99)
    assert session.wait(20)
    assert session.view.status["state"] == "stopped"
    assert len(session.trainers["ctl"].history) == 2
    press(session, "start")
    assert session.wait(60)
    assert len(session.trainers["ctl"].history) == 20


def test_an_error_without_words_is_named():
    assert error_text(MemoryError(), "").startswith("MemoryError\n")
    assert error_text(ValueError("no"), "").startswith("no\n")


def test_moved_controls_are_said_and_can_be_undone(session):
    assert session.train(5, timeout=60)
    session.controls.fields["method"].value = "rl"
    session.controls.rivals["nvi"].value = True
    assert session.view.status["stale"] == "method, race"
    assert session.view.curves["racers"][0]["method"] == "ctl"
    press(session, "undo")
    assert session.view.status["stale"] == ""
    assert session.settings.methods == ("ctl",)
    session.set(method="rl", rivals=("nvi",))
    press(session, "start")
    assert session.wait(60)
    assert [racer["method"] for racer in session.view.curves["racers"]] == ["rl", "nvi"]
    assert session.view.status["stale"] == ""


def test_updates_are_no_reason_to_begin_anew(session):
    assert session.train(5, timeout=60)
    session.set(num_updates=40)
    assert session.stale == ""
    press(session, "restart")
    assert session.wait(60)
    assert len(session.trainers["ctl"].history) == 40


def test_train_waits_for_so_many_updates(session):
    assert session.train(7, timeout=60)
    twist = session.twist
    assert session.train(5, timeout=60)
    assert session.train(9, timeout=60)
    assert session.twist is twist
    assert len(session.trainers["ctl"].history) == 9
    assert [done for done, _ in session.bounds["ctl"]] == [0, 7, 9]


def test_save_writes_a_twist_that_loads(session, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    press(session, "save")
    assert "press Start first" in session.view.status["error"]
    session.train(3, timeout=60)
    session.view.folder = "one"
    press(session, "save")
    assert session.view.status["error"] == ""
    assert session.view.status["note"] == "saved to one"
    twist = load_twist(tmp_path / "one", session.target.lm)
    assert twist.method == "ctl"
    assert len(twist.card["history"]) == 3
    session.set(rivals=("dpg",))
    session.train(2, timeout=60)
    session.save(tmp_path / "race")
    assert load_twist(tmp_path / "race" / "dpg", session.target.lm).proposal_only


def test_errors_are_shown_and_what_was_learned_stays(session, monkeypatch):
    session.train(3, timeout=60)

    def fail(self):
        raise FloatingPointError("the loss is nan")

    with monkeypatch.context() as patch:
        patch.setattr(MethodRun, "update", fail)
        press(session, "start")
        with pytest.raises(FloatingPointError):
            session.wait(20)
    assert session.view.status["state"] == "failed"
    assert "the loss is nan\nWhat was learned stays" in session.view.status["error"]
    press(session, "start")
    assert session.wait(60)
    assert session.view.status["error"] == ""
    press(session, "dance")
    assert "act must be one of" in session.view.status["error"]


def test_one_training_at_a_time(session, opened):
    session.set(num_updates=100_000)
    session.start()
    opened(TrainSession, TOY)
    assert session.wait(20)
    assert session.view.status["state"] == "stopped"


def test_controls_follow_the_problem_and_tell_once():
    told = []
    controls = TrainControls(TrainSettings(), told.append)
    controls.fields["problem"].value = TOY
    assert controls.fields["form"].options == ("table",)
    assert controls.fields["learning_rate"].value == 0.05
    assert [settings.problem for settings in told] == [TOY]
    controls.set(problem="5-star reviews", form="linear head", learning_rate=0.02)
    assert controls.fields["learning_rate"].value == 0.02
    assert len(told) == 2
    assert controls.settings.problem == "five-star-review-beta-8"
    controls.rivals["rl"].value = True
    controls.fields["method"].value = "rl"
    assert controls.settings.methods == ("rl",)
    assert controls.rivals["rl"].disabled
    assert controls.rivals["rl"].value
    assert not controls.rivals["ctl"].disabled
    assert not controls.rivals["ctl"].value
    with pytest.raises(ValueError, match="the control must be one of"):
        controls.set(form2="x")


def test_a_problem_of_ones_own_is_trained_by_its_description(opened):
    source = "def log_phi(text):\n    return -float('rain' in text)\n"
    name = tw.register_function(functions.TypedFunction(source), name="rain of the tests")
    own = {
        "name": "own", "model": "table:rainy-week", "prompt": "sun", "num_steps": 2,
        "potential": [{"kind": "TextFunction", "function": name, "log_phi_max": 0}],
    }  # fmt: skip
    session = opened(TrainSession, own, num_updates=2, batch_size=10)
    assert dict(session.controls.fields["problem"].options)["own"] == session.settings.problem
    assert session.train(2, timeout=60)
    assert session.target.potential.describe() == f"exp({name}(text))"
    exact = tw.exact(session.target).log_z
    log_z, error = session.training.log_z
    assert abs(log_z - exact) < 4 * error + 1e-6
    assert session.view.header["problem"] == "own"
    assert len(session.view.looks["racers"][0]["points"][0]) == 5
    session.set(problem="rainy-week")
    session.set(problem=own)
    assert session.settings.problem == session.training.settings.problem
