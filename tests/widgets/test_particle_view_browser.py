"""The particle view's script in Chromium, against a model that only remembers what it is told."""

import re

import numpy as np
import pytest

from tsmc_widgets.widgets.particle_view import ParticleView
from view_support import UNMARKED, draw_after, press_keys, row, selected_slots, wait_for_step

pytestmark = pytest.mark.browser


def test_opens_at_the_last_step_with_every_number_named(open_trace):
    page = open_trace(K=64, T=24)
    assert page.text_content("output") == "step 24 of 24"
    ess = page.text_content(".pv-strip-ess figcaption")
    assert "Effective sample size" in ess
    assert "of 64" in ess
    log_z = page.text_content(".pv-strip-logz figcaption")
    assert "estimate" in log_z
    assert "nats" in log_z
    assert page.text_content(".pv-target") == 'φ = avoids "broken" × p(5 stars | text)^2'


def test_log_z_says_how_sure_it_is(open_view, make_trace):
    trace = make_trace(K=4, T=3, threshold=0.0)
    page = open_view(ParticleView(trace))
    said = page.locator(".pv-strip-logz .pv-strip-value")
    assert re.fullmatch(r"−?\d\.\d\d nats", said.inner_text())
    shifts = np.array([[0.0], [0.5], [-0.5]])
    page = open_view(ParticleView(trace, replicates=trace.columns.log_z + shifts))
    said = page.locator(".pv-strip-logz .pv-strip-value")
    number = r"−?\d\.\d\d"
    pooled = rf"{number} nats; 3 runs pooled {number}, 95 % {number} to {number}"
    assert re.fullmatch(pooled, said.inner_text())
    press_keys(page, "ArrowLeft")
    wait_for_step(page, 2)
    assert re.fullmatch(rf"{number} nats ± 0\.50 \(s\.d\. over 3 runs\)", said.inner_text())


def test_scroll_bars_follow_the_notebook_and_not_the_system(open_trace, page):
    page.emulate_media(color_scheme="light")
    open_trace(K=8, T=5)
    scheme = "getComputedStyle(root).colorScheme"
    assert page.evaluate(scheme) == "light"
    page.evaluate(
        "document.body.style.cssText = '--jp-layout-color0: #111; --jp-content-font-color0: #fff'"
    )
    page.wait_for_function(f"{scheme} === 'dark'")


def test_keys_move_the_play_head(open_trace):
    page = open_trace(K=8, T=10)
    page.locator("input[type=range]").focus()
    for key, step in [
        ("Home", 0),
        ("ArrowRight", 1),
        ("ArrowRight", 2),
        ("ArrowLeft", 1),
        ("End", 10),
    ]:
        page.keyboard.press(key)
        wait_for_step(page, step)
    press_keys(page, "Home")
    wait_for_step(page, 0)
    assert "before step 1 of 10" in page.get_attribute("input[type=range]", "aria-valuetext")


def test_scrubbing_sends_nothing_until_it_ends(open_trace):
    page = open_trace(K=64, T=24)
    sent = page.evaluate("model.sent")
    for step in (3, 17, 9):
        page.evaluate(
            """step => {
                const range = root.querySelector('input[type=range]');
                range.value = step;
                range.dispatchEvent(new Event('input'));
            }""",
            step,
        )
        wait_for_step(page, step)
    assert page.evaluate("model.sent") == sent
    page.evaluate("root.querySelector('input[type=range]').dispatchEvent(new Event('change'))")
    assert page.evaluate("[model.sent, model.get('step')]") == [sent + 1, 9]


def test_play_runs_to_the_end_and_stops(open_trace):
    page = open_trace(K=8, T=30)
    page.get_by_label("Speed, steps a second").select_option("30")
    page.get_by_role("button", name="Play").click()
    assert page.get_by_role("button", name="Pause").count() == 1
    page.wait_for_function("root._stats.t < 30")
    wait_for_step(page, 30)
    page.wait_for_selector("button[aria-label^=Play]")


def test_space_pauses_and_asks_a_live_run_to_wait(open_trace):
    page = open_trace(K=8, T=200)
    press_keys(page, "Space")
    page.wait_for_function("root._stats.t > 0 && root._stats.t < 200")
    page.keyboard.press("Space")
    assert page.get_by_role("button", name="Play").count() == 1
    assert page.evaluate("model.get('hold')") is True


def test_a_run_that_is_computed_can_be_paused_at_once(open_view, make_trace):
    running = {"state": "running", "text": "computing"}
    page = open_view(ParticleView(make_trace(K=4, T=9, done=5)), status=running)
    page.get_by_role("button", name="Pause").click()
    assert page.evaluate("model.get('hold')") is True
    assert page.get_by_role("button", name="Play").count() == 1
    page.get_by_role("button", name="Play").click()
    assert page.evaluate("model.get('hold')") is False
    page.get_by_role("button", name="Pause").wait_for()
    page.keyboard.press("Home")
    page.get_by_role("button", name="Play").wait_for()


@pytest.fixture
def grown(make_trace):
    """Function that gives one view of a run, grown to so many steps."""
    view = ParticleView()

    def grow(done, **shape):
        view.update(make_trace(K=4, T=9, done=done, **shape), run_id=1)
        return view

    return grow


def test_step_at_the_frontier_asks_for_one_more(open_view, send, grown):
    page = open_view(grown(2))
    page.get_by_role("button", name="One step on").click()
    assert page.evaluate("[model.get('more'), model.get('hold')]") == [1, True]
    send(grown(3))
    wait_for_step(page, 3)


def test_play_head_stays_while_a_run_grows(open_view, send, grown):
    page = open_view(grown(5))
    press_keys(page, "ArrowLeft")
    wait_for_step(page, 4)
    send(grown(8))
    assert page.evaluate("[root._stats.t, root._stats.steps]") == [4, 8]
    page.keyboard.press("End")
    wait_for_step(page, 8)
    send(grown(9))
    wait_for_step(page, 9)


def test_a_run_that_has_grown_is_the_run_as_a_whole(open_view, send, grown, make_trace):
    page = open_view(grown(2))
    for done in (3, 7, 9):
        send(grown(done))
    read = """() => {
        const { record } = root._view;
        const names = ['tokens', 'ancestors', 'weights', 'logPsi', 'gain', 'places', 'resampled'];
        const columns = Object.fromEntries(names.map(name => [name, [...record[name]]]));
        const words = columns.tokens.map(token => record.texts[token]);
        return { ...columns, tokens: null, words, logZ: [...record.logZ] };
    }"""
    piecewise = page.evaluate(read)
    open_view(ParticleView(make_trace(K=4, T=9)))
    assert page.evaluate(read) == piecewise


def test_a_selection_outlives_growth_but_not_another_run(open_view, send, grown):
    page = open_view(grown(5))
    draw_after(page, row(page, 2).click)
    assert selected_slots(page) == ["2"]
    send(grown(6))
    assert "Particle 2 of step 5" in page.text_content(".pv-lineage-note")
    view = grown(6)
    view.update(view._shown["trace"], run_id=2)
    send(view)
    assert "Click a particle" in page.text_content(".pv-lineage-note")


def test_views_of_one_group_move_together_without_python(open_view, make_trace):
    page = open_view(ParticleView(make_trace(K=4, T=9)))
    page.evaluate(
        """async () => {
            model.set('group', 'a');
            globalThis.others = [];
            for (const group of ['a', 'b', '']) {
                const other = makeModel({ ...model.state, group, step: 0 });
                const el = document.createElement('div');
                document.body.append(el);
                widget.render({ model: other, el, signal: abort.signal });
                others.push({ other, root: el.querySelector('.pv'), sent: other.sent });
            }
        }"""
    )
    press_keys(page, "Home", "ArrowRight")
    page.wait_for_function("root._stats.t === 1 && others[0].root._stats.t === 1")
    assert page.evaluate("others.map(({ root }) => root._view.t)") == [1, 9, 9]
    assert page.evaluate("others.every(({ other, sent }) => other.sent === sent)")


def test_pages_of_two_runs_are_never_mixed(open_view, grown, make_trace, page):
    view = grown(9)
    open_view(view)
    old = page.evaluate("[...root._view.record.tokens]")
    view.update(make_trace(K=4, T=9, seed=5), run_id=2)
    page.evaluate("header => { model.set('header', header); }", view.header)
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert page.evaluate("[...root._view.record.tokens]") == old


def test_another_of_several_runs_can_be_chosen(open_view, make_trace, send):
    trace = make_trace(K=4, T=3, num_runs=3)
    view = ParticleView(trace, run=1)
    page = open_view(view)
    menu = page.get_by_label("Run shown")
    assert menu.input_value() == "1"
    assert "2 of 3, log Ẑ" in menu.locator("option").nth(1).text_content()
    menu.select_option("2")
    assert page.evaluate("model.get('run')") == 2
    view.run = 2
    send(view)
    assert menu.input_value() == "2"
    assert page.evaluate("root._view.record.ess[2]") == trace.columns.ess[2][2]


@pytest.mark.parametrize(
    "shape",
    [
        {"K": 1, "T": 1},
        {"K": 1, "T": 24},
        {"K": 4096, "T": 64},
        {"K": 3, "T": 2, "done": 0},
        {"K": 16, "T": 9, "dead_at": [2, 5]},
        {"K": 16, "T": 9, "done": 4, "all_dead_at": 4},
    ],
    ids=str,
)
def test_odd_sizes_are_drawn_at_every_step(open_trace, shape):
    page = open_trace(**shape)
    press_keys(page, "Home")
    wait_for_step(page, 0)
    for step in range(1, min(shape.get("done", shape["T"]), 5) + 1):
        page.keyboard.press("ArrowRight")
        wait_for_step(page, step)
    assert page.locator(".pv-row").count() <= 40


def test_all_dead_says_so(open_trace):
    error = "All 16 weights are zero at step 4 of run 0.\nTry a twist."
    status = {"state": "failed", "text": "stopped at step 4 of 9", "error": error}
    page = open_trace(K=16, T=9, done=4, all_dead_at=4, status=status)
    assert page.get_by_role("alert").first.inner_text() == error
    assert "all weights are 0" in page.text_content(".pv-strip-weights")
    assert "−∞ nats" in page.text_content(".pv-strip-logz")
    assert page.locator(".pv-dead").count() > 0


def test_silence_from_python_is_said_after_five_seconds(open_trace, page):
    page.clock.install()
    open_trace(K=4, T=3)
    lost = page.locator(".pv-lost")
    assert lost.is_hidden()
    page.clock.run_for(6000)
    assert "No contact with Python" in lost.inner_text()
    assert "run this cell again" in lost.inner_text()
    page.evaluate("model.set('welcome', model.get('hello'))")
    assert lost.is_hidden()


@pytest.mark.parametrize(
    "sign",
    ["model.set('welcome', model.get('hello'))", "model.set('status', {state: 'done', text: ''})"],
)
def test_a_sign_from_python_keeps_the_view_quiet(open_trace, page, sign):
    page.clock.install()
    open_trace(K=4, T=3)
    page.evaluate(sign)
    page.clock.run_for(6000)
    assert page.locator(".pv-lost").is_hidden()


@pytest.mark.parametrize("how", ["abort.abort()", "cleanup()"])
def test_clean_up_stops_listening(open_trace, how):
    page = open_trace(K=8, T=5)
    page.get_by_role("button", name="Play").click()
    page.evaluate(how)
    assert page.evaluate("Object.values(model.handlers).flat().length") == 0
    renders = page.evaluate("root._stats.renders")
    page.evaluate(
        "document.body.className = 'other';"
        "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
    )
    assert page.evaluate("root._stats.renders") == renders


def test_every_focusable_element_keeps_its_keys_from_jupyterlab(open_trace):
    page = open_trace(K=8, T=5)
    assert page.evaluate(UNMARKED) == []


def test_controls_beside_the_view_keep_their_keys_too(open_trace):
    page = open_trace(K=8, T=5)
    marked = page.evaluate(
        """() => ['other', 'tsmc-watch'].map(name => {
            const [box, handle] = [document.createElement('div'), document.createElement('div')];
            handle.tabIndex = 0;
            box.className = name;
            document.body.append(box);
            box.append(handle, root.parentElement);
            handle.focus();
            return handle.hasAttribute('data-lm-suppress-shortcuts');
        })"""
    )
    assert marked == [False, True]
