"""The panels' script in Chromium: alone against a model, and beside the particle view in a file."""

import csv
import io
import json

import pytest
import torch
from playwright.sync_api import expect
from widgets.conftest import EVIL, WORDS, traits_of

import tsmc_widgets as tw
from tsmc_widgets.models.tabular import TabularLM
from tsmc_widgets.widgets.particle_view import RunPanels
from view_support import SEND, UNMARKED, press_keys

pytestmark = pytest.mark.browser

DEAD = {"K": 8, "T": 5, "done": 3, "all_dead_at": 3}
PARTICLES = ".pv:not(.rp)"


@pytest.fixture
def visit_both(visit, page):
    """Function that writes both views into a file and opens it offline."""

    def open_file(trace, **options):
        path, requests = visit(RunPanels(trace, **options), view=tw.ParticleView(trace))
        page.locator(".rp .pv-strip-ess .pv-strip-value", has_text="of").wait_for()
        assert requests == [path.as_uri()]
        return page

    return open_file


def both_at(page, step):
    expect(page.locator("output")).to_have_text([f"step {step} of 10"] * 2)


def said(page, name):
    return page.locator(f".rp .pv-strip-{name} .pv-strip-value")


def test_play_heads_move_together_both_ways(visit_both, make_trace):
    page = visit_both(make_trace(K=8, T=10))
    press_keys(page, "Home")
    both_at(page, 0)
    assert page.locator(".pv-title").last.inner_text().lower() == "before step 1"
    page.keyboard.press("ArrowRight")
    both_at(page, 1)
    press_keys(page, "End", at=".rp input[type=range]")
    both_at(page, 10)
    page.keyboard.press("ArrowLeft")
    both_at(page, 9)
    page.locator(".rp .pv-strip-ess canvas").scroll_into_view_if_needed()
    box = page.locator(".rp .pv-strip-ess canvas").bounding_box()
    page.mouse.click(box["x"] + 42 + 0.5 * (box["width"] - 52), box["y"] + 40)
    both_at(page, 5)
    page.keyboard.press("Home")
    page.get_by_label("Speed, steps a second").select_option("30")
    press_keys(page, "Space", at=".rp")
    both_at(page, 10)


def test_both_show_the_run_that_is_picked(visit_both, make_trace):
    trace = make_trace(K=8, T=6, num_runs=4)
    page = visit_both(trace)
    first, last = page.get_by_label("Run shown").all()
    for chosen, other, run in [(last, first, 2), (first, last, 1)]:
        chosen.select_option(str(run))
        expect(other).to_have_value(str(run))
        log_z = minus(trace.columns.log_z[run, -1])
        expect(said(page, "logz")).to_contain_text(f"run {run + 1}: {log_z}")
        word = WORDS[trace.columns.tokens[run, -1, 0]]
        row = page.locator(f'{PARTICLES} .pv-row[data-slot="0"]')
        expect(row.locator(".pv-cell").last).to_have_text(word.strip() or "␣")


def test_what_the_panels_show_is_not_drawn_twice(visit_both, make_trace):
    page = visit_both(make_trace(K=8, T=6))
    # The view's own time axis stays: ESS, where weight is lost, ancestors.
    assert page.locator(f"{PARTICLES} .pv-strip:visible").count() == 3
    assert page.locator(f"{PARTICLES} .pv-samples:visible").count() == 0
    assert page.locator(".rp .pv-strip:visible").count() == 6


def test_a_sample_is_found_in_the_particle_view(visit_both, evil_trace):
    page = visit_both(evil_trace)
    page.locator(".rp-samples tbody tr").first.click()
    slot = page.locator(".rp-samples tbody tr").first.get_attribute("data-slot")
    expect(page.locator('.pv-row[aria-selected="true"]')).to_have_attribute("data-slot", slot)


def test_every_number_says_what_it_is(open_panels, evil_trace):
    page = open_panels(RunPanels(evil_trace, exact_log_z=-1.25, bracket=(-1.5, -1.125)))
    log_z = said(page, "logz").inner_text()
    assert log_z.startswith("pooled estimate ")
    assert ", 95 % [" in log_z
    assert log_z.endswith(f"run 1: {minus(evil_trace.log_z[0])} nats")
    assert page.locator(".rp-key").inner_text().split("\n")[-2:] == [
        "exact log Z −1.25",
        "certified bracket [−1.50, −1.13]",
    ]
    assert "nats over 6 runs" in said(page, "spread").inner_text()
    assert "pooled − exact: " in said(page, "spread").inner_text()
    assert said(page, "ess").inner_text().startswith(f"{float(evil_trace.ess[0, -1]):.1f} of 32")
    left = int(evil_trace.surviving_ancestors()[0, 0])
    assert said(page, "ancestors").inner_text() == f"{left} of 32 first tokens left"
    held = top_tenth(evil_trace.weights[0])
    assert said(page, "lorenz").inner_text() == (
        f"the heaviest 10 % of particles hold {held:.0f} % of the weight"
    )


def minus(value):
    return f"{float(value):.2f}".replace("-", "−")


def top_tenth(weights):
    """Of 32 particles 10 % are 3.2."""
    largest = weights.sort(descending=True).values
    return 100 * float(largest[:3].sum() + 0.2 * largest[3])


def test_texts_are_never_markup(visit_both, evil_trace, evil_target):
    page = visit_both(evil_trace, target=evil_target)
    assert page.locator("main img, main script").count() == 0
    assert EVIL[1] in page.text_content(".rp-samples")
    assert f'avoids token "{EVIL[0]}"' in page.text_content(".rp-factors")
    assert page.evaluate("globalThis.hacked") is None


def test_factors_say_what_they_end(open_panels, evil_trace, evil_target):
    page = open_panels(RunPanels(evil_trace, target=evil_target))
    rows = page.locator(".rp-factors tbody tr")
    shares = tw.factor_breakdown(evil_trace, evil_target)
    assert rows.count() == 2
    for row, share in zip(rows.all(), shares, strict=True):
        mean, killed, alone = row.locator("td").all_inner_texts()
        assert mean == "0.00"
        assert float(killed.removesuffix(" %")) == pytest.approx(100 * share.killed, rel=0.06)
        assert float(alone.removesuffix(" %")) == pytest.approx(100 * share.killed_alone, rel=0.06)


def downloaded(page, kind):
    with page.expect_download() as download:
        page.get_by_role("button", name=f"as {kind}").click()
    return download.value.path().read_text("utf-8"), download.value.suggested_filename


def test_samples_are_downloaded_whole_without_a_network(visit_both, evil_trace):
    page = visit_both(evil_trace)
    frame = evil_trace.to_frame().query("run == 0")
    text, name = downloaded(page, "CSV")
    assert name == "samples_run_1.csv"
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert {row["text"] for row in rows} == set(frame.text)
    assert sum(float(row["weight"]) for row in rows) == pytest.approx(1.0)
    by_text = frame.groupby("text")[["weight", "log_phi", "log_p"]].agg(
        {"weight": "sum", "log_phi": "first", "log_p": "first"}
    )
    for row in rows:
        expected = by_text.loc[row["text"]]
        assert float(row["weight"]) == pytest.approx(expected.weight)
        assert float(row["log_phi"]) == expected.log_phi
        assert float(row["log_p0"]) == pytest.approx(expected.log_p)
        assert row["ended_at"] == ""
    text, name = downloaded(page, "JSON")
    assert name == "samples_run_1.json"
    saved = json.loads(text)
    assert saved["unit"] == "nats"
    assert [float(each["log_phi"]) for each in saved["samples"]] == [
        float(row["log_phi"]) for row in rows
    ]


def test_no_sample_is_a_formula_in_a_spreadsheet(visit_both):
    lm = TabularLM.markov([0.5, 0.5], [[0.5, 0.5]] * 2, symbols=["=A1", "-1.5"], separator="")
    target = tw.Target(lm, tw.Constant(), prompt="=A1", num_steps=1)
    text, _ = downloaded(visit_both(tw.run_smc(target, num_particles=32)), "CSV")
    rows = csv.DictReader(io.StringIO(text, newline=""))
    assert {row["text"] for row in rows} == {"'=A1", "-1.5"}


def test_the_table_is_sorted_by_any_column(open_panels, evil_trace):
    page = open_panels(RunPanels(evil_trace))
    shown = page.locator('.rp-samples td[data-key="log_p0"]')
    for direction in ("descending", "ascending"):
        page.get_by_role("button", name="log p₀").click()
        values = [float(text.replace("−", "-")) for text in shown.all_inner_texts()]
        assert values == sorted(values, reverse=direction == "descending")
        assert page.locator('th[data-key="log_p0"]').get_attribute("aria-sort") == direction
    page.get_by_role("button", name="text").click()
    texts = page.locator('.rp-samples td[data-key="text"]').all_inner_texts()
    assert len(texts) > 1
    assert page.locator('th[data-key="text"]').get_attribute("aria-sort") == "ascending"


def test_columns_arrive_while_the_run_goes_on(open_panels, page, make_trace):
    panels = RunPanels()
    panels.update(make_trace(K=8, T=20, done=3), run_id=1)
    open_panels(panels)
    assert page.text_content("output") == "step 3 of 20"
    assert "after step 20" in page.inner_text(".rp-samples")
    for done in (4, 20):
        panels.update(make_trace(K=8, T=20, done=done), run_id=1)
        coded = traits_of(panels)
        page.evaluate(SEND, coded)
        page.wait_for_function(f"root._stats.steps === {done} && root._stats.t === {done}")
    press_keys(page, "Home", at="input[type=range]")
    page.wait_for_function("root._stats.t === 0")
    panels.update(make_trace(K=8, T=20, seed=1), run_id=2)
    page.evaluate(SEND, traits_of(panels))
    # Where the play head was put it stays.
    page.wait_for_function("root._panels.view.record.id === 2 && root._stats.t === 0")


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ({"K": 1, "T": 5}, {"lorenz": "one particle holds all", "weights": "largest 100 %"}),
        ({"K": 8, "T": 1}, {"logz": "estimate", "spread": "one run"}),
        (DEAD, {"weights": "all weights are 0", "logz": "−∞"}),
        (DEAD | {"num_runs": 3}, {"spread": "in all runs"}),
        ({"K": 9, "T": 6, "num_runs": 4, "dead_at": (2, 5)}, {"lorenz": "of the weight"}),
    ],
)
def test_small_and_dead_runs_are_drawn(open_panels, make_trace, shape, words):
    page = open_panels(RunPanels(make_trace(**shape), exact_log_z=-1.0, bracket=(-2, -0.5)))
    for name, text in words.items():
        assert text in said(page, name).inner_text()
    # NaN coordinates would leave the canvas empty.
    drawn = """name => {
        const canvas = root.querySelector(`.pv-strip-${name} canvas`);
        const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
        return data.some(value => value > 0);
    }"""
    assert all(page.evaluate(drawn, name) for name in ("logz", "spread", "ess", "lorenz"))
    press_keys(page, "Home", at="input[type=range]")
    page.wait_for_function("root._stats.t === 0")


def test_keys_stay_in_the_widget_and_a_closed_one_is_silent(open_panels, make_trace):
    page = open_panels(RunPanels(make_trace(K=4, T=6)))
    assert page.evaluate(UNMARKED) == []
    page.evaluate("cleanup()")
    assert page.evaluate("Object.values(model.handlers).flat().length") == 0
    assert page.locator(".rp").count() == 0


def test_it_follows_the_theme(open_panels, page, make_trace):
    page.emulate_media(color_scheme="light")
    open_panels(RunPanels(make_trace(K=4, T=6)))
    page.emulate_media(color_scheme="dark")
    page.wait_for_function("root._panels.theme.dark")


def test_values_out_of_sight_are_true_once_nothing_moves(open_panels, page, make_trace):
    page.set_viewport_size({"width": 500, "height": 200})
    trace = make_trace(K=32, T=10)
    open_panels(RunPanels(trace))
    press_keys(page, "Home", at="input[type=range]")
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    weights = torch.from_numpy(trace.columns.log_weights[0, 3]).softmax(0)
    held = f"hold {top_tenth(weights):.0f} % of the weight"
    expect(said(page, "lorenz")).to_contain_text(held)
    expect(said(page, "ess")).to_contain_text(f"{trace.columns.ess[0, 3]:.1f} of 32")


def test_a_sample_of_other_runs_is_not_looked_for_here(open_view, make_trace):
    page = open_view(tw.ParticleView(make_trace(K=8, T=5)))
    tell = """of => document.dispatchEvent(new CustomEvent('tsmc-views-move-together',
        { detail: { group: 'a', from: null, news: { slot: 3, of } } }))"""
    own = page.evaluate("`0 of ${root._view.record.header.runs}`")
    page.evaluate("model.set('group', 'a')")
    page.evaluate(tell, f"{own},-1.5")
    assert page.evaluate("root._view.selection") is None
    page.evaluate(tell, own)
    assert page.evaluate("root._view.selection.slot") == 3


def test_styles_may_come_in_any_order(open_panels, page, evil_trace, evil_target):
    open_panels(RunPanels(evil_trace, target=evil_target))
    width = "root.querySelector('.rp-factors tbody th').offsetWidth"
    before = page.evaluate(width)
    page.add_style_tag(content=tw.ParticleView._css)
    assert page.evaluate(width) == before > 60
