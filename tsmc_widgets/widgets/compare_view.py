"""The view of a comparison: controls, tables and plots, in the browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anywidget
import traitlets

_HERE = Path(__file__).parent
SOURCES = (
    "dom",
    "scales",
    "panels",
    "strips",
    "contact",
    "train_plots",
    "compare_controls",
    "compare_tables",
    "compare_plots",
    "compare_spreads",
    "compare_main",
)
"""Parts of the script in the order they are joined; the first six are other views' too."""


class CompareView(anywidget.AnyWidget):
    """Shows what Python puts into its traits, and says in ``ask`` what was pressed.

    Attributes:
        menu: what can be chosen.
        settings: what is chosen; changed by both sides.
        plan: how each run stands.
        results: what was measured, by problem.
        status: ``state``, ``text``, ``error``, counts, what is running, ``left`` in seconds.
        stem: where exports are written.
        ask: the last press: ``act`` and a counter ``n``.
    """

    _esm = "\n".join((_HERE / "js" / f"{name}.js").read_text("utf-8") for name in SOURCES)
    _css = "\n".join(
        (_HERE / f"{name}.css").read_text("utf-8")
        for name in ("particle_view", "train_view", "compare_view")
    )

    menu = traitlets.Dict().tag(sync=True)
    settings = traitlets.Dict().tag(sync=True)
    plan = traitlets.List().tag(sync=True)
    results = traitlets.Dict().tag(sync=True)
    status = traitlets.Dict().tag(sync=True)
    stem = traitlets.Unicode("comparison").tag(sync=True)
    ask = traitlets.Dict().tag(sync=True)
    hello = traitlets.Int(0).tag(sync=True)
    welcome = traitlets.Int(0).tag(sync=True)

    @traitlets.observe("hello")
    def _answer(self, change: Any) -> None:
        self.welcome = change["new"]
