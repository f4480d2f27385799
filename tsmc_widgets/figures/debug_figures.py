"""Figures of a twist: where it errs, how it is calibrated, tokens' gains, powers of it."""

from __future__ import annotations

import math

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from tsmc_widgets.evaluation.what_if import best_power
from tsmc_widgets.figures.tables import require
from tsmc_widgets.figures.theme import Theme, new_figure, note, safe

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
