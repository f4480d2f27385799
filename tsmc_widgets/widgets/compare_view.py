"""The view of a comparison: controls, tables and plots, in the browser."""

from __future__ import annotations

import traitlets

from tsmc_widgets.widgets.front_end import FrontEnd, join_scripts, join_styles

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
STYLES = ("particle_view", "train_view", "compare_view")


class CompareView(FrontEnd):
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

    _esm = join_scripts(SOURCES)
    _css = join_styles(STYLES)

    menu = traitlets.Dict().tag(sync=True)
    settings = traitlets.Dict().tag(sync=True)
    plan = traitlets.List().tag(sync=True)
    results = traitlets.Dict().tag(sync=True)
    status = traitlets.Dict().tag(sync=True)
    stem = traitlets.Unicode("comparison").tag(sync=True)
    ask = traitlets.Dict().tag(sync=True)
