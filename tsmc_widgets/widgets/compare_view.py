"""The view of a comparison: controls, tables and plots, in the browser."""

from __future__ import annotations

import traitlets

from tsmc_widgets.widgets.front_end import FrontEnd, join_modules


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

    _esm = join_modules("js/compare_view.js")
    _css = join_modules("compare_view.css")

    menu = traitlets.Dict().tag(sync=True)
    settings = traitlets.Dict().tag(sync=True)
    plan = traitlets.List().tag(sync=True)
    results = traitlets.Dict().tag(sync=True)
    status = traitlets.Dict().tag(sync=True)
    stem = traitlets.Unicode("comparison").tag(sync=True)
    ask = traitlets.Dict().tag(sync=True)
