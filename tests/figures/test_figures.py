"""Figures draw what their tables say, no more and no less, in both themes."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from plotly.graph_objects import Figure

import tsmc_widgets as tw
from tsmc_widgets.course import two_days
from tsmc_widgets.evaluation import Bracket
from tsmc_widgets.figures import (
    THEMES,
    bounds_figure,
    calibration_figure,
    frontier_figure,
    gains_figure,
    gap_figure,
    kl_forest_figure,
    log_z_histogram,
    power_figure,
    profiles_figure,
    psi_scatter,
    target_figure,
    where_figure,
)

HOSTILE = "<script>alert(1)</script> $x^2$ & <b>"


def bounds_frame(methods=("SMC", "IWAE")):
    rows = [
        (size, method, method, side, "bound", -2.0 + sign * (1 + 0.2 * place) / size)
        for place, method in enumerate(methods)
        for size in (1, 4, 16)
        for side, sign in (("lower", -1), ("upper", 1))
    ]
    columns = ["num_particles", "method", "rule", "side", "kind", "mean"]
    frame = pd.DataFrame(rows, columns=columns).assign(exact=-2.0)
    frame["pooled"] = frame["mean"] / 2
    for middle, ends in (("mean", ("low", "high")), ("pooled", ("pooled_low", "pooled_high"))):
        frame[ends[0]], frame[ends[1]] = frame[middle] - 0.1, frame[middle] + 0.1
    return frame


def gap_frame(lowest=0.1):
    return pd.DataFrame(
        {
            "num_particles": [1, 4, 16] * 2,
            "method": ["SMC"] * 3 + [HOSTILE] * 3,
            "gap": [2.0, 0.5, lowest, 2.2, 0.7, 0.2],
            "low": [1.5, 0.3, -0.2, 2.0, 0.5, 0.1],
            "high": [2.5, 0.7, 0.4, 2.4, 0.9, 0.3],
        }
    )


def kl_frame():
    return pd.DataFrame(
        {
            "method": ["ctl", "ctl", HOSTILE, HOSTILE],
            "divergence": ["KL(q||σ)", "KL(σ||q)"] * 2,
            "value": [-0.05, 0.4, math.inf, 0.9],
            "low": [-0.15, 0.3, math.inf, 0.8],
            "high": [0.05, 0.5, math.inf, 1.0],
            "remark": ["Negative, as no KL is", "", "infinite", HOSTILE],
            "exact": [0.01, math.nan, math.nan, 0.95],
        }
    )


def frontier_frame():
    return pd.DataFrame(
        {
            "method": ["ctl", "ctl", HOSTILE],
            "beta": [1.0, 4.0, 1.0],
            "kl": [0.5, 1.5, 0.7],
            "kl_low": [0.4, 1.3, 0.6],
            "kl_high": [0.6, 1.7, 0.8],
            "reward": [-2.0, -1.0, -2.5],
            "reward_low": [-2.1, -1.2, -2.6],
            "reward_high": [-1.9, -0.8, -2.4],
        }
    )


def profiles_frame():
    rows = []
    for method in ("p0", HOSTILE):
        for quantity in ("ESS", "surviving ancestors"):
            rows += [
                {"t": t, "quantity": quantity, "mean": 0.5 + t / 10, "low": 0.4 + t / 10,
                 "high": 0.6 + t / 10, "method": method}
                for t in (1, 2, 3)
            ]  # fmt: skip
    return pd.DataFrame(rows)


def runs_frame():
    values = np.random.default_rng(0).normal(-2, 0.3, size=200)
    values[:7] = -math.inf
    return pd.DataFrame(
        {"log_z": values, "side": "lower", "method": ["SMC", HOSTILE] * 100, "exact": -1.9}
    )


def psi_frame():
    return pd.DataFrame(
        {
            "t": [1, 1, 2],
            "text": [HOSTILE, "a" * 300, "c"],
            "learned": [0.5, -0.5, 0.0],
            "optimal": [0.4, -0.4, 0.0],
            "optimal_error": [0.1, 0.0, 0.2],
        }
    )


def steps_frame():
    """As of ``TwistReport.frame``: nothing is known of calibration at T."""
    frame = pd.DataFrame({"t": [1, 2, 3], "bound": 1 / 3})
    for name in ("bellman", "variance", "ess", "ancestors", "kl", "r2", "slope"):
        values = [0.2, 0.5, math.nan if name in ("r2", "slope") else 0.4]
        frame[name] = values
        frame[f"{name}_low"], frame[f"{name}_high"] = frame[name] / 2, frame[name] * 1.5
    return frame


def powers_frame():
    frame = pd.DataFrame({"power": [0.0, 1.0, 2.0], "lower": [-3.0, -2.1, -2.5]})
    return frame.assign(spread=[1.0, 0.1, 0.7], ess=0.5, accepted=0.8, upper=-1.9, exact=-2.0)


def gains_frame():
    return pd.DataFrame({
        "t": [2, 3], "token_text": [HOSTILE, "b"], "gain": [0.5, -1.0], "true_gain": [0.2, -0.4],
        "true_gain_error": [0.1, 0.0],
    })  # fmt: skip


FIGURES = {
    "where": (where_figure, steps_frame, {"against": steps_frame()}),
    "calibration": (calibration_figure, steps_frame, {}),
    "gains": (gains_figure, gains_frame, {}),
    "bounds": (bounds_figure, lambda: bounds_frame(("SMC", HOSTILE)), {}),
    "gap": (gap_figure, gap_frame, {}),
    "forest": (kl_forest_figure, kl_frame, {"label": "method"}),
    "frontier": (frontier_figure, frontier_frame, {}),
    "profiles": (profiles_figure, profiles_frame, {}),
    "histogram": (log_z_histogram, runs_frame, {}),
    "scatter": (psi_scatter, psi_frame, {"statistics": {"slope": 0.9}}),
}


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_titled_escaped_and_pure(name, theme):
    draw, table, options = FIGURES[name]
    frame, before = table(), table()
    figure = draw(frame, theme=theme, title=f"A title {HOSTILE}", **options)
    assert isinstance(figure, Figure)
    pd.testing.assert_frame_equal(frame, before)
    titles = [axis.title.text for axis in (*figure.select_xaxes(), *figure.select_yaxes())]
    assert any(titles), "no axis has a title"
    units = ("nat", "K", "step t", "share", "particles")
    assert all(any(unit in title for unit in units) for title in titles if title)
    written = json.dumps(figure.to_plotly_json(), default=str)
    assert "<script" not in written
    assert "$x^2$" not in written
    assert figure.layout.template.layout.paper_bgcolor == THEMES[theme].paper
    assert figure.layout.template.layout.legend.y < 0, "a legend below the axis covers no data"


def test_figures_of_a_twist_draw_its_table():
    frame = steps_frame()
    figure = where_figure(frame)
    lines = [list(trace.y) for trace in figure.data if trace.mode == "lines+markers"]
    assert lines == [frame[n].tolist() for n in ("variance", "ess", "ancestors", "bellman", "kl")]
    assert [shape.y0 for shape in figure.layout.shapes] == [pytest.approx(1 / 3)]
    calibrated = calibration_figure(frame, frame)
    assert {len(t.y) for t in calibrated.data if t.mode == "lines+markers"} == {2}
    powers = power_figure(powers_frame())
    assert {shape.x0 for shape in powers.layout.shapes if shape.x0 == shape.x1} == {1.0}
    bars = {trace.name: trace for trace in gains_figure(gains_frame()).data}
    assert list(bars["true"].error_y.array) == pytest.approx([0.196, 0.0])


def test_bounds_are_drawn_as_they_are():
    frame = bounds_frame()
    figure = bounds_figure(frame)
    drawn = {(t.name, t.marker.symbol): list(t.y) for t in figure.data if t.mode == "lines+markers"}
    for method in ("SMC", "IWAE"):
        for side, symbol in (("upper", "triangle-up"), ("lower", "triangle-down")):
            rows = frame[(frame["method"] == method) & (frame["side"] == side)]
            assert drawn[method, symbol] == rows["mean"].tolist()
    bands = [t for t in figure.data if t.fill == "toself"]
    assert len(bands) == 4
    assert (
        list(bands[0].y[:3]) == frame.query("method == 'SMC' and side == 'upper'")["high"].tolist()
    )
    assert [shape.y0 for shape in figure.layout.shapes] == [-2.0]
    assert "exact -2.0000" in figure.layout.title.subtitle.text
    assert figure.layout.xaxis.type == "log"
    pooled = bounds_figure(frame, estimate="pooled")
    assert max(max(t.y) for t in pooled.data if t.mode == "lines+markers") == -0.4


def test_a_bracket_stands_behind_the_bounds():
    bracket = Bracket(-2.5, -1.8, 0.1, 1, 1, 1, 1, 0.0, False)
    figure = bounds_figure(bounds_frame(), bracket=bracket)
    assert [(s.y0, s.y1) for s in figure.layout.shapes if s.type == "rect"] == [(-2.5, -1.8)]
    assert "certified bracket -2.5000 to -1.8000" in figure.layout.title.subtitle.text
    opened = Bracket(-math.inf, 0.0, 1.0, 0, 0, 1, 0, 0.0, False)
    figure = bounds_figure(bounds_frame(), bracket=opened)
    assert not [shape for shape in figure.layout.shapes if shape.type == "rect"]


def test_estimates_are_called_so():
    frame = bounds_frame(("SMC",))
    frame.loc[frame["side"] == "upper", "kind"] = "estimate"
    upper = next(t for t in bounds_figure(frame).data if t.marker.symbol == "triangle-up")
    assert upper.line.dash == "dot"
    assert "estimate" in upper.name


def test_runs_that_died_leave_a_hole():
    frame = bounds_frame(("SMC",))
    frame.loc[0, ["mean", "low"]] = -math.inf
    figure = bounds_figure(frame)
    lower = next(t for t in figure.data if t.marker.symbol == "triangle-down")
    assert lower.y[0] is None
    assert len([t for t in figure.data if t.fill == "toself"]) == 1


def test_results_tables_are_read_too():
    frame = bounds_frame().rename(columns={"mean": "value"})
    results = pd.concat(
        [
            frame.assign(quantity="log Z"),
            frame.assign(quantity="log Z, pooled", value=9.0),
            frame[frame["side"] == "lower"].assign(quantity="gap", value=0.5, low=0.4, high=0.6),
        ]
    )
    figure = bounds_figure(results, by="method")
    assert max(max(t.y) for t in figure.data if t.mode == "lines+markers") < 0
    assert list(gap_figure(results, by="method").data[0].y) == [0.5, 0.5, 0.5]
    divergences = kl_frame().rename(columns={"divergence": "quantity"})
    assert len(kl_forest_figure(divergences, label="method").data)


def test_gaps_below_zero_stand_on_the_floor():
    figure = gap_figure(gap_frame(lowest=-0.3))
    assert figure.data[0].y[2] == pytest.approx(0.02)
    assert figure.data[0].customdata[2][0] == -0.3
    assert "1 gaps at or below 0" in figure.layout.title.subtitle.text
    assert "below 0" not in gap_figure(gap_frame()).layout.title.subtitle.text


def test_divergences_are_never_clipped():
    figure = kl_forest_figure(kl_frame(), label="method")
    points = [t for t in figure.data if t.marker.symbol is None and t.x[0] is not None]
    assert [t.x[0] for t in points] == [-0.05, 0.4, 0.9]
    assert points[0].error_x.array[0] == pytest.approx(0.1)
    assert points[0].error_x.arrayminus[0] == pytest.approx(0.1)
    assert [a.text for a in figure.layout.annotations] == ["▷ ∞"]
    exact = [t.x[0] for t in figure.data if t.marker.symbol == "diamond-open"]
    assert exact == [0.01, 0.95]


def test_frontiers_are_drawn_over_beta():
    figure = frontier_figure(frontier_frame().iloc[::-1])
    line = next(t for t in figure.data if t.name == "ctl")
    assert list(line.text) == ["1", "4"]
    assert list(line.x) == [0.5, 1.5]
    assert list(line.error_y.array) == pytest.approx([0.1, 0.2])


def test_dead_runs_are_counted():
    figure = log_z_histogram(runs_frame())
    assert "7 of 200 runs died" in figure.layout.title.subtitle.text
    assert sum(len(t.x) for t in figure.data) == 193
    bins = figure.data[0].xbins
    assert bins.end >= max(max(t.x) for t in figure.data)


def test_profiles_have_a_panel_for_each_quantity():
    figure = profiles_figure(profiles_frame())
    assert {t.yaxis for t in figure.data} == {"y", "y2"}
    named = [t for t in figure.data if t.showlegend]
    assert len(named) == 2


def test_scatter_cuts_long_texts_and_draws_errors():
    figure = psi_scatter(psi_frame())
    points = figure.data[-1]
    assert max(map(len, points.text)) < 120
    assert list(points.error_x.array) == pytest.approx([0.196, 0.0, 0.392])
    assert list(figure.layout.xaxis.range) == list(figure.layout.yaxis.range)
    frame = psi_frame()
    residual = frame["learned"] - frame["optimal"]
    assert points.customdata[:, 2] == pytest.approx(residual)
    listed = figure.layout.annotations[-1].text.split("<br>")[1:]
    worst = residual.abs().sort_values(ascending=False).iloc[:5]
    assert [abs(float(line.split()[0])) for line in listed] == pytest.approx(worst, abs=0.006)


@pytest.mark.parametrize("draw", [figure[0] for figure in FIGURES.values()])
def test_tables_without_their_columns_are_refused(draw):
    with pytest.raises(ValueError, match="needs columns"):
        draw(pd.DataFrame({"a": [1]}))


@pytest.mark.parametrize(
    ("draw", "frame", "options", "message"),
    [
        (bounds_figure, pd.concat([bounds_frame()] * 2), {}, "mean over seeds first"),
        (kl_forest_figure, pd.concat([kl_frame()] * 2), {"label": "method"}, "mean over seeds fir"),
        (bounds_figure, bounds_frame(), {"theme": "sepia"}, "theme must be one of"),
        (bounds_figure, bounds_frame(), {"estimate": "median"}, "estimate must be one of"),
        (gap_figure, gap_frame().iloc[:0], {}, "no rows"),
    ],
)
def test_what_cannot_be_drawn_is_refused(draw, frame, options, message):
    with pytest.raises(ValueError, match=message):
        draw(frame, **options)


@pytest.mark.browser
@pytest.mark.parametrize("name", FIGURES)
def test_in_a_browser_nothing_covers_data(page, tmp_path, name):
    """At a notebook's width: legend outside the plot, titles inside the figure, no script run."""
    draw, table, options = FIGURES[name]
    figure = draw(table(), **options)
    path = tmp_path / "figure.html"
    figure.write_html(path, include_plotlyjs=True, full_html=True)
    page.set_viewport_size({"width": 716, "height": 700})
    page.goto(path.as_uri())
    page.wait_for_selector(".main-svg .gtitle")
    boxes = page.evaluate(
        """() => {
            const box = (element) => {
                const r = element.getBoundingClientRect();
                return [r.left, r.top, r.right, r.bottom];
            };
            const all = (selector) => [...document.querySelectorAll(selector)].map(box);
            return {plots: all('.bglayer .bg, .plot .bg, .cartesianlayer .plot'),
                    legend: all('.legend'), titles: all('.gtitle, .gtitle-subtitle'),
                    scripts: document.querySelectorAll('svg script').length};
        }"""
    )
    assert boxes["scripts"] == 0
    for left, top, right, _ in boxes["titles"]:
        assert left >= 0
        assert top >= 0
        assert right <= 716
    for legend in boxes["legend"]:
        for plot in boxes["plots"]:
            assert legend[1] >= plot[3] - 1, "the legend lies over the plot"


def test_runs_that_nearly_agree_get_bins_too():
    nearly = [-1.65] * 90 + [-1.65 + 1e-16 * i for i in range(9)] + [-0.5]
    for values in (nearly, nearly[:-1], [-2.0]):
        frame = pd.DataFrame({"log_z": values, "exact": None})
        (trace,) = log_z_histogram(frame).data
        spread = trace.xbins.end - trace.xbins.start
        assert 1 <= spread / trace.xbins.size < 300
        assert trace.xbins.start <= min(values) <= max(values) < trace.xbins.end


def test_the_target_moves_with_its_slider():
    target = two_days()
    figure = target_figure(target, powers=(0, 1, 2.5))
    (slider,) = figure.layout.sliders
    p, sigma = (np.array(bar.y) for bar in figure.data)
    for step, power in zip(slider.steps, (0, 1, 2.5), strict=True):
        oracle = tw.exact(target.with_potential(target.potential**power)) if power else None
        (moved,), (bar,) = step.args[0]["y"], step.args[1]
        assert bar == 1
        expected = p if oracle is None else oracle.log_sigma.exp()
        assert np.allclose(moved, expected, atol=1e-12)
        log_z = 0.0 if oracle is None else round(oracle.log_z, 3)
        assert step.label == f"{power:g}, log Z = {log_z + 0.0:.3f}"
    assert slider.active == 1
    assert np.allclose(sigma, tw.exact(target).log_sigma.exp(), atol=1e-12)
    assert list(figure.data[0].x) == target.labels(tw.exact(target).tokens)


def test_of_many_texts_the_likeliest_are_drawn():
    target = tw.load_problem("rainy-week").target()
    figure = target_figure(target, powers=(1,), most=10)
    oracle = tw.exact(target)
    tops = torch.maximum(oracle.log_p.exp(), oracle.log_sigma.exp()).sort(descending=True).values
    drawn = np.maximum(figure.data[0].y, figure.data[1].y)
    assert sorted(drawn, reverse=True) == pytest.approx(tops[:10].tolist(), abs=1e-12)
    assert "233 less likely texts are left out" in figure.layout.title.subtitle.text
    with pytest.raises(ValueError, match="powers must be a number in"):
        target_figure(target, powers=(-1,))
