"""The live session without a browser: controls in, record and status out."""

import threading
from dataclasses import asdict

import pytest
import torch

from tsmc_widgets.models.tabular import TabularLM
from tsmc_widgets.smc.exact import exact
from tsmc_widgets.widgets.controls import EXAMPLES, NOTHING_ASKED, Controls
from tsmc_widgets.widgets.settings import Judges, RunSettings
from tsmc_widgets.widgets.workbench import WatchSMC, explain_death

QUIET = Judges(None, None)


@pytest.fixture
def lm():
    return TabularLM.markov(
        [0.6, 0.3, 0.1],
        [[0.5, 0.3, 0.2], [0.4, 0.4, 0.2], [0.7, 0.2, 0.1]],
        symbols="abc",
        separator=" ",
    )


@pytest.fixture
def watch(lm):
    watch = WatchSMC(
        lm, judges=QUIET, prompt="a", contains="b", num_steps=6, num_particles=16, seed=3
    )
    assert watch.wait(20)
    yield watch
    watch.close()


def test_first_run_is_shown_with_its_exact_log_z(watch):
    header = watch.view.header
    assert (header["steps_done"], header["num_particles"]) == (6, 16)
    assert header["target"] == 'φ = contains "b"'
    assert watch.view.status["state"] == "done"
    assert header["exact_log_z"] == pytest.approx(exact(watch.target).log_z)
    assert len(watch.trace.tables) == 6
    assert watch.trace.log_z == watch.session.trace.log_z
    assert watch.target is watch.session.target


def test_moving_a_control_runs_anew(watch):
    before = watch.view.header["id"]
    watch.controls.fields["num_particles"].value = 32
    watch.controls.fields["seed"].value = 4
    assert watch.wait(20)
    assert watch.settings.num_particles == 32
    assert watch.view.header["num_particles"] == 32
    assert watch.view.header["id"] > before
    assert watch.trace.info.seed == 4


def test_bad_input_is_said_and_the_last_run_stays(watch):
    watch.set(prompt="zebra")
    assert watch.wait(20)
    assert watch.view.status["state"] == "failed"
    assert "zebra" in watch.view.status["error"]
    assert "the one before" in watch.view.status["error"]
    assert watch.view.header["steps_done"] == 6
    watch.set(prompt="b")
    assert watch.wait(20)
    assert watch.view.status == {
        "state": "done",
        "text": watch.view.status["text"],
        "error": "",
    }


def test_dead_particles_leave_their_record(lm):
    lm = TabularLM.markov([1.0, 0.0], [[1.0, 0.0], [1.0, 0.0]], symbols="ab", separator=" ")
    watch = WatchSMC(lm, judges=QUIET, prompt="a", contains="b", num_steps=3, num_particles=4)
    assert watch.wait(20)
    assert watch.view.status["state"] == "failed"
    assert watch.view.status["text"] == "stopped at step 3 of 3"
    error = watch.view.status["error"]
    assert "All 4 weights are zero at step 3" in error
    assert "set proposal q to twist-induced" in error
    assert watch.view.header["steps_done"] == 3
    watch.close()


def test_hold_and_steps_from_the_view(lm):
    gate = threading.Event()

    class Slow(type(lm)):
        pass

    watch = WatchSMC(lm, judges=QUIET, prompt="a", contains="b", num_steps=6, num_particles=4)
    assert watch.wait(20)
    session, step = watch.session, type(watch.session).step

    def gated(self):
        gate.wait(5)
        return step(self)

    type(session).step = gated
    try:
        watch.set(seed=9)
        watch.view.hold = True
        gate.set()
        assert watch.wait(20)
        assert watch.view.status["state"] == "paused"
        done = watch.session.t
        assert done < 6
        watch.view.more += 1
        assert watch.wait(20)
        assert watch.session.t == done + 1
        watch.view.hold = False
        assert watch.wait(20)
        assert watch.session.t == 6
    finally:
        type(session).step = step
        watch.close()


def test_controls_without_effect_are_out_of_the_way(lm):
    class Stars:
        labels = ("1 star", "2 stars", "3 stars", "4 stars", "5 stars")

        def logits(self, texts):
            return torch.zeros(len(texts), 5)

    watch = WatchSMC(lm, judges=Judges(Stars(), None), prompt="a", num_steps=2, num_particles=2)
    fields = watch.controls.fields
    shown = {child for group in watch.controls.children for child in group.children}
    assert fields["stars"] in shown
    assert fields["hostility"] not in shown
    assert fields["star_beta"].layout.display is None
    watch.set(stars=0)
    assert fields["star_beta"].layout.display == "none"
    watch.set(twist="none")
    assert fields["proposal"].disabled
    watch.close()


@pytest.mark.parametrize(
    ("settings", "first"),
    [
        ({"twist": "none"}, "set twist ψ to look-ahead"),
        ({}, "set proposal q to twist-induced"),
        ({"proposal": "twist-induced"}, "take more particles"),
    ],
)
def test_dead_particles_come_with_a_remedy_that_is_not_yet_tried(watch, settings, first):
    assert f"Try to {first}" in explain_death(watch.trace, RunSettings(**settings))


def test_examples_set_many_controls_and_start_one_run():
    told = []
    controls = Controls(RunSettings(avoids="x", twist="none"), Judges("stars", "host"), told.append)
    assert controls.example.label == "my own"
    for name, example in EXAMPLES.items():
        controls.example.value = name
        assert len(told) == 1
        shown = asdict(told.pop())
        asked = NOTHING_ASKED | example | {"twist": "none"}
        assert {field: shown[field] for field in asked} == asked
        assert controls.example.value == name
    controls.fields["seed"].value = 7
    assert controls.example.value == name
    controls.fields["prompt"].value = "The"
    assert controls.example.label == "my own"


def test_a_control_that_is_not_there_is_named(watch):
    with pytest.raises(ValueError, match=r"the control must be one of prompt, .*; got 'betta'"):
        watch.set(betta=1.0)
