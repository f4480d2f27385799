"""Lessons and A/B: buttons in, settings, runs and sentences out."""

import re

import pytest

import tsmc_widgets as tw
from tsmc_widgets.models.tabular import TabularLM
from tsmc_widgets.widgets.controls import Controls
from tsmc_widgets.widgets.live_page import Pinned, compare
from tsmc_widgets.widgets.settings import Judges, RunSettings, make_session, make_target
from tsmc_widgets.widgets.workbench import PRESETS, PresetBar, WatchSMC, find_preset


@pytest.fixture
def watch():
    lm = TabularLM.markov(
        [0.6, 0.3, 0.1],
        [[0.5, 0.3, 0.2], [0.4, 0.4, 0.2], [0.7, 0.2, 0.1]],
        symbols="abc",
        separator=" ",
    )
    watch = WatchSMC(
        lm, judges=Judges(None, None), prompt="a", contains="b", num_steps=6, num_particles=16
    )
    assert watch.wait(20)
    yield watch
    watch.close()


def test_a_pinned_run_stays_beside_the_next(watch):
    trace = watch.trace
    watch.bench.button.value = True
    assert watch.bench.pinned.trace.log_z == trace.log_z
    pinned, live = watch.bench.children[1].children
    assert live is watch.view
    assert pinned.header["steps_done"] == 6
    assert "nothing has changed yet" in watch.bench.sentence.value
    watch.set(twist="none")
    assert watch.wait(20)
    said = watch.bench.sentence.value
    assert "on the same noise: twist ψ look-ahead → none" in said
    assert f"{watch.trace.log_z:.2f}".replace("-", "−") in said
    assert watch.bench.pinned.trace.log_z == trace.log_z
    watch.set(seed=5)
    assert watch.wait(20)
    assert "on other noise" in watch.bench.sentence.value
    watch.bench.button.value = False
    assert watch.bench.children[1].children == (watch.view,)
    assert watch.bench.pinned is None
    assert watch.bench.sentence.value == ""


def test_pinning_again_replaces_a(watch):
    watch.pin()
    first = watch.bench.pinned_view
    watch.set(seed=3)
    assert watch.wait(20)
    watch.pin()
    assert watch.bench.pinned.settings.seed == 3
    assert watch.bench.pinned_view is not first
    assert len(watch.bench.children[1].children) == 2
    assert watch.bench.button.value is True


def test_nothing_to_pin_is_said(watch):
    watch.bench.pin(None)
    assert "no finished run" in watch.bench.sentence.value
    assert watch.bench.button.value is False


def test_words_of_a_person_are_no_markup_in_the_sentence(watch):
    watch.pin()
    kept = watch.bench.pinned
    settings = RunSettings(prompt="<img src=x onerror=hacked=1>")
    watch.bench.compare(Pinned(kept.trace, settings, 0.1))
    assert "<img" not in watch.bench.sentence.value
    assert "&lt;img" in watch.bench.sentence.value


def test_the_sentence_has_the_numbers_of_both_runs(watch):
    a = Pinned(watch.trace, watch.settings, 1.0)
    watch.set(num_particles=32)
    assert watch.wait(20)
    b = Pinned(watch.trace, watch.settings, 2.5)
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


def test_dead_runs_are_compared_too():
    lm = TabularLM.markov([1.0, 0.0], [[1.0, 0.0], [1.0, 0.0]], symbols="ab", separator=" ")
    target = tw.Target(lm, tw.ContainsToken("b"), prompt="a", num_steps=3)
    dead = tw.run_smc(target, num_particles=4, dead_runs="keep")
    said = compare(Pinned(dead, RunSettings(), 0.0), Pinned(dead, RunSettings(), 0.0))
    assert "log Ẑ −∞ → −∞" in said


def test_lessons_set_every_control_that_they_are_about():
    controls = Controls(RunSettings(avoids="x", seed=9), Judges("stars", "host"), lambda _: None)
    bar = PresetBar(lambda settings: controls.set(**settings))
    for name, button in bar.buttons.items():
        button.click()
        assert find_preset(controls.settings) == name
        assert button.button_style == "info"
        assert sum(b.button_style == "info" for b in bar.buttons.values()) == 1
        assert PRESETS[name].text.split("'")[0] in bar.text.value
    controls.fields["num_steps"].value = 7
    bar.show(find_preset(controls.settings))
    assert not any(button.button_style for button in bar.buttons.values())


@pytest.fixture(scope="module")
def lessons():
    """The run of every lesson on the model that ships."""
    lm, judges = tw.load_language_model("storybook"), Judges().loaded()
    runs = {}
    for name, preset in PRESETS.items():
        settings = RunSettings(**preset.settings)
        runs[name] = make_session(settings, make_target(settings, lm, judges)).run()
    return runs


@pytest.mark.slow
def test_each_lesson_shows_what_it_says(lessons):
    late, good = lessons["Late evidence"], lessons["A good twist"]
    assert late.ess[:-1].min() == pytest.approx(64)
    assert late.ess[-1] < 8
    assert not late.columns.resampled.any()
    assert good.ess[-1] > 48
    assert good.columns.resampled.any()
    assert all("castle" in text for text, w in zip(good.texts(), good.weights) if w > 0.001)  # noqa: B905
    sis, costs = lessons["Why SIS fails"], lessons["What resampling costs"]
    assert sis.ess[-1] < 16
    assert sis.ess[12] < 20
    assert costs.ess[-1] > 32
    assert costs.surviving_ancestors()[0] <= 6
    bad = lessons["A bad twist"]
    assert bad.ess[-1] < 4
    assert bad.log_z < sis.log_z - 5
