"""The comparison's script in Chromium, against a model that only remembers what it is told."""

import copy
import re

import pytest

from tsmc_widgets.widgets.compare_runs import CompareSettings, menu
from tsmc_widgets.widgets.front_end import CompareView
from view_support import UNMARKED, press_main

pytestmark = pytest.mark.browser

EVIL = "<img src=x onerror=globalThis.hacked=1>"
PROBLEMS = ("rainy-week", "one-star-review")
METHODS = ("none", "optimal", "shipped", "ctl")


def cell(
    method, quantity, mean, *, size=0, rule="", kind="estimate", half=0.1, seeds=2, best=False
):
    ends = [mean, mean - half, mean + half] if isinstance(mean, float) else [mean] * 3
    return [method, rule, quantity, size, kind, *ends, seeds, best, "seeds"]


def measured(*methods, exact=-1.65):
    cells = []
    for i, method in enumerate(methods):
        cells += [
            cell(method, "KL(σ||q)", 1.0 + i, best=i == 0),
            cell(method, "KL(q||σ)", 2.0 + i),
            cell(method, "KL(q||p0)", 0.5 * i),
            cell(method, "E_q[log φ]", -3.0 + i),
        ]
        for size in (1, 16):
            at = {"size": size, "rule": "ESS < 0.5 K", "kind": "bound"}
            cells += [
                cell(method, "lower", -1.65 - (1 + i) / size, **at),
                cell(method, "upper", -1.65 + (1 + i) / size, **at),
                cell(method, "gap", 2 * (1 + i) / size, **at),
            ]
    profiles = [
        [m, "ESS < 0.5 K", k, q, [1.0, 0.7, 0.4]]
        for m in methods
        for k in (1, 16)
        for q in ("ESS / K", "surviving ancestors / K")
    ]
    rows = [[m, [2, 5, 3], 2 * (m == "none")] for m in methods]
    histograms = [["ESS < 0.5 K", k, -2.0, 0.3, rows] for k in (1, 16)]
    return {"exact": exact, "cells": cells, "profiles": profiles, "histograms": histograms}


def state(**status):
    settings = CompareSettings(
        problems=PROBLEMS, methods=METHODS, num_particles=(1, 16), seeds=2, num_updates=60
    )
    plan = [
        {"problem": p, "method": m, "seeds": "dd"}
        for p in PROBLEMS
        for m in METHODS
        if (p, m) not in settings.misfits
    ]
    plan += [{"problem": p, "method": m, "why": why} for (p, m), why in settings.misfits.items()]
    told = {
        "state": "idle", "done": 0, "total": 12, "running": [], "left": None, "workers": 2,
        "folder": "results", "error": "", "failures": [], "note": "",
    }  # fmt: skip
    results = {
        "rainy-week": measured("none", "optimal", "ctl"),
        "one-star-review": measured("none", "shipped", "ctl", exact=None),
    }
    return {
        "menu": menu(settings, {}), "settings": settings.to_dict(), "plan": plan,
        "results": results, "status": told | status, "stem": "comparison", "ask": {},
    }  # fmt: skip


@pytest.fixture
def open_comparison(open_state):
    def show(given=None, **status):
        return open_state(CompareView, state(**status) if given is None else given)

    return show


def redraw(page, act):
    before = page.evaluate("root._stats.renders")
    act()
    page.wait_for_function(f"root._stats.renders > {before}")


def rows_of(page, where):
    rows = page.locator(f"{where} tbody tr")
    return {row.locator("th").inner_text(): row.inner_text() for row in rows.all()}


def test_every_cell_says_what_it_is(open_comparison):
    page = open_comparison()
    rows = rows_of(page, ".cm-one")
    for method in ("none: ψ = 1", "optimal ψ*", "CTL"):
        assert rows[method].count("estimate") == 3
        assert rows[method].count("bound") == 3
    assert "1.00 ± 0.10" in rows["none: ψ = 1"]
    assert "no twist ships for it" in rows["shipped"]
    assert page.locator(".cm-one strong").inner_text() == "1.00 ± 0.10"
    title = page.locator(".cm-one td").first.get_attribute("title")
    assert "95 % t-interval over 2 seeds: [0.9000, 1.1000]" in title
    assert "log Z = −1.6500, exact" in page.inner_text(".cm-heading >> nth=1")


def test_all_problems_stand_side_by_side(open_comparison):
    page = open_comparison()
    heads = page.locator(".cm-overview thead th").all_inner_texts()
    assert heads == ["method", *PROBLEMS]
    rows = rows_of(page, ".cm-overview")
    assert "too large to be enumerated" in rows["optimal ψ*"]
    redraw(page, lambda: page.get_by_label("number").select_option("gap"))
    assert "0.13 ± 0.10" in rows_of(page, ".cm-overview")["none: ψ = 1"]
    redraw(page, lambda: page.get_by_label("K", exact=True).select_option("1"))
    assert "2.00 ± 0.10" in rows_of(page, ".cm-overview")["none: ψ = 1"]
    redraw(page, lambda: page.get_by_label("problem", exact=True).select_option("one-star-review"))
    assert "exact" not in page.inner_text(".cm-heading >> nth=1")


def test_what_is_not_done_is_dots_and_some_seeds_are_said_to_be_some(open_comparison):
    given = state(state="running", done=3, running=[["rainy-week · ctl · seed 1", 4.0]], left=30.0)
    given["plan"][0]["seeds"], given["plan"][2]["seeds"] = "dr", "ww"
    found = given["results"]["rainy-week"]["cells"]
    found[:] = [[*c[:8], 1, False, "runs"] if c[0] == "none" else c for c in found if c[0] != "ctl"]
    page = open_comparison(given)
    rows = rows_of(page, ".cm-overview")
    assert "●◐" in rows["none: ψ = 1"].replace("\n", "")
    assert page.locator(".cm-overview .cm-partial").count() == 1
    assert "○○" in rows["CTL"].replace("\n", "")
    assert page.locator("[aria-label='1 running, 1 done']").count() == 2
    line = page.inner_text(".pv-status")
    assert re.search(
        r"3 of 12 runs done · at rainy-week · ctl · seed 1 for \d+ s · about .* left", line
    )
    assert page.locator(".cm-controls input:not([disabled])").count() == 0


def test_the_main_button_says_what_it_does(open_comparison):
    page = open_comparison()
    for status, label, act in (
        ({"state": "idle"}, "Start", "start"),
        ({"state": "running"}, "Pause", "pause"),
        ({"state": "pausing", "done": 2}, "Pausing", None),
        ({"state": "paused", "done": 2}, "Go on", "start"),
        ({"state": "cancelled", "done": 2}, "Go on", "start"),
        ({"state": "failed", "done": 2}, "Try again", "start"),
        ({"state": "done", "done": 12}, "All done", None),
    ):
        assert press_main(page, state(**status)["status"]) == (label, act)
        cancels = status["state"] in ("running", "pausing")
        assert page.get_by_role("button", name="Cancel").is_enabled() == cancels


def test_chips_move_the_settings_and_the_last_one_stays(open_comparison):
    page = open_comparison()
    redraw(page, lambda: page.get_by_label("eos").check())
    assert page.evaluate("model.state.settings.problems") == [
        "rainy-week",
        "eos",
        "one-star-review",
    ]
    redraw(page, lambda: page.get_by_label("64", exact=True).check())
    assert page.evaluate("model.state.settings.num_particles") == [1, 16, 64]
    redraw(page, lambda: page.get_by_label("ESS < K/2").click())
    assert page.evaluate("model.state.settings.rules") == ["ess"]
    assert page.get_by_label("ESS < K/2").is_checked()
    redraw(page, lambda: page.get_by_label("seeds", exact=True).select_option("5"))
    assert page.evaluate("model.state.settings.seeds") == 5
    # A value that was set from code is one of the menu.
    assert page.get_by_label("updates").input_value() == "60"


def test_texts_are_never_markup(open_comparison):
    given = state(state="done", done=11, error=EVIL, failures=[[EVIL, EVIL]], note=EVIL)
    entry = next(p for p in given["menu"]["problems"] if p["name"] == "rainy-week")
    given["menu"]["problems"].append(
        entry | {"name": EVIL, "value": {"name": EVIL}, "group": "own", "summary": EVIL}
    )
    given["settings"]["problems"] = [{"name": EVIL}, "rainy-week"]
    given["results"][EVIL] = measured("none")
    page = open_comparison(given)
    assert page.inner_text(".cm-failures").count(EVIL) == 2
    assert page.locator(".cm img").count() == 0
    assert page.evaluate("globalThis.hacked") is None


def test_infinite_numbers_are_said_and_nothing_breaks(open_comparison):
    given = state()
    cells = given["results"]["rainy-week"]["cells"]
    for c in cells:
        if c[0] == "none":
            c[5:8] = ["-Infinity" if c[2] in ("lower", "E_q[log φ]") else "Infinity"] * 3
    page = open_comparison(given)
    rows = rows_of(page, ".cm-one")
    assert "∞" in rows["none: ψ = 1"]
    assert "infinite, so not drawn, at some K: none" in page.inner_text(".pv-strip-bounds")
    assert "−∞ and not drawn: none" in page.inner_text(".pv-strip-reward")
    assert "died: none: ψ = 1 2 of 12" in page.inner_text(".pv-strip-spread")


def test_a_method_is_brought_out_and_numbers_stand_under_the_pointer(open_comparison):
    page = open_comparison()
    button = page.locator(".cm-method", has_text="CTL")
    redraw(page, button.click)
    assert button.get_attribute("aria-pressed") == "true"
    mark = page.evaluate("""() => {
        const canvas = root.querySelector('.pv-strip-bounds canvas');
        canvas.scrollIntoView();
        const box = canvas.getBoundingClientRect();
        return [box.x, box.y, box.width];
    }""")
    page.mouse.move(mark[0] + 60, mark[1] + 40)
    found = None
    for up in range(5, 235, 6):
        for right in (50, 60, 70):
            page.mouse.move(mark[0] + right, mark[1] + up)
            if page.locator(".pv-strip-bounds .cm-tip").is_visible():
                found = page.inner_text(".pv-strip-bounds .cm-tip")
                break
        if found:
            break
    assert "K = 1" in found
    assert "(bound)" in found
    redraw(page, button.click)
    assert button.get_attribute("aria-pressed") == "false"


def test_focus_and_choice_outlive_new_results(open_comparison):
    page = open_comparison()
    page.get_by_label("problem", exact=True).select_option("one-star-review")
    button = page.locator(".cm-method", has_text="CTL")
    redraw(page, button.click)
    fresh = copy.deepcopy(state()["results"])
    fresh["one-star-review"]["cells"][0][5] = 7.77
    redraw(page, lambda: page.evaluate("results => model.set('results', results)", fresh))
    assert "7.77" in rows_of(page, ".cm-one")["none: ψ = 1"]
    assert page.evaluate("document.activeElement.value") == "ctl"
    assert page.get_by_label("problem", exact=True).input_value() == "one-star-review"


def test_exports_send_the_name_with_the_press(open_comparison):
    page = open_comparison(state="done", done=12)
    page.get_by_label("Name of the files to write").fill("elsewhere")
    page.get_by_role("button", name="LaTeX").click()
    assert page.evaluate("[model.state.stem, model.state.ask.act]") == ["elsewhere", "tex"]
    assert open_comparison().get_by_role("button", name="CSV").is_disabled()


def test_keys_stay_in_the_widget_and_a_closed_view_is_silent(open_comparison):
    page = open_comparison()
    assert page.evaluate(UNMARKED) == []
    sent = page.evaluate("model.sent")
    page.evaluate("cleanup()")
    page.evaluate("model.set('status', { state: 'running' })")
    assert page.evaluate("[model.sent, Object.values(model.handlers).flat().length]") == [sent, 0]
    assert page.locator(".cm").count() == 0
