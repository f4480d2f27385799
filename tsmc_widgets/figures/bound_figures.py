"""Bounds on log Z and their gap, against the number of particles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from tsmc_widgets.errors import check_kind, check_one_of
from tsmc_widgets.evaluation.bracket import Bracket
from tsmc_widgets.figures.tables import exact_of, lines, one_row_each, pick, require
from tsmc_widgets.figures.theme import Theme, new_figure, note, safe

ESTIMATES = {
    "mean": ("log Z", "mean", "low", "high"),
    "pooled": ("log Z, pooled", "pooled", "pooled_low", "pooled_high"),
}

DODGE = 1.04


def bounds_figure(
    frame: pd.DataFrame,
    *,
    by: str | Sequence[str] | None = None,
    estimate: str = "mean",
    bracket: Any = None,
    theme: str = "light",
    title: str = "Bounds on log Z",
) -> go.Figure:
    """Lower and upper bounds against K with 95 % bands, and log Z itself where it is known.

    Args:
        frame: ``BoundsTable.to_frame()``, or ``ResultTable.to_frame()`` of one problem.
        by: columns that tell lines apart; None takes those that differ.
        estimate: "mean" for the bounds, "pooled" for the tighter estimates.
        bracket: a ``Bracket`` to draw behind them.
        theme: "light" or "dark".
        title: above the figure.
    """
    check_one_of("estimate", estimate, ESTIMATES)
    quantity, middle, low, high = ESTIMATES[estimate]
    frame = pick(frame, quantity, middle)
    results = "quantity" in frame.columns
    if results:
        low, high = "low", "high"
    require(frame, ("num_particles", "side", middle, low, high), "a figure of bounds")
    look, figure = new_figure(theme, title)
    over = "seeds" if "num_seeds" in frame.columns and frame["num_seeds"].max() > 1 else "runs"
    notes = ["▲ upper", "▼ lower", f"bands: 95 % t-intervals over {over}"]
    if bracket is not None:
        check_kind("bracket", bracket, Bracket, "what bracket_log_z gives")
    bounded = bracket is not None and math.isfinite(bracket.width)
    for index, (name, rows) in enumerate(lines(frame, by)):
        for side in ("upper", "lower"):
            part = rows[(rows["side"] == side) & rows[middle].notna()].sort_values("num_particles")
            if part.empty:
                continue
            one_row_each(part, ["num_particles"], f"{name}, {side}")
            _draw_side(figure, look, index, name, side, part, (middle, low, high))
    exact = exact_of(frame)
    if bounded:
        _draw_bracket(figure, look, bracket)
        notes.append(f"grey: certified bracket {bracket.lower:.4f} to {bracket.upper:.4f}")
    if exact is not None:
        figure.add_hline(y=exact, line=look.truth_line, layer="below")
        notes.append(f"dashed: exact {exact:.4f}")
    kind = " (pooled)" if estimate == "pooled" else ""
    figure.update_yaxes(title_text=f"log Z{kind}, nats")
    note(figure, *notes)
    _particles_axis(figure, frame)
    return figure


def gap_figure(
    frame: pd.DataFrame,
    *,
    by: str | Sequence[str] | None = None,
    theme: str = "light",
    title: str = "Gap between the bounds",
) -> go.Figure:
    """Upper minus lower bound against K, both axes logarithmic, with 95 % intervals.

    Args:
        frame: ``BoundsTable.gap_frame()``, or ``ResultTable.to_frame()`` of one problem.
        by: columns that tell lines apart; None takes those that differ.
        theme: "light" or "dark".
        title: above the figure.
    """
    frame = pick(frame, "gap", "gap")
    require(frame, ("num_particles", "gap", "low", "high"), "a figure of gaps")
    look, figure = new_figure(theme, title)
    positive = frame.loc[frame["gap"] > 0, "gap"]
    floor = float(positive.min()) / 10 if len(positive) else 1e-3
    named = list(lines(frame, by))
    for index, (name, rows) in enumerate(named):
        part = rows[rows["gap"].notna()].sort_values("num_particles")
        one_row_each(part, ["num_particles"], name)
        shown = part["gap"].clip(lower=floor)
        figure.add_trace(
            go.Scatter(
                # Side by side, so that no bar hides another.
                x=part["num_particles"] * DODGE ** (index - (len(named) - 1) / 2),
                y=shown,
                name=safe(name),
                mode="lines+markers",
                line=look.line(index),
                marker=look.mark(index),
                error_y=look.bars(shown, part["low"].clip(lower=floor / 2), part["high"]),
                customdata=part[["gap", "low", "high", "num_particles"]],
                hovertemplate="K = %{customdata[3]}<br>gap %{customdata[0]:.4g} nats "
                "[%{customdata[1]:.4g}, %{customdata[2]:.4g}]<extra>%{fullData.name}</extra>",
            )
        )
    below = int((frame["gap"] <= 0).sum())
    figure.update_yaxes(title_text="gap, nats", type="log", dtick=1, tickformat="~g")
    floored = f"{below} gaps at or below 0 are drawn at the floor" if below else ""
    note(figure, "bars: 95 % t-intervals", floored)
    _particles_axis(figure, frame)
    return figure


def _draw_side(
    figure: go.Figure,
    look: Theme,
    index: int,
    name: str,
    side: str,
    part: pd.DataFrame,
    columns: tuple[str, str, str],
) -> None:
    middle, low, high = columns
    x = part["num_particles"].tolist()
    figure.add_traces(look.band(index, name, x, part[low], part[high]))
    estimated = "kind" in part.columns and bool((part["kind"] == "estimate").any())
    label = f"{name} (upper: estimate)" if estimated else name
    figure.add_trace(
        go.Scatter(
            x=x,
            y=[value if math.isfinite(value) else None for value in part[middle]],
            name=safe(label if name else side),
            legendgroup=safe(name),
            # One entry a method: the marks say which side.
            showlegend=side == "lower" or not name,
            mode="lines+markers",
            line=look.line(index) | ({"dash": "dot"} if estimated else {}),
            marker={"size": 9, "symbol": f"triangle-{'up' if side == 'upper' else 'down'}"},
            customdata=part[[low, high]],
            hovertemplate=f"K = %{{x}}<br>{side} %{{y:.4f}} nats "
            "[%{customdata[0]:.4f}, %{customdata[1]:.4f}]<extra>%{fullData.name}</extra>",
        )
    )


def _draw_bracket(figure: go.Figure, look: Theme, bracket: Any) -> None:
    # A line as well: a bracket may be narrower than a pixel.
    figure.add_hrect(
        y0=bracket.lower,
        y1=bracket.upper,
        fillcolor=look.muted,
        opacity=0.25,
        line={"width": 1, "color": look.muted},
        layer="below",
    )


def _particles_axis(figure: go.Figure, frame: pd.DataFrame) -> None:
    sizes = sorted({int(size) for size in frame["num_particles"].dropna()})
    figure.update_xaxes(
        title_text="particles K",
        type="log",
        tickvals=sizes if len(sizes) <= 12 else None,
        ticktext=[f"{size:,}" for size in sizes] if len(sizes) <= 12 else None,
    )
