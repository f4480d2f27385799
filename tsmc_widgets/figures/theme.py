"""One look for all figures: light and dark templates, colours that colour-blind eyes tell apart."""

from __future__ import annotations

import html
import math
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from tsmc_widgets.errors import check_kind, check_one_of

FONT = "system-ui, -apple-system, 'Segoe UI', 'Helvetica Neue', Arial, sans-serif"
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
MARKERS = ("circle", "square", "diamond", "triangle-up", "x", "star", "cross")
HEIGHT = 420
"""Pixels; the width is the notebook's."""


@dataclass(frozen=True, slots=True)
class Theme:
    """Colours of one look.

    Attributes:
        name: "light" or "dark".
        ink: of text.
        muted: of axes and notes.
        grid: of grid lines.
        paper: of the background.
        colours: of lines, by Okabe and Ito, in the order that stands out best on the paper.
        truth: of what is exact.
    """

    name: str
    ink: str
    muted: str
    grid: str
    paper: str
    colours: tuple[str, ...]
    truth: str

    def colour(self, index: int) -> str:
        """Colour of the ``index``-th line; they repeat, and dashes and marks tell more apart."""
        return self.colours[index % len(self.colours)]

    def faint(self, index: int, opacity: float = 0.16) -> str:
        """The same, see-through, for bands."""
        red, green, blue = (int(self.colour(index)[at : at + 2], 16) for at in (1, 3, 5))
        return f"rgba({red},{green},{blue},{opacity})"

    def line(self, index: int) -> dict[str, str]:
        """Colour and dash of the ``index``-th line."""
        return {"color": self.colour(index), "dash": DASHES[index % len(DASHES)]}

    def mark(self, index: int) -> dict[str, Any]:
        """Size and symbol of the ``index``-th line's marks."""
        return {"size": 8, "symbol": MARKERS[index % len(MARKERS)]}

    def bars(self, middle: Any, low: Any, high: Any) -> dict[str, Any]:
        """Error bars from ``low`` to ``high``, of one number or of a column."""
        ends = {"array": high - middle, "arrayminus": middle - low}
        return {**ends, "symmetric": False, "thickness": 1.2, "width": 3}

    def band(self, index: int, name: str, x: list, low: Any, high: Any) -> list[go.Scatter]:
        """The area between two columns; none where an end is infinite or unknown."""
        ends = [*high.tolist(), *low.tolist()[::-1]]
        if not all(math.isfinite(value) for value in ends):
            return []
        area = {"fill": "toself", "fillcolor": self.faint(index), "mode": "lines"}
        hidden = {"line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}
        return [go.Scatter(x=x + x[::-1], y=ends, legendgroup=safe(name), **area, **hidden)]

    def curve(self, index: int, name: str, x: Any, y: Any, **options: Any) -> go.Scatter:
        """The ``index``-th line, through marks; ``options`` add to what is usual, or replace it."""
        usual = {"name": safe(name), "mode": "lines+markers", "line": self.line(index)}
        return go.Scatter(x=x, y=y, **usual | options)

    @property
    def truth_line(self) -> dict[str, object]:
        """How exact values are drawn."""
        return {"color": self.truth, "width": 1.6, "dash": "dash"}

    def template(self) -> go.layout.Template:
        """What plotly calls the look."""
        axis = {
            "gridcolor": self.grid,
            "linecolor": self.muted,
            "tickcolor": self.muted,
            "showline": True,
            "zeroline": False,
            "ticks": "outside",
            "ticklen": 4,
            "title": {"standoff": 10, "font": {"size": 13}},
            "automargin": True,
        }
        return go.layout.Template(
            layout={
                "font": {"family": FONT, "size": 12.5, "color": self.ink},
                "paper_bgcolor": self.paper,
                "plot_bgcolor": self.paper,
                "colorway": list(self.colours),
                "height": HEIGHT,
                "margin": {"l": 12, "r": 24, "t": 76, "b": 12},
                "title": {"x": 0, "xref": "container", "xanchor": "left", "y": 1,
                          "yref": "container", "yanchor": "top", "pad": {"l": 14, "t": 14},
                          "font": {"size": 15},
                          "subtitle": {"font": {"size": 11.5, "color": self.muted}}},
                # Below the axis, so that it can cover no data at any width.
                "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": -0.2,
                           "yanchor": "top", "bgcolor": "rgba(0,0,0,0)", "font": {"size": 12}},
                "hoverlabel": {"font": {"family": FONT, "size": 12}, "align": "left"},
                "xaxis": axis,
                "yaxis": axis,
            }
        )  # fmt: skip


LIGHT = Theme(
    name="light",
    ink="#1f2328",
    muted="#6b7280",
    grid="#e6e8eb",
    paper="#ffffff",
    colours=("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"),
    truth="#1f2328",
)
DARK = Theme(
    name="dark",
    ink="#e6e8eb",
    muted="#9aa3ad",
    grid="#2f353c",
    paper="#16191d",
    colours=("#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#f0e442", "#d55e00", "#ffffff"),
    truth="#ffffff",
)
THEMES = {"light": LIGHT, "dark": DARK}


def theme_of(name: str) -> Theme:
    """A theme by its name."""
    check_one_of("theme", name, THEMES)
    return THEMES[name]


def safe(text: object) -> str:
    """Text that a figure shows as it is: no tags, no formulas."""
    return html.escape(str(text)).replace("$", "&#36;")


def new_figure(theme: str, title: str) -> tuple[Theme, go.Figure]:
    """A theme by its name, and an empty figure in it."""
    look = theme_of(theme)
    check_kind("title", title, str, "a text")
    return look, go.Figure(layout={"template": look.template(), "title": {"text": safe(title)}})


def note(figure: go.Figure, *parts: str) -> None:
    """What the marks mean, in small letters under the title, where it covers nothing."""
    notes = [safe(part) for part in parts if part]
    # At 700 pixels a line holds about a hundred letters.
    rows: list[str] = []
    for part in notes:
        if rows and len(rows[-1]) + len(part) < 100:
            rows[-1] += f" · {part}"
        else:
            rows.append(part)
    figure.update_layout(
        title_subtitle_text="<br>".join(rows), margin_t=62 + 15 * max(1, len(rows))
    )
