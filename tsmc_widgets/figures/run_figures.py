"""Runs and twists as figures: profiles, log Z_hat, where a twist errs, powers; the target."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from tsmc_widgets import numerics
from tsmc_widgets.errors import as_list, check_integer, check_number, check_one_of
from tsmc_widgets.evaluation.what_if import best_power
from tsmc_widgets.figures.tables import check_frame, exact_of, lines, one_row_each, require
from tsmc_widgets.figures.theme import HEIGHT, Theme, new_figure, note, safe
from tsmc_widgets.smc.exact import EnumeratedOracle
from tsmc_widgets.targets.target import Target, check_target

MOST_BINS = 200
PROFILE_HOVER = "step %{x}: %{y:.3f}<extra>%{fullData.name}</extra>"


def profiles_figure(
    frame: pd.DataFrame,
    *,
    by: str | Sequence[str] | None = None,
    theme: str = "light",
    title: str = "Effective sample size and surviving ancestors",
) -> go.Figure:
    """ESS and surviving ancestors as shares of K, step by step, with 95 % bands over runs.

    Args:
        frame: ``profiles(trace)`` of one trace, or of several with a column that names them.
        by: columns that tell lines apart; None takes those that differ.
        theme: "light" or "dark".
        title: above the figure.
    """
    require(frame, ("t", "quantity", "mean", "low", "high"), "a figure of profiles")
    look, empty = new_figure(theme, title)
    panels = list(dict.fromkeys(frame["quantity"]))
    figure = make_subplots(rows=len(panels), shared_xaxes=True, vertical_spacing=0.07, figure=empty)
    for index, (name, rows) in enumerate(lines(frame, by)):
        for row, panel in enumerate(panels, start=1):
            part = rows[rows["quantity"] == panel].sort_values("t")
            one_row_each(part, ["t"], f"{name}, {panel}")
            at, x = {"row": row, "col": 1}, part["t"].tolist()
            for area in look.band(index, name, x, part["low"], part["high"]):
                figure.add_trace(area, **at)
            about = {"legendgroup": safe(name), "showlegend": row == 1 and bool(name)}
            about |= {"marker": {"size": 6}, "hovertemplate": PROFILE_HOVER}
            figure.add_trace(look.curve(index, name or "mean", x, part["mean"], **about), **at)
    for row, panel in enumerate(panels, start=1):
        figure.update_yaxes(
            title_text=f"{safe(panel)} / K", range=[0, 1.04], row=row, col=1, dtick=0.25
        )
    steps = int(frame["t"].max())
    figure.update_xaxes(title_text="step t", row=len(panels), col=1)
    figure.update_xaxes(range=[0.7, steps + 0.3], dtick=max(1, round(steps / 10)))
    figure.update_layout(height=190 + 190 * len(panels), legend_y=-0.14)
    note(figure, "bands: 95 % t-intervals over runs")
    return figure


def log_z_histogram(
    frame: pd.DataFrame,
    *,
    by: str | Sequence[str] | None = None,
    side: str = "lower",
    bins: int | None = None,
    theme: str = "light",
    title: str = "log Ẑ of single runs",
) -> go.Figure:
    """How log Z_hat spreads over runs; runs that died are counted, not drawn.

    Args:
        frame: ``BoundsTable.runs_frame()``, or any table with a column log_z.
        by: columns that tell histograms apart; None takes those that differ.
        side: "lower" for forward runs, "upper" for conditional ones, where the table has both.
        bins: how many; None chooses by the spread of the data.
        theme: "light" or "dark".
        title: above the figure.
    """
    check_frame(frame)
    check_one_of("side", side, ("lower", "upper"))
    if bins is not None:
        bins = check_integer("bins", bins)
    if "side" in frame.columns:
        frame = frame[frame["side"] == side]
    require(frame, ["log_z"], "a histogram")
    look, figure = new_figure(theme, title)
    alive = frame[np.isfinite(frame["log_z"])]
    dead = len(frame) - len(alive)
    require(alive, ["log_z"], "a histogram of runs that live")
    low, high, width = _bins(alive["log_z"].to_numpy(), bins)
    for index, (name, rows) in enumerate(lines(alive, by)):
        figure.add_trace(
            go.Histogram(
                x=rows["log_z"],
                name=f"{safe(name)} ({len(rows):,} runs)",
                histnorm="probability density",
                xbins={"start": low, "end": high + width, "size": width},
                marker={
                    "color": look.faint(index, 0.35),
                    "line": {"color": look.colour(index), "width": 1},
                },
                hovertemplate="%{x} nats<br>density %{y:.3g}<extra>%{fullData.name}</extra>",
            )
        )
    exact, notes = exact_of(frame), []
    if exact is not None:
        figure.add_vline(x=exact, line=look.truth_line)
        notes.append(f"dashed: exact {exact:.4f}")
    notes += [f"{dead:,} of {len(frame):,} runs died (log Ẑ = −∞)"] * bool(dead)
    note(figure, *notes)
    figure.update_layout(barmode="overlay", bargap=0.0, showlegend=True)
    figure.update_xaxes(title_text="log Ẑ, nats")
    figure.update_yaxes(title_text="density, 1 / nat")
    return figure


def target_figure(
    target: Target,
    *,
    powers: Sequence[float | int] = (0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2, 3, 4),
    most: int = 27,
    theme: str = "light",
    title: str = "What the model writes, p₀, and what is asked for, σ",
) -> go.Figure:
    """p0 and sigma of every text of a target that can be enumerated; a slider moves phi's power.

    The slider needs no kernel.

    Args:
        target: as for ``exact``.
        powers: the values of beta to choose from; sigma is proportional to p0 phi^beta.
        most: texts to draw; of more, those that are likeliest under p0 or sigma.
        theme: "light" or "dark".
        title: above the figure.

    Raises:
        BudgetError: the target has too many texts.
    """
    check_target(target)
    powers = [check_number("powers", power, "[0, inf)") for power in as_list("powers", powers)]
    most = check_integer("most", most)
    look, figure = new_figure(theme, title)
    world = EnumeratedOracle(target)
    # 0 times -inf: to the power of 0, phi is 1 everywhere.
    scaled = [power * world.log_phi if power else 0 * world.log_p for power in powers]
    joint = world.log_p + torch.stack(scaled)
    log_z = numerics.logsumexp(joint)
    p, sigma = world.log_p.exp(), numerics.normalise(joint)
    shown = torch.maximum(p, sigma.amax(0)).argsort(descending=True, stable=True)[:most]
    shown = shown.sort().values
    names = [safe(text) for text in target.labels(world.tokens[shown])]
    start = min(range(len(powers)), key=lambda i: abs(powers[i] - 1))
    for index, (name, heights) in enumerate([("p₀", p), ("σ", sigma[start])]):
        figure.add_trace(
            go.Bar(
                x=names,
                y=heights[shown].tolist(),
                name=name,
                marker_color=look.colour(index),
                hovertemplate="%{x}: %{y:.4f}<extra>%{fullData.name}</extra>",
            )
        )
    figure.update_layout(
        barmode="group",
        height=HEIGHT + 90,
        legend={"x": 1, "xanchor": "right", "y": 1.02, "yanchor": "bottom"},
        sliders=[_power_slider(powers, log_z.tolist(), sigma[:, shown].tolist(), start, look)],
    )
    left = len(world.tokens) - len(shown)
    note(figure, "σ ∝ p₀ φ^β", f"{left:,} less likely texts are left out" if left else "")
    figure.update_yaxes(title_text="probability", range=[0, 1])
    return figure


def _power_slider(
    powers: Sequence[float | int],
    log_z: list[float],
    sigma: list[list[float]],
    start: int,
    look: Theme,
) -> dict[str, Any]:
    steps = [
        {
            "method": "restyle",
            "label": f"{power:g}, log Z = {round(value, 3) + 0.0:.3f}",
            "args": [{"y": [y]}, [1]],
        }
        for power, value, y in zip(powers, log_z, sigma, strict=True)
    ]
    for step in steps:
        step["value"] = step["label"]
    shown = {"prefix": "power β = ", "suffix": " nats", "font": {"size": 13, "color": look.ink}}
    return {
        "steps": steps,
        "active": start,
        "currentvalue": shown,
        "font": {"color": "rgba(0,0,0,0)"},
        "ticklen": 0,
        "minorticklen": 0,
        "pad": {"t": 44},
    }


def _bins(values: np.ndarray, count: int | None) -> tuple[float, float, float]:
    """Both ends and the width of ``count`` bins, or of as many as suit the spread of the values."""
    low, high = float(values.min()), float(values.max())
    if high - low < 1e-9:
        return low - 0.5, high + 0.5, 1.0 / (count or 10)
    if count is None:
        quarter, rest = np.quantile(values, [0.25, 0.75])
        usual = 2 * (rest - quarter) / len(values) ** (1 / 3)
        # Where most values agree their quartiles do, and the usual width would be none.
        count = math.ceil((high - low) / max(usual, (high - low) / MOST_BINS))
    return low, high, (high - low) / count


WHERE = (
    ("variance", "variance of log increments, nats²"),
    ("ess", "ESS / K"),
    ("ancestors", "surviving ancestors / K"),
    ("bellman", "Bellman error, nats"),
    ("kl", "KL(σ_t‖π_t), nats"),
)
"""Columns of ``TwistReport.frame`` and what they are called."""
CALIBRATION = (
    ("r2", "R²"),
    ("slope", "best power of ψ"),
    ("rank_correlation", "rank correlation"),
)
POWER = (
    ("lower", "log Z, lower bound, nats"),
    ("ess", "ESS / K"),
    ("accepted", "share with φ > 0"),
)


def where_figure(
    frame: pd.DataFrame,
    against: pd.DataFrame | None = None,
    *,
    theme: str = "light",
    title: str = "Where the twist errs",
) -> go.Figure:
    """Per-step signals side by side, with 95 % intervals; dashed: 1 / T.

    Args:
        frame: ``TwistReport.frame``.
        against: that of another twist.
        theme: "light" or "dark".
        title: above the figure.
    """
    for table in (frame,) if against is None else (frame, against):
        require(table, ("t", "bellman", "bound"), "a figure of where a twist errs")
    figure, look, shown = _panels(frame, against, WHERE, theme, title)
    if "bellman" in shown:
        figure.add_hline(
            y=float(frame["bound"].iloc[0]), line=look.truth_line, row=1,
            col=shown.index("bellman") + 1,
        )  # fmt: skip
    note(figure, "bands: 95 % intervals", "dashed: 1/T, up to which cost is polynomial in T")
    return figure


def calibration_figure(
    frame: pd.DataFrame,
    against: pd.DataFrame | None = None,
    *,
    theme: str = "light",
    title: str = "True on learned log ψ",
) -> go.Figure:
    """R^2, slope and rank correlation of true on learned log psi at each step; 1 is right.

    Args:
        frame: ``TwistReport.frame``.
        against: that of another twist, or of another checkpoint.
        theme: "light" or "dark".
        title: above the figure.
    """
    for table in (frame,) if against is None else (frame, against):
        require(table, ("t", "r2", "slope"), "a figure of calibration")
    frame = frame[frame["r2"].notna()]
    against = None if against is None else against[against["r2"].notna()]
    figure, look, shown = _panels(frame, against, CALIBRATION, theme, title)
    for column in range(len(shown)):
        figure.add_hline(y=1.0, line=look.truth_line, row=1, col=column + 1)
    note(figure, "bands: 95 % intervals by bootstrap over prefixes", "dashed: right")
    return figure


def power_figure(
    frame: pd.DataFrame, *, theme: str = "light", title: str = "Powers of ψ"
) -> go.Figure:
    """Bounds, ESS and acceptance against a in psi^a; the best a is marked.

    Args:
        frame: ``power_sweep``.
        theme: "light" or "dark".
        title: above the figure.
    """
    require(frame, ("power", "lower", "spread"), "a figure of powers")
    best = best_power(frame)
    figure, look, shown = _panels(frame, None, POWER, theme, title, x="power")
    if "upper" in frame.columns:
        _draw(figure, look, 1, "upper bound", frame, "upper", "power", 1)
    known = "exact" in frame.columns and math.isfinite(frame["exact"].iloc[0])
    if known:
        figure.add_hline(y=float(frame["exact"].iloc[0]), line=look.truth_line, row=1, col=1)
    for column in range(0 if math.isnan(best) else len(shown)):
        figure.add_vline(
            x=best, line={"color": look.colour(1), "dash": "dot"}, row=1, col=column + 1
        )
    figure.update_xaxes(title_text="a in ψ^a")
    dotted = f"dotted: best a = {best:g}, with the smallest spread of log Ẑ"
    exact = "dashed: exact log Z" if known else ""
    note(figure, "" if math.isnan(best) else dotted, exact)
    return figure


def gains_figure(
    frame: pd.DataFrame, *, theme: str = "light", title: str = "What each token gains"
) -> go.Figure:
    """Gain log psi_t - log psi_{t-1} of each token of one text, beside the true one.

    Args:
        frame: columns t, token_text, gain, true_gain and its standard error true_gain_error.
        theme: "light" or "dark".
        title: above the figure.
    """
    require(frame, ("t", "token_text", "gain", "true_gain"), "a figure of gains")
    look, figure = new_figure(theme, title)
    places = [f"{t} {safe(text)}" for t, text in zip(frame["t"], frame["token_text"], strict=True)]
    error = 1.96 * frame["true_gain_error"] if "true_gain_error" in frame.columns else None
    for index, (name, column) in enumerate((("learned", "gain"), ("true", "true_gain"))):
        bars = None if error is None or column == "gain" else {"array": error}
        figure.add_trace(
            go.Bar(
                x=places, y=frame[column], name=name, marker_color=look.colour(index), error_y=bars
            )
        )
    figure.update_layout(barmode="group")
    figure.update_yaxes(title_text="log ψ_t − log ψ_{t−1}, nats")
    note(figure, "bars on true gains: 95 % intervals of rollouts" if error is not None else "")
    return figure


def _panels(
    frame: pd.DataFrame,
    against: pd.DataFrame | None,
    panels: tuple[tuple[str, str], ...],
    theme: str,
    title: str,
    x: str = "t",
) -> tuple[go.Figure, Theme, list[str]]:
    """Small plots side by side, a line for each table."""
    look, empty = new_figure(theme, title)
    shown = [(name, words) for name, words in panels if name in frame.columns]
    figure = make_subplots(
        cols=len(shown), subplot_titles=[safe(words) for _, words in shown], figure=empty
    )
    tables = [("twist", frame)] + ([] if against is None else [("against", against)])
    for column, (name, _) in enumerate(shown, start=1):
        for index, (who, table) in enumerate(tables):
            if name in table.columns:
                _draw(figure, look, index, who, table, name, x, column)
    figure.update_annotations(font_size=11.5)
    figure.update_xaxes(title_text="step t" if x == "t" else x)
    figure.update_layout(height=330, showlegend=against is not None)
    return figure, look, [name for name, _ in shown]


def _draw(
    figure: go.Figure,
    look: Theme,
    index: int,
    who: str,
    table: pd.DataFrame,
    name: str,
    x: str,
    column: int,
) -> None:
    at = {"row": 1, "col": column}
    if f"{name}_low" in table.columns:
        known = table[table[f"{name}_low"].notna()]
        ends = known[f"{name}_low"], known[f"{name}_high"]
        for area in look.band(index, who, known[x].tolist(), *ends):
            figure.add_trace(area, **at)
    about = {"legendgroup": who, "showlegend": column == 1, "marker": {"size": 5}}
    about["hovertemplate"] = "%{x}: %{y:.3f}<extra>" + who + "</extra>"
    figure.add_trace(look.curve(index, who, table[x].tolist(), table[name], **about), **at)
