"""Divergences of methods as a forest plot, and what reward costs in divergence."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from tsmc_widgets.errors import as_list, check_kind, listed, quoted
from tsmc_widgets.figures.tables import check_frame, lines, require
from tsmc_widgets.figures.theme import Theme, new_figure, note, safe

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
            go.Scatter(
                x=rows["kl"],
                y=rows["reward"],
                name=safe(name) or "method",
                mode="lines+markers+text" if labels else "lines+markers",
                text=labels,
                textposition="bottom right",
                textfont={"size": 11, "color": look.colour(index)},
                cliponaxis=False,
                line=look.line(index),
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
