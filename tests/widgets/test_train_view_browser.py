"""The training view's script in Chromium, against a model that only remembers what it is told."""

import copy

import pytest

from tsmc_widgets.widgets.front_end import TrainView
from view_support import UNMARKED, press_main

pytestmark = pytest.mark.browser

EVIL = "<img src=x onerror=globalThis.hacked=1>"


def racer(method, *, at=40, only=False):
    bounds = [
        [0, -3.0, -3.4, -2.6, -0.8, -1.2, -0.4, 2.2, 0.25],
        [at, -1.8, -2.0, -1.6, -1.5, -1.6, -1.4, 0.3, 0.05],
    ]
    return {
        "method": method,
        "done": at,
        "skipped": 2,
        "proposal_only": only,
        "from_base": method == "sixo",
        "loss": [[i + 1, 1 / (i + 1)] for i in range(at)],
        "ess": [[i + 1, 0.2 + 0.01 * i] for i in range(at)],
        "bounds": bounds,
    }


def look(method):
    samples = {"texts": [[EVIL, -0.25], ["fine", None]], "log_mean_phi": [-800.25, 0.05]}
    points = [[2, 0.1 * i - 1, 0.2, 0.1 * i - 0.9 + (i > 14), f"{EVIL} {i}"] for i in range(20)]
    return {
        "method": method,
        "at": 40,
        "points": points,
        "correlation": 0.93,
        "interval": [0.83, 0.97],
        "samples": samples,
    }


def state(*methods, **status):
    header = {
        "problem": "one-star-review", "form": "MLP head",
        "batch_size": 100, "learning_rate": 0.001, "seed": 0, "bound_particles": 1,
        "exact": False, "held_out": 40, "num_runs": 160, "num_texts": 64, "every": 20,
        "prompt": "I bought this", "target": "p(1 star | text)", "num_steps": 10,
    }  # fmt: skip
    told = {"state": "running", "text": "update 40 of 120", "error": "", "stale": "", "note": ""}
    racers = [racer(name, only=name in ("dpg", "ppo")) for name in methods]
    looks = {
        "note": "24 prefixes",
        "before": look("ctl")["samples"],
        "racers": [look(name) for name in methods],
    }
    return {
        "header": header if methods else {},
        "curves": {"goal": 120, "racers": racers, "log_z": [-1.65, 0.02]} if methods else {},
        "looks": looks if methods else {},
        "status": told | status,
        "folder": "my_twist",
        "ask": {},
    }


@pytest.fixture
def open_training(open_state):
    return lambda *methods, **status: open_state(TrainView, state(*methods, **status))


def test_every_number_says_what_it_is(open_training):
    page = open_training("ctl")
    bounds = page.inner_text(".pv-strip-bounds")
    assert "gap 2.20 → 0.30 ± 0.05 s.e. nats; log Z = −1.65 ± 0.02 s.e. (rejection)" in bounds
    assert "95 % t-intervals" in bounds
    assert "KL(q‖σ) + KL(σ‖q)" in bounds
    scatter = page.inner_text(".pv-strip-scatter")
    assert "correlation 0.93 (95 %: 0.83 to 0.97), n = 20" in scatter
    assert "± 1 s.e." in scatter
    assert "60.0 of 100 texts" not in page.inner_text(".pv-strip-loss")
    row = page.locator(".tl-race tbody tr").inner_text()
    assert "40 (2 skipped)" in row
    assert "−1.80 [−2.00, −1.60]" in row
    assert "log mean φ −800.25 ± 0.05 s.e. nats" in page.inner_text(".tl-texts")


def test_a_pointer_at_a_prefix_reads_it_and_the_worst_are_listed(open_training):
    page = open_training("ctl")
    plot = page.locator(".pv-strip-scatter canvas")
    x, y = page.evaluate("(({ x, y }) => [x, y])(root._plots[3].hover.marks[17])")
    plot.hover(position={"x": x, "y": y})
    hover = page.locator(".tl-hover")
    said = f"“{EVIL} 17”, t = 2: log ψ 1.80, log ψ* 0.70 ± 0.20 s.e., residual +1.10 nats"
    assert hover.inner_text() == said
    plot.hover(position={"x": 2, "y": 2})
    assert hover.inner_text() == ""
    page.get_by_text("The 5 worst prefixes").click()
    listed = page.locator(".tl-worst li").all_inner_texts()
    assert len(listed) == 5
    assert all("residual +1.10 nats" in each for each in listed)
    assert page.locator(".tl-worst img").count() == 0


def test_texts_are_never_markup(open_training):
    page = open_training("ctl")
    assert EVIL in page.inner_text(".tl-texts")
    assert page.evaluate("globalThis.hacked") is None
    assert page.locator(".tl-texts img").count() == 0
    assert "−∞" in page.inner_text(".tl-texts")


def test_the_main_button_says_what_it_does(open_training):
    page = open_training("ctl")
    for status, label, act in (
        ({"state": "idle"}, "Start", "start"),
        ({"state": "running"}, "Pause", "pause"),
        ({"state": "paused"}, "Go on", "start"),
        ({"state": "stopped"}, "Go on", "start"),
        ({"state": "done"}, "Train more", "start"),
        ({"state": "failed"}, "Try again", "start"),
        ({"state": "done", "stale": "method"}, "Start again", "start"),
    ):
        assert press_main(page, state("ctl", **status)["status"]) == (label, act)
        running = status["state"] in ("running", "paused")
        assert page.get_by_role("button", name="Stop").is_enabled() == running


def test_moved_controls_can_be_undone(open_training):
    page = open_training("ctl", state="stopped", stale="method, seed")
    assert "Changed: method, seed." in page.inner_text(".tl-stale")
    page.get_by_role("button", name="Undo the change").click()
    assert page.evaluate("model.state.ask.act") == "undo"
    assert page.get_by_role("button", name="Start over").is_hidden()


def test_save_sends_the_folder_with_the_press(open_training):
    page = open_training("ctl", state="done")
    page.get_by_label("Folder to save into").fill("elsewhere")
    page.get_by_role("button", name="Save").click()
    assert page.evaluate("[model.state.folder, model.state.ask.act]") == ["elsewhere", "save"]


def test_a_race_is_read_row_by_row_with_the_keyboard(open_training):
    page = open_training("ctl", "sixo", "dpg")
    assert page.locator(".tl-race tbody tr").count() == 3
    assert "of its own texts" not in page.inner_text(".pv-strip-batch-ess")
    page.get_by_role("radio").first.focus()
    page.keyboard.press("ArrowDown")
    page.wait_for_function("root.querySelector('.pv-strip-bounds').innerText.includes('SIXO')")
    assert "of 64 of its own texts" in page.inner_text(".pv-strip-batch-ess")
    assert "each on its own scale" in page.inner_text(".pv-strip-loss")
    page.keyboard.press("ArrowDown")
    page.wait_for_function("root.querySelector('.pv-strip-scatter').innerText.includes('DPG')")
    keys = page.locator(".tl-key path:first-child")
    dashes = {key.get_attribute("stroke-dasharray") for key in keys.all()}
    assert len(dashes) == 3


def test_keys_stay_in_the_widget(open_training):
    page = open_training("ctl", "rl")
    assert page.evaluate(UNMARKED) == []


def test_new_curves_are_drawn_and_a_closed_view_is_silent(open_training):
    page = open_training("ctl")
    fresh = copy.deepcopy(state("ctl"))["curves"]
    fresh["racers"][0]["done"] = 60
    page.evaluate("curves => model.set('curves', curves)", fresh)
    page.wait_for_function("root._stats.updates === 60")
    sent = page.evaluate("model.sent")
    page.evaluate("cleanup()")
    page.evaluate("curves => model.set('curves', curves)", fresh)
    assert page.evaluate("[model.sent, Object.values(model.handlers).flat().length]") == [sent, 0]
    assert page.locator(".tl").count() == 0


def test_waiting_and_errors_are_said(open_training):
    page = open_training(state="idle", text="")
    assert "Press Start" in page.inner_text(".pv-empty")
    page = open_training("ctl", state="failed", error="the loss is nan\nWhat was learned stays.")
    assert "What was learned stays." in page.inner_text(".pv-alert:not([hidden])")
