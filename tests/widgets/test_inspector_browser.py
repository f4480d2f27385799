"""The next-token inspector in Chromium, over a run whose every number is known."""

import math

import pytest
import torch

import tsmc_widgets as tw
from tsmc_widgets.models.tabular import TabularLM
from tsmc_widgets.twists import TableTwist
from tsmc_widgets.widgets.particle_view import ParticleView
from view_support import choose, draw_after, press_keys, row, wait_for_step

pytestmark = pytest.mark.browser

SYMBOLS = ["sun", "rain", "<script>globalThis.hacked=1</script>"]


@pytest.fixture(scope="module")
def trace():
    lm = TabularLM.markov(
        [0.6, 0.3, 0.1],
        [[0.5, 0.3, 0.2], [0.2, 0.5, 0.3], [0.4, 0.4, 0.2]],
        symbols=SYMBOLS,
        separator=" ",
    )
    target = tw.Target(lm, tw.ContainsToken("rain"), prompt="sun", num_steps=4)
    twist = TableTwist.random(3, 4, seed=5, prompt_length=1)
    return tw.run_smc(
        target,
        num_particles=8,
        twist=twist,
        proposal=tw.TwistInduced(),
        ess_threshold=0.9,
        dead_runs="keep",
        top_k=3,
        seed=1,
    )


def cell(page, slot, step):
    return row(page, slot).locator(".pv-cell").nth(step - 1)


def shown(page):
    """The inspector's table: token to its three shares, and the marked token."""
    rows = page.locator(".pv-next tbody tr")
    table = {}
    for i in range(rows.count()):
        name = rows.nth(i).locator("th").inner_text().strip()
        table[name.removeprefix("▸").strip()] = rows.nth(i).locator(".pv-share").all_inner_texts()
    return table, page.locator(".pv-next .pv-chosen th").inner_text().removeprefix("▸").strip()


def value(text):
    return float(text.replace("−", "-").replace("+", "").replace(" nats", ""))


def test_a_token_under_the_pointer_is_explained(open_view, trace):
    page = open_view(ParticleView(trace))
    choose(page, "Sort rows by", "slot")
    hint = page.locator(".pv-hint")
    assert hint.is_visible()
    draw_after(page, lambda: cell(page, 3, 2).hover())
    assert hint.is_hidden()
    assert page.text_content(".pv-inspector .pv-note >> nth=1") == "step 2 · slot 3"
    found, chosen = shown(page)
    table = trace.tables[1]
    prefix = int(table.rows[0, 3])
    assert chosen == SYMBOLS[int(trace.columns.tokens[0, 1, 3])]
    assert len(found) == 3
    for token, log_p, log_q in zip(
        table.tokens[prefix].tolist(),
        table.log_p[prefix].tolist(),
        table.log_q[prefix].tolist(),
        strict=True,
    ):
        p, _, q = found[SYMBOLS[token]]
        assert abs(float(p.split()[0]) / 100 - math.exp(log_p)) < 0.006
        assert abs(float(q.split()[0]) / 100 - math.exp(log_q)) < 0.006
    draw_after(page, lambda: page.mouse.move(2, 2))
    assert hint.is_visible()


def test_the_increment_is_the_sum_that_is_shown(open_view, trace):
    page = open_view(ParticleView(trace))
    choose(page, "Sort rows by", "slot")
    column = trace.columns
    for s in range(4):
        slot = int(torch.isfinite(column.log_increment[0, s]).nonzero()[0])
        draw_after(page, cell(page, slot, s + 1).hover)
        numbers = page.locator(".pv-sum td").all_inner_texts()
        log_p, minus_log_q, gain, total = (value(text) for text in numbers[:4])
        assert abs(log_p - float(column.log_p[0, s, slot])) < 0.006
        assert abs(minus_log_q + float(column.log_q[0, s, slot])) < 0.006
        assert abs(total - float(column.log_increment[0, s, slot])) < 0.006
        assert abs(log_p + minus_log_q + gain - total) < 0.025


def test_a_clicked_token_stays_and_its_words_are_inert(open_view, trace):
    page = open_view(ParticleView(trace))
    choose(page, "Rows show", "texts")
    target = page.locator(".pv-cell", has_text="<scr").first
    draw_after(page, target.click)
    page.mouse.move(2, 2)
    page.wait_for_function("root._view.hover === null")
    assert shown(page)[1] == SYMBOLS[2]
    press_keys(page, "Home")
    wait_for_step(page, 0)
    assert page.locator(".pv-hint").is_visible()
    page.keyboard.press("End")
    wait_for_step(page, 4)
    assert shown(page)[1] == SYMBOLS[2]
    assert page.evaluate("globalThis.hacked") is None


def test_without_tables_it_says_how_to_get_them(open_trace):
    page = open_trace(K=4, T=3)
    draw_after(page, lambda: page.locator(".pv-cell").first.hover())
    assert "top_k=8" in page.text_content(".pv-next caption")
    assert page.locator(".pv-next tbody tr").count() == 1
    assert page.locator(".pv-next thead .pv-col-psi").is_hidden()


def test_looking_sends_nothing_to_python(open_view, trace):
    page = open_view(ParticleView(trace))
    sent = page.evaluate("model.sent")
    draw_after(page, lambda: page.locator(".pv-cell").first.hover())
    draw_after(page, page.locator(".pv-cell").nth(5).click)
    choose(page, "Rows show", "texts")
    choose(page, "Colour tokens by", "surprise")
    assert page.evaluate("model.sent") == sent
