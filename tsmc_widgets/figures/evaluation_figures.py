"""What estimators found: bounds on log Z, divergences, and log psi beside the optimal twist."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from tsmc_widgets.errors import as_list, check_kind, check_one_of, listed, quoted, shortened
from tsmc_widgets.evaluation.bracket import Bracket
from tsmc_widgets.figures.tables import check_frame, exact_of, lines, one_row_each, pick, require
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
    for index, (name, rows) in enumerate(lines(frame, by)):
        for side in ("upper", "lower"):
            part = rows[(rows["side"] == side) & rows[middle].notna()].sort_values("num_particles")
            if part.empty:
                continue
            one_row_each(part, ["num_particles"], f"{name}, {side}")
            _draw_side(figure, look, index, name, side, part, (middle, low, high))
    exact = exact_of(frame)
    if bracket is not None and math.isfinite(bracket.width):
        # A line as well: a bracket may be narrower than a pixel.
        figure.add_hrect(
            y0=bracket.lower, y1=bracket.upper, fillcolor=look.muted, opacity=0.25,
            line={"width": 1, "color": look.muted}, layer="below",
        )  # fmt: skip
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
            look.curve(
                index,
                name,
                # Side by side, so that no bar hides another.
                x=part["num_particles"] * DODGE ** (index - (len(named) - 1) / 2),
                y=shown,
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
        look.curve(
            index,
            label if name else side,
            x=x,
            y=[value if math.isfinite(value) else None for value in part[middle]],
            legendgroup=safe(name),
            # One entry a method: the marks say which side.
            showlegend=side == "lower" or not name,
            line=look.line(index) | ({"dash": "dot"} if estimated else {}),
            marker={"size": 9, "symbol": f"triangle-{'up' if side == 'upper' else 'down'}"},
            customdata=part[[low, high]],
            hovertemplate=f"K = %{{x}}<br>{side} %{{y:.4f}} nats "
            "[%{customdata[0]:.4f}, %{customdata[1]:.4f}]<extra>%{fullData.name}</extra>",
        )
    )


def _particles_axis(figure: go.Figure, frame: pd.DataFrame) -> None:
    sizes = sorted({int(size) for size in frame["num_particles"].dropna()})
    figure.update_xaxes(
        title_text="particles K",
        type="log",
        tickvals=sizes if len(sizes) <= 12 else None,
        ticktext=[f"{size:,}" for size in sizes] if len(sizes) <= 12 else None,
    )


BOTH_WAYS = ("KL(q||σ)", "KL(σ||q)")


def kl_forest_figure(
    frame: pd.DataFrame,
    *,
    label: str | Sequence[str] | None = "proposal",
    divergences: Sequence[str] = BOTH_WAYS,
    theme: str = "light",
    title: str = "Divergences between proposal and target",
) -> go.Figure:
    """One row a method and one panel a divergence: estimates with 95 % intervals, nothing clipped.

    Args:
        frame: rows of ``Divergences.to_frame()`` of several methods, with a column that names
            them; or of a results table, whose ``quantity`` names the divergence. A column
            ``exact`` is marked where it is known.
        label: column (or columns) that name the rows; None takes those that differ.
        divergences: the panels.
        theme: "light" or "dark".
        title: above the figure.
    """
    check_frame(frame)
    frame = frame.rename(columns={"quantity": "divergence"})
    require(frame, ("divergence", "value", "low", "high"), "a forest plot")
    look, empty = new_figure(theme, title)
    known = list(dict.fromkeys(frame["divergence"]))
    panels = as_list("divergences", divergences)
    if not any(name in known for name in panels if isinstance(name, str)):
        raise ValueError(
            f"divergences must name some of {listed(known)}; got {quoted(divergences)}."
        )
    panels = [name for name in panels if name in known]
    named = list(lines(frame[frame["divergence"].isin(panels)], label))
    figure = make_subplots(
        cols=len(panels),
        shared_yaxes=True,
        horizontal_spacing=0.05,
        figure=empty,
    )
    names = [name for name, _ in named]
    for column, panel in enumerate(panels, start=1):
        for index, (name, rows) in enumerate(named):
            rows = rows[rows["divergence"] == panel]
            _draw_row(figure, look, index, name, rows, column)
        figure.add_vline(x=0, line={"color": look.muted, "width": 1}, col=column, row=1)
        figure.update_xaxes(title_text=f"{safe(panel)}, nats", col=column, row=1)
    figure.update_yaxes(
        categoryorder="array", categoryarray=[safe(name) for name in names[::-1]], showgrid=False
    )
    figure.update_layout(showlegend=False, height=max(220, 130 + 34 * len(names)))
    is_known = "exact" in frame.columns and bool(frame["exact"].notna().any())
    is_infinite = bool((frame["value"] == math.inf).any())
    note(
        figure,
        "dots: estimates",
        "bars: 95 % intervals",
        "◇ exact" if is_known else "",
        "▷ ∞ infinite for certain" if is_infinite else "",
    )
    return figure


def frontier_figure(
    frame: pd.DataFrame,
    *,
    by: str | Sequence[str] | None = None,
    theme: str = "light",
    reward: str = "mean log φ, nats",
    title: str = "Reward against divergence from p0",
) -> go.Figure:
    """What each method gains in reward for what it leaves p0, over beta.

    Args:
        frame: columns kl, kl_low, kl_high, reward, reward_low, reward_high, and where they are
            known beta (written at the points) and what tells lines apart.
        by: columns that tell lines apart; None takes those that differ.
        theme: "light" or "dark".
        reward: title of the axis of rewards, with its unit.
        title: above the figure.
    """
    needed = ("kl", "kl_low", "kl_high", "reward", "reward_low", "reward_high")
    require(frame, needed, "a frontier")
    check_kind("reward", reward, str, "a text")
    look, figure = new_figure(theme, title)
    for index, (name, rows) in enumerate(lines(frame, by)):
        rows = rows.sort_values("beta" if "beta" in rows.columns else "kl")
        labels = [f"{beta:g}" for beta in rows["beta"]] if "beta" in rows.columns else None
        figure.add_trace(
            look.curve(
                index,
                name or "method",
                x=rows["kl"],
                y=rows["reward"],
                mode="lines+markers+text" if labels else "lines+markers",
                text=labels,
                textposition="bottom right",
                textfont={"size": 11, "color": look.colour(index)},
                cliponaxis=False,
                marker=look.mark(index),
                error_x=look.bars(*(rows[f"kl{end}"] for end in ("", "_low", "_high"))),
                error_y=look.bars(*(rows[f"reward{end}"] for end in ("", "_low", "_high"))),
                hovertemplate="KL(q||p0) %{x:.3f} nats<br>reward %{y:.3f}"
                "<extra>%{fullData.name}</extra>",
            )
        )
    figure.update_xaxes(title_text="KL(q||p0), nats")
    figure.update_yaxes(title_text=safe(reward))
    note(figure, "numbers: β" if "beta" in frame.columns else "", "bars: 95 % intervals")
    return figure


def _draw_row(
    figure: go.Figure, look: Theme, index: int, name: str, rows: pd.DataFrame, column: int
) -> None:
    count = len(rows)
    if not count:
        return
    if count > 1:
        raise ValueError(
            f"{name!r} has {count} values of one divergence: name the columns that tell them apart "
            "with label=, or take the mean over seeds first."
        )
    row = rows.iloc[0]
    place = [safe(name)]
    at = {"row": 1, "col": column}
    if math.isinf(row["value"]):
        figure.add_annotation(
            text="▷ ∞", x=1, xref="x domain" if column == 1 else f"x{column} domain", y=place[0],
            yref="y" if column == 1 else f"y{column}", xanchor="right", showarrow=False,
            font={"color": look.colour(index), "size": 14},
        )  # fmt: skip
        # An empty mark keeps the row.
        figure.add_trace(go.Scatter(x=[None], y=place, mode="markers", showlegend=False), **at)
        return
    known = math.isfinite(row["low"]) and math.isfinite(row["high"])
    figure.add_trace(
        go.Scatter(
            x=[row["value"]],
            y=place,
            mode="markers",
            marker={"size": 10, "color": look.colour(index)},
            error_x={
                "array": [row["high"] - row["value"] if known else 0.0],
                "arrayminus": [row["value"] - row["low"] if known else 0.0],
                "symmetric": False,
                "thickness": 2,
                "width": 5,
                "color": look.colour(index),
            },
            hovertemplate=f"%{{x:.4f}} nats [{row['low']:.4f}, {row['high']:.4f}]"
            f"<br>{safe(row.get('remark') or '')}<extra>{safe(name)}</extra>",
            showlegend=False,
        ),
        **at,
    )
    if "exact" in rows.columns and pd.notna(row["exact"]):
        figure.add_trace(
            go.Scatter(
                x=[row["exact"]],
                y=place,
                mode="markers",
                marker={"size": 13, "symbol": "diamond-open", "color": look.truth},
                hovertemplate="exact %{x:.4f} nats<extra></extra>",
                showlegend=False,
            ),
            **at,
        )


LONGEST = 80
_WORST = 5
_HOVER = (
    "“%{text}”<br>t %{customdata[0]}: log ψ %{y:.3f}, log ψ* %{x:.3f} ± %{customdata[1]:.3f} "
    "(95 %)<br>residual %{customdata[2]:+.3f} nats<extra></extra>"
)


def psi_scatter(
    frame: pd.DataFrame,
    *,
    statistics: Mapping[str, float | int] | None = None,
    theme: str = "light",
    title: str = "Learned against optimal log ψ",
) -> go.Figure:
    """Learned log psi over optimal log psi, a point a prefix, means of each t taken off.

    Prefixes at which one of them is -inf are left out.

    Args:
        frame: ``PsiComparison.frame``: t, text, learned, optimal, optimal_error.
        statistics: numbers to write above, by name ("slope", say).
        theme: "light" or "dark".
        title: above the figure.
    """
    require(frame, ("t", "learned", "optimal"), "a scatter of log psi")
    if statistics is not None:
        check_kind("statistics", statistics, Mapping, "numbers by their names, or None")
    written = [f"{name} {value:.3f}" for name, value in (statistics or {}).items()]
    look, figure = new_figure(theme, title)
    frame = frame[np.isfinite(frame[["learned", "optimal"]]).all(axis=1)]
    values = pd.concat([frame["learned"], frame["optimal"]])
    pad = 0.06 * max(float(values.max() - values.min()), 1e-6)
    ends = [float(values.min()) - pad, float(values.max()) + pad]
    figure.add_trace(
        go.Scatter(
            x=ends, y=ends, mode="lines", hoverinfo="skip", showlegend=False,
            line={"color": look.muted, "width": 1.2, "dash": "dash"},
        )
    )  # fmt: skip
    texts = frame["text"] if "text" in frame.columns else [""] * len(frame)
    shown = [safe(shortened(str(text), LONGEST)) for text in texts]
    errors = frame["optimal_error"] if "optimal_error" in frame.columns else 0 * frame["optimal"]
    has_errors = float(errors.max()) > 0
    figure.add_trace(
        go.Scatter(
            x=frame["optimal"],
            y=frame["learned"],
            mode="markers",
            showlegend=False,
            error_x={
                "array": 1.96 * errors,
                "thickness": 1,
                "width": 0,
                "visible": has_errors,
                "color": look.muted,
            },
            marker=_marker(frame["t"], look),
            text=shown,
            customdata=np.stack(
                [frame["t"], 1.96 * errors, frame["learned"] - frame["optimal"]], axis=1
            ),
            hovertemplate=_HOVER,
        )
    )
    figure.update_xaxes(title_text="optimal log ψ, less its mean at t, nats", range=ends)
    figure.update_yaxes(title_text="learned log ψ, less its mean at t, nats", range=ends)
    bars = "bars: 95 % intervals of rollouts" if has_errors else ""
    note(figure, *written, "dashed: equal", bars)
    _list_worst(figure, frame)
    figure.update_layout(height=590)
    return figure


def _marker(steps: pd.Series, look: Theme) -> dict[str, Any]:
    """Of a point, coloured by its step."""
    return {
        "size": 8,
        "opacity": 0.85,
        "color": steps,
        "colorscale": [[0.0, look.colours[0]], [1.0, look.colours[4]]],
        "line": {"width": 0.8, "color": look.ink},
        "colorbar": {
            "title": {"text": "step t", "font": {"size": 12}},
            "thickness": 12,
            "outlinewidth": 0,
            "tick0": int(steps.min()),
            "dtick": max(1, round(int(steps.max() - steps.min()) / 8)),
        },
    }


def _list_worst(figure: go.Figure, frame: pd.DataFrame) -> None:
    """The prefixes with the largest residuals, under the figure."""
    residual = frame["learned"] - frame["optimal"]
    order = residual.abs().sort_values(ascending=False, kind="stable").index[:_WORST]
    texts = frame["text"] if "text" in frame.columns else frame["t"]
    lines = [
        f"{residual[at]:+.2f} nats at t = {frame['t'][at]}: "
        f"“{safe(shortened(str(texts[at]), LONGEST))}”"
        for at in order
    ]
    figure.add_annotation(
        text="<br>".join([f"largest residuals, of {len(frame)} prefixes:", *lines]),
        xref="paper", yref="paper", x=0, y=0, yshift=-58, yanchor="top", align="left",
        showarrow=False,
    )  # fmt: skip
    figure.update_layout(margin_b=70 + 18 * (len(lines) + 1))
