"""The grid of tokens in Chromium: rows, orders, colours, lineage, and texts that stay texts."""

import re

import numpy as np
import pytest

from tsmc_widgets.widgets.particle_view import ParticleView
from view_support import (
    choose,
    draw_after,
    press_keys,
    row,
    row_texts,
    selected_slots,
    slots_from_the_top,
    wait_for_step,
)

pytestmark = pytest.mark.browser

EDGES = """() => [root.querySelector('.pv-scroller').scrollLeft, root._grid.columns.edges]"""


@pytest.fixture
def crossing(make_trace):
    """Four particles whose ancestors are known by heart."""
    trace = make_trace(K=4, T=3)
    trace.columns.ancestors[0] = [[0, 1, 2, 3], [2, 2, 2, 3], [1, 0, 3, 3]]
    trace.columns.resampled[0] = [False, True, True]
    trace.columns.tokens[0] = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    return trace


def test_whole_texts_follow_each_particle_along_its_own_path(open_view, crossing):
    page = open_view(ParticleView(crossing))
    words = crossing.token_texts
    assert row_texts(page, 0) != [words[2], words[5], words[8]]
    choose(page, "Rows show", "texts")
    assert row_texts(page, 0) == [words[2], words[5], words[8]]
    assert row_texts(page, 3) == [words[3], words[7], words[11]]


def test_slots_show_what_each_held_at_every_step(open_view, crossing):
    page = open_view(ParticleView(crossing))
    choose(page, "Sort rows by", "slot")
    words = crossing.token_texts
    assert [row_texts(page, k) for k in range(4)] == [
        [words[k], words[4 + k], words[8 + k]] for k in range(4)
    ]
    died_out = page.locator(".pv-extinct").all_text_contents()
    assert sorted(word.strip() for word in died_out) == sorted([words[0], words[1], words[6]])


def test_a_row_that_is_copied_has_blanks_between_its_words(open_view, crossing):
    page = open_view(ParticleView(crossing))
    choose(page, "Rows show", "texts")
    node = row(page, 0).locator(".pv-line")
    words = crossing.token_texts
    assert node.evaluate("node => getSelection().selectAllChildren(node)") is None
    copied = page.evaluate("getSelection().toString()").split()
    assert copied == [words[2], words[5], words[8]]


def test_a_click_shows_ancestors_and_descendants(open_view, crossing):
    page = open_view(ParticleView(crossing))
    choose(page, "Sort rows by", "slot")
    draw_after(page, row(page, 2).locator(".pv-cell").first.click)
    marks = page.evaluate("[...root._view.marks]")
    assert marks == [0, 0, 1, 0, 1, 1, 1, 0, 1, 1, 0, 0]
    assert selected_slots(page) == ["0", "1"]
    note = page.locator(".pv-lineage-note")
    assert note.inner_text() == (
        "Particle 2 of step 1: 2 of the 4 particles at step 3 descend from it."
    )
    draw_after(page, row(page, 0).locator(".pv-cell").nth(1).click)
    assert page.evaluate("[...root._view.marks]") == [0, 0, 1, 0, 1, 0, 0, 0, 0, 1, 0, 0]
    draw_after(page, lambda: page.keyboard.press("Escape"))
    assert selected_slots(page) == []


def test_a_click_on_the_population_selects_too(open_view, crossing):
    page = open_view(ParticleView(crossing))
    choose(page, "Sort rows by", "slot")
    box = page.locator(".pv-population-canvas").bounding_box()
    x = 42 + (box["width"] - 52) * 0.25
    y = 13 + (box["height"] - 13) * 0.625
    position = {"x": x, "y": y}
    draw_after(page, lambda: page.locator(".pv-population-canvas").click(position=position))
    assert "Particle 2 of step 1" in page.text_content(".pv-lineage-note")
    label = page.get_attribute(".pv-population-canvas", "aria-label")
    assert "4 particles by 3 steps, shown to step 3: 2 of the 4 first tokens" in label


def test_selection_follows_descendants_while_scrubbing(open_view, crossing):
    page = open_view(ParticleView(crossing))
    press_keys(page, "Home", "ArrowRight")
    wait_for_step(page, 1)
    draw_after(page, row(page, 2).click)
    assert selected_slots(page) == ["2"]
    page.keyboard.press("End")
    wait_for_step(page, 3)
    assert sorted(selected_slots(page)) == ["0", "1"]


def test_arrows_move_the_selection_from_row_to_row(open_trace):
    page = open_trace(K=8, T=5)
    order = slots_from_the_top(page)
    page.locator(".pv-scroller").focus()
    draw_after(page, lambda: page.keyboard.press("ArrowDown"))
    assert selected_slots(page) == [str(order[0])]
    draw_after(page, lambda: page.keyboard.press("ArrowDown"))
    assert selected_slots(page) == [str(order[1])]
    active = page.get_attribute(".pv-scroller", "aria-activedescendant")
    assert page.get_attribute(f"#{active}", "data-slot") == str(order[1])
    assert page.locator(".pv-next .pv-chosen").count() == 1


def test_sorting_by_weight(open_view, make_trace):
    trace = make_trace(K=4, T=1)
    trace.columns.log_weights[0] = [[0.0, 2.0, -float("inf"), 1.0]]
    page = open_view(ParticleView(trace))
    choose(page, "Sort rows by", "weight")
    assert slots_from_the_top(page) == [1, 3, 0, 2]
    assert row(page, 2).locator(".pv-weight").text_content() == "0 %"


def test_sorting_by_lineage_keeps_families_together(open_view, make_trace):
    trace = make_trace(K=64, T=24, threshold=0.9)
    trace.columns.ancestors[0, 5] = trace.columns.ancestors[0, 5][::-1].copy()
    page = open_view(ParticleView(trace))
    choose(page, "Sort rows by", "lineage")
    crossings = page.evaluate(
        """() => {
            const { record, order } = root._view;
            let crossings = 0;
            for (let s = 1; s < record.steps; s++) {
                const slots = order.column(s), ranks = order.ranks(s - 1);
                const parents = [...slots].map(k => ranks[record.ancestors[s * record.K + k]]);
                crossings += parents.filter((rank, i) => i && rank < parents[i - 1]).length;
                if (new Set(slots).size !== record.K) crossings += 1000;
            }
            return crossings;
        }"""
    )
    assert crossings == 0


STRANDS = """() => {
    const strands = [];
    const view = root._view;
    for (let s = 1; s < view.record.steps; s++) {
        root._ribbons(view, s, (parent, share, part, rank, kind) => {
            const from = view.order.column(s - 1)[parent];
            strands.push([s, from, view.order.column(s)[rank], kind]);
        });
    }
    return strands;
}"""


def test_ribbons_lead_from_every_parent_to_each_of_its_children(open_view, make_trace):
    trace = make_trace(K=16, T=9, threshold=0.95)
    page = open_view(ParticleView(trace))
    ancestors = trace.columns.ancestors[0]
    living = [set(range(16))]
    for s in reversed(range(1, 9)):
        living.insert(0, {int(ancestors[s][k]) for k in living[0]})
    expected = [
        [s, int(ancestors[s][k]), k, int(k in living[s])] for s in range(1, 9) for k in range(16)
    ]
    for sort in ("slot", "weight", "lineage"):
        choose(page, "Sort rows by", sort)
        assert sorted(page.evaluate(STRANDS)) == sorted(expected), sort


def test_the_step_is_told_in_words(open_view, crossing):
    crossing.columns.ess[0, 1] = 1.5
    page = open_view(ParticleView(crossing))
    story = page.text_content(".pv-story")
    assert "Step 3 began by resampling, at an ESS of 1.5: 1 of 4 particles ended" in story
    assert "one was copied 2 times" in story
    assert "log φ itself" in story
    press_keys(page, "Home")
    wait_for_step(page, 0)
    assert "Before step 1: 4 particles" in page.text_content(".pv-story")


def test_every_colouring_has_a_labelled_scale(open_trace):
    page = open_trace(K=8, T=5)
    captions = set()
    for quantity in ("increment", "psi", "gain", "surprise", "weight"):
        choose(page, "Colour tokens by", quantity)
        captions.add(page.locator(".pv-legend-caption").inner_text())
        assert page.locator(".pv-legend-ticks span").count() == 3
    assert len(captions) == 5


def test_colours_follow_the_quantity(open_view, make_trace):
    trace = make_trace(K=2, T=2, threshold=0.0)
    trace.columns.log_psi[0] = [[-3.0, 2.0], [1.0, -2.0]]
    page = open_view(ParticleView(trace))
    choose(page, "Colour tokens by", "gain")
    assert page.evaluate("[...root._view.record.gain]") == [-3.0, 2.0, 4.0, -4.0]
    indices = page.evaluate("[...root._view.indices]")
    # Nothing tells the token's part apart without tables; at T it is phi that changes the weight.
    assert indices == [1 + int((gain + 4) * 254 / 8 + 0.5) for gain in (-3.0, 2.0, 0.0, 0.0)]


def test_gain_is_against_the_particle_that_each_descends_from(open_view, make_trace):
    trace = make_trace(K=16, T=9, threshold=0.95)
    page = open_view(ParticleView(trace))
    log_psi, ancestors = trace.columns.log_psi[0].astype(np.float32), trace.columns.ancestors[0]
    parents = np.take_along_axis(log_psi[:-1], ancestors[1:], axis=1)
    expected = np.concatenate([log_psi[:1], log_psi[1:] - parents])
    assert (ancestors[1:] != np.arange(16)).any()
    found = np.reshape(page.evaluate("[...root._view.record.gain]"), (9, 16))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_tokens_and_texts_are_inert(open_trace):
    page = open_trace(K=300, T=24)
    choose(page, "Rows show", "texts")
    draw_after(page, page.locator(".pv-cell", has_text="<scr").first.click)
    shown = page.text_content(".pv-samples") + page.text_content(".pv-rows")
    assert "<script>" in shown
    assert "<img" in shown
    assert "<script>" in page.text_content(".pv-inspected")
    assert page.locator(".pv script, .pv img").count() == 0
    assert page.evaluate("globalThis.hacked") is None


def test_blank_and_foreign_tokens_can_be_read(open_view, make_trace):
    trace = make_trace(K=1, T=5)
    blank = {text: token for token, text in trace.token_texts.items()}
    trace.token_texts |= {900: "日本", 901: "naïve…"}
    trace.columns.tokens[0, :, 0] = [blank["\n"], blank["\t"], blank[" "], 900, 901]
    page = open_view(ParticleView(trace))
    assert row_texts(page, 0) == ["↵", "⇥", "␣", "日本", "naïve…"]


def test_words_that_begin_and_words_that_go_on_are_told_apart(open_view, make_trace):
    texts = [" fox", "fox", " ?", "?", "7", " 7", "日本", "\u202e", "\u05b5"]
    trace = make_trace(K=1, T=len(texts), threshold=0.0)
    trace.token_texts |= dict(enumerate(texts, 900))
    trace.columns.tokens[0, :, 0] = range(900, 900 + len(texts))
    page = open_view(ParticleView(trace))
    shown = ["fox", "‿fox", "␣?", "?", "7", "␣7", "日本", "U+202E", "U+05B5"]
    assert row_texts(page, 0) == shown
    assert page.locator(".pv-legend-goes-on").is_visible()
    assert page.locator(".pv-legend-waits").is_hidden()


def test_ended_texts_are_marked_once(open_view, make_trace):
    trace = make_trace(K=2, T=4, threshold=0.0)
    trace.info.eos_token_id = 5
    trace.columns.tokens[0] = [[1, 2], [5, 3], [5, 4], [5, 5]]
    page = open_view(ParticleView(trace))
    words = trace.token_texts
    assert row_texts(page, 0) == [words[1], "∎"]
    assert row_texts(page, 1) == [words[2], words[3], words[4], "∎"]
    assert page.locator(".pv-legend-ended").is_visible()


def test_marks_are_explained_where_there_are_some(open_trace):
    page = open_trace(K=8, T=5, threshold=0.0)
    for name in ("dead", "ended", "resampled", "extinct", "goes-on", "waits"):
        assert page.locator(f".pv-legend-{name}").is_hidden()
    page = open_trace(K=8, T=9, dead_at=[3], threshold=1.0)
    for name in ("dead", "resampled", "extinct"):
        assert page.locator(f".pv-legend-{name}").is_visible()


def test_weights_of_many_particles_are_told_apart(open_trace):
    page = open_trace(K=4096, T=2)
    weights = page.locator(".pv-weight").all_text_contents()
    assert all(re.fullmatch(r"0\.\d+ %", weight) for weight in weights)
    assert len(set(weights)) > 5


@pytest.mark.parametrize("width", [700, 1000, 1280])
def test_no_word_is_cut_at_the_left_edge(open_trace, make_trace, page, width):
    page.set_viewport_size({"width": width, "height": 900})
    open_trace(K=64, T=40)
    at, edges = page.evaluate(EDGES)
    assert at > 0
    assert at in edges
    draw_after(page, lambda: page.set_viewport_size({"width": width + 25, "height": 900}))
    at, edges = page.evaluate(EDGES)
    assert at in edges
    draw_after(page, lambda: page.get_by_role("button", name="Back one step").click())
    at, edges = page.evaluate(EDGES)
    assert at > 0
    assert at in edges


@pytest.mark.parametrize("dark", [False, True])
def test_text_on_the_strongest_colours_stays_readable(open_trace, page, dark):
    page.emulate_media(color_scheme="dark" if dark else "light")
    open_trace(K=64, T=24)
    for quantity in ("weight", "psi", "surprise"):
        choose(page, "Colour tokens by", quantity)
        contrast = page.evaluate(
            """() => {
                const light = rgb => rgb.reduce((sum, part, i) => {
                    const x = part / 255;
                    const y = x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4;
                    return sum + y * [0.2126, 0.7152, 0.0722][i];
                }, 0);
                const { palette, theme } = root._view;
                const text = light(theme.text);
                return Math.min(...palette.cell.map(colour => {
                    const under = light(colour.match(/[\\d.]+/g).slice(0, 3).map(Number));
                    const [low, high] = [Math.min(text, under), Math.max(text, under)];
                    return (high + 0.05) / (low + 0.05);
                }));
            }"""
        )
        assert contrast > 4.5, quantity


def test_forced_colours_are_obeyed(open_trace, page):
    page.emulate_media(forced_colors="active")
    open_trace(K=8, T=5)
    same = """() => {
        const probe = document.createElement('span');
        probe.style.color = 'CanvasText';
        document.body.append(probe);
        const wanted = getComputedStyle(probe).color.match(/\\d+/g).slice(0, 3).join();
        const seen = getComputedStyle(root.querySelector('.pv-rows')).color;
        return [root._view.theme.text.join() === wanted, seen];
    }"""
    follows, glass = page.evaluate(same)
    assert follows
    assert glass == "rgba(0, 0, 0, 0)"
