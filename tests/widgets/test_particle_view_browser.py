"""The particle view's script in Chromium, against a model that only remembers what it is told."""

import base64
import re

import pytest

from tsmc_widgets.widgets.particle_view import ParticleView

pytestmark = pytest.mark.browser

SEND = """([header, data]) => {
    Object.assign(model.state, { header, data: bytes(data) });
    for (const name of ['header', 'data']) {
        (model.handlers['change:' + name] || []).forEach(act => act());
    }
}"""


def wait_for_step(page, step):
    page.wait_for_function(f"root._stats.t === {step}")


def draw_after(page, act):
    """Act, and wait until the view has been drawn once more."""
    before = page.evaluate("root._stats.renders")
    act()
    page.wait_for_function(f"root._stats.renders > {before}")


def send(page, view):
    draw_after(
        page,
        lambda: page.evaluate(SEND, [view.header, base64.b64encode(view.data).decode()]),
    )


def row_texts(page, slot):
    cells = page.locator(f'.pv-row[data-slot="{slot}"] .pv-cell').all_text_contents()
    return [cell for cell in cells if cell]


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
    trace.columns.ancestors[0, 2] = 1
    trace.columns.resampled[0, 2] = True
    page = open_view(ParticleView.from_trace(trace))
    said = page.locator(".pv-strip-logz .pv-strip-value")
    assert said.inner_text().endswith("nats, s.e. unknown")
    page.locator(".pv-scroller").focus()
    page.keyboard.press("ArrowLeft")
    wait_for_step(page, 2)
    assert re.fullmatch(r"−?\d\.\d\d nats ± \d\.\d\d s\.e\.", said.inner_text())


def test_weights_of_many_particles_are_told_apart(open_trace):
    page = open_trace(K=4096, T=2)
    weights = page.locator(".pv-weight").all_text_contents()
    assert all(re.fullmatch(r"0\.\d+ %", weight) for weight in weights)
    assert len(set(weights)) > 5


@pytest.mark.parametrize("width", [700, 1000, 1280])
def test_no_word_is_cut_at_the_left_edge(open_trace, make_trace, page, width):
    page.set_viewport_size({"width": width, "height": 900})
    open_trace(K=64, T=30)
    edges = """() => {
        const grid = root.querySelector('.pv-scroller');
        const heads = [...grid.querySelectorAll('.pv-column')];
        return [grid.scrollLeft, heads.map(head => parseFloat(head.style.left) - 148)];
    }"""
    at, columns = page.evaluate(edges)
    assert at > 0
    assert at in columns
    draw_after(page, lambda: page.set_viewport_size({"width": width + 25, "height": 900}))
    at, columns = page.evaluate(edges)
    assert at in columns
    draw_after(page, lambda: page.get_by_role("button", name="Back one step").click())
    send(page, ParticleView.from_trace(make_trace(K=8, T=64, seed=1)))
    at, columns = page.evaluate(edges)
    assert at > 0
    assert at in columns


def test_scroll_bars_follow_the_notebook_and_not_the_system(open_trace, page):
    page.emulate_media(color_scheme="light")
    open_trace(K=8, T=5)
    scheme = "getComputedStyle(root).colorScheme"
    assert page.evaluate(scheme) == "light"
    page.evaluate(
        "document.body.style.cssText = '--jp-layout-color0: #111; --jp-content-font-color0: #fff'"
    )
    page.wait_for_function(f"{scheme} === 'dark'")


def test_dead_cells_are_explained_where_there_are_some(open_trace):
    assert open_trace(K=8, T=5).locator(".pv-legend-dead").is_hidden()
    assert open_trace(K=8, T=5, dead_at=[3]).locator(".pv-legend-dead").is_visible()


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
    page.locator(".pv-scroller").focus()
    page.keyboard.press("Home")
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
    page.locator(".pv-scroller").focus()
    page.keyboard.press("Space")
    page.wait_for_function("root._stats.t > 0 && root._stats.t < 200")
    page.keyboard.press("Space")
    assert page.get_by_role("button", name="Play").count() == 1
    assert page.evaluate("model.get('hold')") is True


def test_a_run_that_is_computed_can_be_paused_at_once(open_view, make_trace):
    running = {"state": "running", "text": "computing"}
    page = open_view(ParticleView.from_trace(make_trace(K=4, T=9, done=5)), status=running)
    page.get_by_role("button", name="Pause").click()
    assert page.evaluate("model.get('hold')") is True
    assert page.get_by_role("button", name="Play").count() == 1
    page.get_by_role("button", name="Play").click()
    assert page.evaluate("model.get('hold')") is False
    page.get_by_role("button", name="Pause").wait_for()
    page.keyboard.press("Home")
    page.get_by_role("button", name="Play").wait_for()


def test_step_at_the_frontier_asks_for_one_more(open_view, make_trace):
    page = open_view(ParticleView.from_trace(make_trace(K=4, T=6, done=2)))
    page.get_by_role("button", name="One step on").click()
    assert page.evaluate("[model.get('more'), model.get('hold')]") == [1, True]
    send(page, ParticleView.from_trace(make_trace(K=4, T=6, done=3)))
    wait_for_step(page, 3)


def test_play_head_stays_while_a_run_grows(open_view, make_trace):
    page = open_view(ParticleView.from_trace(make_trace(K=4, T=9, done=5)))
    page.locator(".pv-scroller").focus()
    page.keyboard.press("ArrowLeft")
    wait_for_step(page, 4)
    send(page, ParticleView.from_trace(make_trace(K=4, T=9, done=8)))
    assert page.evaluate("[root._stats.t, root._stats.steps]") == [4, 8]
    page.keyboard.press("End")
    wait_for_step(page, 8)
    send(page, ParticleView.from_trace(make_trace(K=4, T=9, done=9)))
    wait_for_step(page, 9)


def test_rows_show_each_particle_along_its_own_path(open_view, make_trace):
    trace = make_trace(K=4, T=3)
    trace.columns.ancestors[0] = [[0, 1, 2, 3], [2, 2, 2, 3], [1, 0, 3, 3]]
    trace.columns.tokens[0] = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    page = open_view(ParticleView.from_trace(trace))
    words = trace.token_texts
    assert row_texts(page, 0) == [words[2], words[5], words[8]]
    page.locator('.pv-row[data-slot="0"]').click()
    page.wait_for_selector('.pv-row[data-slot="0"].pv-selected')
    shared = page.locator('.pv-row[data-slot="1"] .pv-shared').all_text_contents()
    assert shared == [words[2]]
    assert "2 of 4 particles at step 3 share its first token" in page.text_content(
        ".pv-lineage-note"
    )


def test_selection_follows_descendants(open_view, make_trace):
    trace = make_trace(K=4, T=3)
    trace.columns.ancestors[0] = [[0, 1, 2, 3], [2, 2, 2, 3], [1, 0, 3, 3]]
    page = open_view(ParticleView.from_trace(trace))
    page.locator(".pv-scroller").focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    wait_for_step(page, 1)
    draw_after(page, page.locator('.pv-row[data-slot="2"]').click)
    page.keyboard.press("End")
    wait_for_step(page, 3)
    selected = page.locator(".pv-row.pv-selected")
    slots = [selected.nth(i).get_attribute("data-slot") for i in range(selected.count())]
    assert slots == ["0", "1"]


def test_sorting_by_weight(open_view, make_trace):
    trace = make_trace(K=4, T=1)
    trace.columns.log_weights[0] = [[0.0, 2.0, -float("inf"), 1.0]]
    page = open_view(ParticleView.from_trace(trace))
    draw_after(page, lambda: page.get_by_label("Sort rows by").select_option("weight"))
    rows = page.locator(".pv-row")
    places = {rows.nth(i).get_attribute("aria-posinset"): rows.nth(i) for i in range(4)}
    slots = [places[str(i)].get_attribute("data-slot") for i in range(1, 5)]
    assert slots == ["1", "3", "0", "2"]
    assert places["4"].locator(".pv-weight").inner_text() == "0 %"


def test_every_colouring_can_be_chosen(open_trace):
    page = open_trace(K=8, T=5)
    for quantity in ("increment", "psi", "surprise", "weight"):
        draw_after(page, lambda q=quantity: page.get_by_label("Colour tokens by").select_option(q))
        assert page.locator(".pv-legend-caption").inner_text()


def test_tokens_and_texts_are_inert(open_trace):
    page = open_trace(K=300, T=24)
    shown = page.text_content(".pv-samples") + page.text_content(".pv-rows")
    assert "<script>" in shown
    assert "<img" in shown
    assert page.locator(".pv script, .pv img").count() == 0
    assert page.evaluate("globalThis.hacked") is None


def test_blank_tokens_have_marks(open_view, make_trace):
    trace = make_trace(K=1, T=3)
    blank = {text: token for token, text in trace.token_texts.items()}
    trace.columns.tokens[0, :, 0] = [blank["\n"], blank["\t"], blank[" "]]
    page = open_view(ParticleView.from_trace(trace))
    assert row_texts(page, 0) == ["↵", "⇥", "␣"]


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
    page.locator(".pv-scroller").focus()
    page.keyboard.press("Home")
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
    unmarked = page.evaluate(
        "[...root.querySelectorAll('button, select, input, a, [tabindex]'), root]"
        ".filter(node => !node.hasAttribute('data-lm-suppress-shortcuts')).map(n => n.outerHTML)"
    )
    assert unmarked == []


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


@pytest.mark.parametrize("dark", [False, True])
def test_text_on_the_strongest_colours_stays_readable(open_trace, page, dark):
    page.emulate_media(color_scheme="dark" if dark else "light")
    open_trace(K=64, T=24)
    for quantity in ("weight", "surprise"):
        draw_after(page, lambda q=quantity: page.get_by_label("Colour tokens by").select_option(q))
        contrast = page.evaluate(
            """() => {
                const paint = document.createElement('canvas').getContext('2d');
                const rgb = colours => {
                    for (const colour of colours) {
                        paint.fillStyle = colour;
                        paint.fillRect(0, 0, 1, 1);
                    }
                    return [...paint.getImageData(0, 0, 1, 1).data].slice(0, 3);
                };
                const light = ([r, g, b]) => [r, g, b].reduce((sum, part, i) => {
                    const x = part / 255;
                    const y = x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4;
                    return sum + y * [0.2126, 0.7152, 0.0722][i];
                }, 0);
                const style = getComputedStyle(root);
                const text = light(rgb([style.backgroundColor, style.color]));
                const cells = [...root.querySelectorAll('.pv-cell')].filter(c => c.textContent);
                return Math.min(...cells.map(cell => {
                    const colour = cell.style.backgroundColor || 'transparent';
                    const under = light(rgb([style.backgroundColor, colour]));
                    const [low, high] = [Math.min(text, under), Math.max(text, under)];
                    return (high + 0.05) / (low + 0.05);
                }));
            }"""
        )
        assert contrast > 4.5, quantity
