"""Learned against optimal twists."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from tsmc_widgets.errors import check_kind, shortened
from tsmc_widgets.figures.tables import require
from tsmc_widgets.figures.theme import Theme, new_figure, note, safe

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
    note(figure, *_written(statistics), "dashed: equal", bars)
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


def _written(statistics: Mapping[str, float | int] | None) -> list[str]:
    """Numbers with their names."""
    if statistics is None:
        return []
    check_kind("statistics", statistics, Mapping, "numbers by their names, or None")
    return [f"{name} {value:.3f}" for name, value in statistics.items()]
