"""Controls, presets, runs and two runs side by side, without a browser."""

import re
import threading
from dataclasses import asdict

import pytest
import torch

import tsmc_widgets as tw
from tsmc_widgets.errors import UnknownTokenError
from tsmc_widgets.evaluation.run_quality import judge_run
from tsmc_widgets.experiments.execute import start_spec
from tsmc_widgets.models.tabular import TabularLM
from tsmc_widgets.smc.exact import exact
from tsmc_widgets.targets.description import parse_potential
from tsmc_widgets.widgets.controls import split_words
from tsmc_widgets.widgets.particle_view import ParticleView
from tsmc_widgets.widgets.run_page import Pinned, compare, explain_dead
from tsmc_widgets.widgets.watch import (
    EXAMPLES,
    NOTHING_ASKED,
    PRESETS,
    Controls,
    Judges,
    PresetBar,
    RunSettings,
    WatchSMC,
)

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
def dead_end():
    """A model that never writes b."""
    return TabularLM.markov([1.0, 0.0], [[1.0, 0.0], [1.0, 0.0]], symbols="ab", separator=" ")


@pytest.fixture
def dead(dead_end):
    """A run on it that asks for b."""
    target = tw.Target(dead_end, tw.ContainsToken("b"), prompt="a", num_steps=3)
    return tw.run_smc(target, num_particles=4, dead_runs="keep")


class Stars:
    """A classifier that counts the letter a."""

    labels = tuple(f"{n} star{'s' * (n > 1)}" for n in range(1, 6))

    def logits(self, texts):
        return torch.tensor([[0.5 * n * text.count("a") for n in range(5)] for text in texts])


class Hostility:
    """A classifier with a scalar logit: how many b."""

    labels = ("hostility",)

    def logits(self, texts):
        return torch.tensor([[text.count("b") - 2.0] for text in texts])


JUDGES = Judges(Stars(), Hostility())


def test_words_are_split_at_commas():
    assert split_words(" castle, old king ,, ") == ["castle", "old king"]


@pytest.mark.parametrize(
    ("values", "described"),
    [
        ({"stars": 0}, "1"),
        ({"stars": 3, "star_beta": 2.5}, "p(3 stars | text)^2.5"),
        ({"stars": 3, "star_beta": 0.0}, "1"),
        ({"stars": 0, "contains": "a, b"}, 'contains "a" × contains "b"'),
        ({"stars": 0, "avoids": "a, b"}, 'avoids "a" or "b"'),
        ({"stars": 0, "hostility": "threshold", "hostility_at_least": 1.5}, "≥ 1.5"),
        ({"stars": 0, "hostility": "tempered", "hostility_beta": 2.0}, "exp(2 "),
        ({"stars": 0, "hostility": "tempered", "hostility_beta": -2.0}, "p(not hostility | text)"),
        ({"stars": 0, "hostility": "tempered", "hostility_beta": 0.0}, "1"),
    ],
)
def test_potential_of_the_controls(values, described):
    assert described in parse_potential(RunSettings(**values).factors(JUDGES)).describe()


def test_judges_that_are_not_there_ask_nothing():
    settings = RunSettings(stars=5, hostility="threshold")
    assert settings.factors(Judges(None, None)) == [{"kind": "Constant"}]


@pytest.mark.parametrize(
    "values", [{"stars": 6}, {"hostility": "x"}, {"twist": "x"}, {"proposal": "x"}]
)
def test_unknown_choices_are_refused(values):
    with pytest.raises(ValueError, match="must be one of"):
        RunSettings(**values)


def test_word_that_cannot_be_written_is_named(lm):
    with pytest.raises(UnknownTokenError, match="No text can contain “zebra”"):
        RunSettings(contains="zebra", stars=0).target(lm, JUDGES)


@pytest.fixture
def watch(opened, lm):
    settings = {"prompt": "a", "contains": "b", "num_steps": 6, "num_particles": 16, "seed": 3}
    return opened(WatchSMC, lm, judges=QUIET, **settings)


def move(watch, **settings):
    """Move controls, and wait for the run."""
    watch.set(**settings)
    assert watch.wait(20)


def test_first_run_is_shown_with_its_exact_log_z(watch):
    header = watch.view.header
    assert (header["steps_done"], header["num_particles"]) == (6, 16)
    assert header["target"] == 'φ = contains "b"'
    assert watch.view.status["state"] == "done"
    assert header["exact_log_z"] == pytest.approx(exact(watch.target).log_z)
    assert len(watch.trace.tables) == 6
    assert watch.trace.log_z == watch.session.trace.log_z
    assert watch.target is watch.session.target


def test_moving_a_control_runs_again(watch):
    before = watch.view.header["id"]
    watch.controls.fields["num_particles"].value = 32
    watch.controls.fields["seed"].value = 4
    assert watch.wait(20)
    assert watch.settings.num_particles == 32
    assert watch.view.header["num_particles"] == 32
    assert watch.view.header["id"] > before
    assert watch.trace.info.seed == 4


def test_bad_input_is_said_and_the_last_run_stays(watch):
    move(watch, prompt="zebra")
    assert watch.view.status["state"] == "failed"
    assert "zebra" in watch.view.status["error"]
    assert "the one before" in watch.view.status["error"]
    assert watch.view.header["steps_done"] == 6
    move(watch, prompt="b")
    assert watch.view.status == {"state": "done", "text": watch.view.status["text"], "error": ""}


def test_dead_particles_leave_their_record(opened, dead_end):
    settings = {"prompt": "a", "contains": "b", "num_steps": 3, "num_particles": 4}
    watch = opened(WatchSMC, dead_end, judges=QUIET, **settings)
    assert watch.view.status["state"] == "failed"
    assert watch.view.status["text"] == "stopped at step 3 of 3"
    error = watch.view.status["error"]
    assert "All 4 weights are zero from step 3 on" in error
    assert "set proposal q to twist-induced" in error
    assert watch.view.header["steps_done"] == 3


def test_hold_and_steps_from_the_view(watch, monkeypatch):
    gate, step = threading.Event(), type(watch.session).step

    def gated(self):
        gate.wait(5)
        return step(self)

    monkeypatch.setattr(type(watch.session), "step", gated)
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


def test_controls_without_effect_are_out_of_the_way(opened, lm):
    settings = {"prompt": "a", "num_steps": 2, "num_particles": 2}
    watch = opened(WatchSMC, lm, judges=Judges(Stars(), None), **settings)
    fields = watch.controls.fields
    folds = watch.controls.sentence.children
    shown = {child for fold in folds for child in fold.children}
    assert fields["stars"] in shown
    assert fields["hostility"] not in shown
    assert fields["star_beta"].layout.display is None
    watch.set(stars=0)
    assert fields["star_beta"].layout.display == "none"
    watch.set(twist="none")
    assert fields["proposal"].disabled


@pytest.mark.parametrize(
    ("settings", "first"),
    [
        ({"twist": "none"}, "set twist ψ to look-ahead"),
        ({}, "set proposal q to twist-induced"),
        ({"proposal": "twist-induced"}, "take more particles"),
    ],
)
def test_dead_particles_come_with_a_remedy_that_is_not_yet_tried(dead, settings, first):
    assert f"Try to {first}" in explain_dead(dead, RunSettings(**settings).spec)


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


def test_a_pinned_run_stays_beside_the_next(watch):
    trace = watch.trace
    watch.bench.button.value = True
    assert watch.bench.pinned.trace.log_z == trace.log_z
    assert watch.view in watch.bench.children
    pinned = watch.bench.pinned_view
    assert watch.bench._views.children[0].children == (pinned,)
    assert pinned.header["steps_done"] == 6
    assert "nothing has changed yet" in watch.bench.sentence.value
    move(watch, twist="none")
    said = watch.bench.sentence.value
    assert "on the same noise: twist ψ look-ahead → none" in said
    assert f"{watch.trace.log_z:.2f}".replace("-", "−") in said
    assert watch.bench.pinned.trace.log_z == trace.log_z
    move(watch, seed=5)
    assert "on other noise" in watch.bench.sentence.value
    watch.bench.button.value = False
    assert watch.bench._views.children == ()
    assert watch.view.beside == {}
    assert watch.bench.pinned is None
    assert watch.bench.sentence.value == ""


def test_pinning_again_compares_with_the_newest_and_lists_them_all(watch):
    bench = watch.bench
    watch.pin()
    first = bench.pinned_view
    assert bench.table.children == ()
    move(watch, seed=4)
    bench.another.click()
    assert bench.pinned.spec.seed == 4
    assert bench.pinned_view is not first
    assert len(bench._views.children) == 1
    assert watch.view.beside["ess"] == bench.pinned.trace.ess.tolist()
    assert bench.button.value is True
    # A row for each: its sentence, its ESS, log Z_hat with its interval, ancestors.
    rows = bench.table.children[1:]
    for row, run in zip(rows, bench.kept, strict=True):
        said = [cell.value for cell in row.children[1:5]]
        assert "16 particles write 6 tokens after" in said[0]
        assert said[1] == f"<span>{run.ess}</span>"
        # The interval comes once seven more runs are done.
        assert said[2].startswith(f"<span>{run.estimate.split(' ')[0]}")
    watch.pin()
    assert len(bench.kept) == 2
    # A click compares with another, a click takes it away.
    rows[0].children[0].click()
    assert bench.pinned.spec.seed == 3
    assert "seed 3 → 4" in bench.sentence.value
    assert bench.table.children[1].children[0].disabled
    bench.table.children[1].children[5].click()
    assert [run.spec.seed for run in bench.kept] == [4]
    assert bench.pinned.spec.seed == 4
    assert bench.table.children == ()
    watch.unpin()
    assert (bench.pinned, bench.kept, bench.button.value) == (None, [], False)


def test_nothing_to_pin_is_said(watch):
    watch.bench.pin(None)
    assert "no finished run" in watch.bench.sentence.value
    assert watch.bench.button.value is False


def test_words_of_a_person_are_no_markup_in_the_sentence(watch):
    watch.pin()
    kept = watch.bench.pinned
    spec = RunSettings(prompt="<img src=x onerror=hacked=1>").spec
    watch.bench.compare(Pinned(kept.trace, spec, 0.1))
    assert "<img" not in watch.bench.sentence.value
    assert "&lt;img" in watch.bench.sentence.value


def test_the_sentence_has_the_numbers_of_both_runs(watch):
    a = Pinned(watch.trace, watch.settings.spec, 1.0)
    move(watch, num_particles=32)
    b = Pinned(watch.trace, watch.settings.spec, 2.5)
    said = compare(a, b).replace("−", "-")
    assert "K 16 → 32" in said
    assert "1.0 → 2.5 s" in said
    first, second, difference = map(
        float, re.search(r"log Ẑ (\S+)(?: ± \S+ s\.e\.)? → (\S+).*?\((\S+) nats\)", said).groups()
    )
    assert first == pytest.approx(a.trace.log_z, abs=0.006)
    assert second == pytest.approx(b.trace.log_z, abs=0.006)
    assert difference == pytest.approx(b.trace.log_z - a.trace.log_z, abs=0.006)
    assert f"ESS at the end {float(a.trace.ess[-1]):.1f} of 16" in said


def test_dead_runs_are_compared_too(dead):
    run = Pinned(dead, RunSettings().spec, 0.0)
    said = compare(run, run)
    assert "log Ẑ −∞ → −∞" in said


def test_lessons_set_every_control_that_they_are_about():
    controls = Controls(RunSettings(avoids="x", seed=9), Judges("stars", "host"), lambda _: None)
    own = {name: preset for name, preset in PRESETS.items() if preset.values is not None}
    view = ParticleView()
    bar = PresetBar(view, lambda preset: controls.set(**preset.values), own)
    for number, (name, button) in enumerate(bar.buttons.items(), 1):
        button.click()
        bar.show(controls.settings.spec)
        assert controls.settings.spec == PRESETS[name].spec
        assert button.button_style == "info"
        assert sum(b.button_style == "info" for b in bar.buttons.values()) == 1
        # Nothing is asked about the run before, which is still on show.
        assert view.lesson.get("name") != name
        bar.ask(controls.settings.spec)
        asked = {field: view.lesson[field] for field in ("name", "number", "of", "question")}
        question = PRESETS[name].question
        assert asked == {"name": name, "number": number, "of": len(own), "question": question}
    controls.fields["num_steps"].value = 7
    bar.show(controls.settings.spec)
    assert not any(button.button_style for button in bar.buttons.values())
    assert view.lesson == {}


def test_next_chooses_the_lesson_after_the_one_on_show():
    chosen, view = [], ParticleView()
    bar = PresetBar(view, lambda preset: chosen.append(preset))
    for number, preset in enumerate(PRESETS.values(), 1):
        bar.show(preset.spec)
        bar.ask(preset.spec)
        view.lessons_done += 1
        assert len(chosen) == min(number, len(PRESETS) - 1)
    assert chosen == [*PRESETS.values()][1:]
    bar.show(RunSettings(seed=77).spec)
    view.lessons_done += 1
    assert len(chosen) == len(PRESETS) - 1


@pytest.mark.slow
def test_only_the_good_twist_makes_log_z_vary_less():
    def spread(spec):
        return float(start_spec(spec.with_(num_runs=40)).run().log_z.std())

    good = PRESETS["A good twist"].spec
    assert spread(good) < 0.5 * spread(good.with_(method="none", proposal=""))
    full = PRESETS["A full ESS, and no gain"].spec
    assert spread(full) > 0.7 * spread(PRESETS["Late evidence"].spec)


@pytest.fixture(scope="module")
def lessons():
    """The run of every lesson on the model that ships."""
    return {name: start_spec(preset.spec).run() for name, preset in PRESETS.items()}


def measured(trace, measure, step):
    """What a lesson asks for, from the trace alone."""
    if measure == "ess":
        return float(trace.ess[step - 1]) if step else trace.num_particles
    assert step == trace.num_steps
    return int(trace.surviving_ancestors()[0]) if measure == "ancestors" else max(trace.weights)


RIGHT = {
    "Three texts": "over two thirds", "Late evidence": "fewer than 8", "Why SIS fails": "It falls",
    "Resampling": "It rises", "What resampling costs": "at most 6",
    "A full ESS, and no gain": "at most 6", "A bad twist": "It falls",
    "The best twist weighs": "8 to 60", "The best twist draws": "more than 60",
    "A good twist": "more than 32",
}  # fmt: skip


@pytest.mark.slow
def test_each_question_has_the_answer_that_its_text_explains(lessons):
    assert [*RIGHT] == [*PRESETS]
    for name, preset in PRESETS.items():
        found = measured(lessons[name], preset.measure, preset.step)
        found -= measured(lessons[name], preset.measure, preset.since) if preset.since else 0
        fitting = [words for words, low in preset.choices if low is None or found >= low]
        assert fitting[-1] == RIGHT[name]
    resampling = lessons["Resampling"]
    assert resampling.ess[8] < 32
    assert resampling.columns.resampled[0, 9]
    three = lessons["Three texts"].columns.log_psi[0, -1].tolist()
    assert sorted(three) == pytest.approx([-4, -2, 0])
    best = lessons["The best twist draws"]
    assert best.log_z == pytest.approx(tw.exact(tw.load_problem("rainy-week").target()).log_z)


@pytest.mark.slow
def test_each_lesson_shows_what_it_says(lessons):
    late, full = lessons["Late evidence"], lessons["A full ESS, and no gain"]
    assert late.ess[:-1].min() == pytest.approx(64)
    assert late.ess[-1] < 8
    assert not late.columns.resampled.any()
    assert full.ess[-1] > 48
    found = judge_run(full)
    assert found.fresh_at is not None
    assert found.families < 32
    assert all("castle" in text for text, w in zip(full.texts(), full.weights) if w > 0.001)  # noqa: B905
    good = judge_run(lessons["A good twist"], spread=0.06)
    assert good.level in ("good", "fair")  # One heavy weight of 64 is enough for the latter.
    assert good.families > 32
    sis, costs = lessons["Why SIS fails"], lessons["What resampling costs"]
    assert sis.ess[-1] < 16
    assert sis.ess[12] < 20
    assert costs.ess[-1] > 32
    assert costs.surviving_ancestors()[0] <= 6
    bad = lessons["A bad twist"]
    assert bad.ess[-1] < 4
    assert bad.log_z < sis.log_z - 5
