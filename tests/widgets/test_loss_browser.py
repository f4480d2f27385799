"""Where weight is lost: the parts of each step's variance, and what a click on them shows."""

import pytest
import torch

import tsmc_widgets as tw
from tsmc_widgets.widgets.particle_view import ParticleView
from view_support import draw_after

pytestmark = pytest.mark.browser

LOSSES = "Array.from({length: root._view.record.steps}, (_, s) => root._view.record.loss(s))"


@pytest.fixture(scope="module")
def target():
    return tw.load_problem("rainy-week").target()


def sweep(target, twist, **options):
    return tw.run_smc(
        target, num_particles=32, twist=twist, ess_threshold=0.8, top_k=8, seed=1, **options
    )


def parts_of(target, twist, trace):
    """Variance of each step's log increments and its parts, from log psi of all of V."""
    columns, found = trace.columns, []
    for t in range(trace.num_steps):
        weights = torch.full((32,), 1 / 32, dtype=torch.float64)
        if t and not columns.resampled[0, t]:
            weights = torch.softmax(columns.log_weights[0, t - 1], 0)[columns.ancestors[0, t]]
        increment = columns.log_increment[0, t].double()
        off = weights * (increment - (weights * increment).sum())
        if t + 1 == trace.num_steps:
            found.append({"end": float((off * increment).sum()), "drawn": 0.0, "changed": 0.0})
            continue
        slots = torch.arange(32)
        path = []
        for s in range(t, -1, -1):
            slots = columns.ancestors[0, s][slots] if s < t else columns.ancestors[0, t]
            if s:
                path.insert(0, columns.tokens[0, s - 1][slots])
        prefix = torch.stack(path, 1) if path else torch.zeros(32, 0, dtype=torch.long)
        prompt = target.prompt_tokens.expand(32, -1)
        given = torch.cat([prompt, prefix], 1)
        step = target.lm.prefill(given)
        value = (step.log_probs.double() + twist.prefill(given, step).log_psi_next).logsumexp(1)
        drawn = (columns.log_p + columns.log_psi - columns.log_q)[0, t].double() - value
        parts = {"drawn": drawn, "changed": increment - drawn}
        sums = {name: float((off * part).sum()) for name, part in parts.items()}
        found.append({**sums, "end": 0.0})
    return found


@pytest.mark.parametrize("proposal", ["base", "induced"])
def test_the_parts_are_those_of_the_whole_vocabulary(open_view, target, proposal):
    twist = tw.LookAheadTwist(target)
    q = {"proposal": tw.TwistInduced()} if proposal == "induced" else {}
    trace = sweep(target, twist, **q)
    page = open_view(ParticleView(trace))
    losses = page.evaluate(LOSSES)
    for shown, exact in zip(losses, parts_of(target, twist, trace), strict=True):
        for name, value in exact.items():
            assert shown[name] == pytest.approx(value, abs=1e-5), name
        assert shown["total"] == pytest.approx(sum(exact.values()), abs=1e-5)
        if proposal == "induced":
            assert shown["drawn"] == pytest.approx(0, abs=1e-5)


def test_a_click_on_a_bar_shows_the_worst_particle_of_its_step(open_view, target):
    trace = sweep(target, tw.LookAheadTwist(target), proposal=tw.TwistInduced())
    page = open_view(ParticleView(trace))
    box = page.locator(".pv-strip-loss canvas").bounding_box()
    step = 3
    x = box["x"] + 42 + (box["width"] - 52) * (step - 0.5) / trace.num_steps
    draw_after(page, lambda: page.mouse.click(x, box["y"] + 20))
    assert page.evaluate("root._stats.t") == step
    assert page.get_by_label("Sort rows by").input_value() == "loss"
    increments = trace.columns.log_increment[0, step - 1]
    slot = page.evaluate("root._view.selection.slot")
    assert float(increments[slot]) == float(increments.min())
    assert f"step {step} · slot {slot}" in page.text_content(".pv-inspector")
    assert "Of the increment" in page.text_content(".pv-blame")
    assert "token drawn" in page.text_content(".pv-strip-loss figcaption")


def test_a_psi_that_does_not_read_the_token_is_said_to(open_view):
    target = tw.load_problem("one-star-review").target()
    trace = tw.run_smc(
        target, num_particles=4, twist=tw.LookAheadTwist(target), top_k=8, seed=1
    )  # fmt: skip
    page = open_view(ParticleView(trace))
    draw_after(page, lambda: page.keyboard.press("Home"))
    draw_after(page, lambda: page.locator(".pv-scroller").press("ArrowRight"))
    draw_after(page, lambda: page.locator(".pv-scroller").press("ArrowRight"))
    draw_after(page, lambda: page.locator(".pv-cell").nth(1).click())
    said = page.text_content(".pv-blame")
    assert "ψ is the same for every token here" in said
    assert "0.00 is the token drawn" in said
