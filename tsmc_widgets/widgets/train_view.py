"""The view of a training: curves, comparison with the optimal twist, and texts, in the browser."""

from __future__ import annotations

import traitlets

from tsmc_widgets.widgets.front_end import FrontEnd, join_modules


class TrainView(FrontEnd):
    """Shows what Python puts into its traits, and says in ``ask`` what was pressed.

    Attributes:
        header: what is trained.
        curves: loss, ESS and bounds of every method.
        looks: comparison with the optimal twist, and texts, of the last evaluations.
        status: ``state``, ``text``, ``error``, ``stale`` and ``note`` of the training.
        folder: where Save writes.
        ask: the last press: ``act`` and a counter ``n``.
    """

    _esm = join_modules("js/train_view.js")
    _css = join_modules("train_view.css")

    header = traitlets.Dict().tag(sync=True)
    curves = traitlets.Dict().tag(sync=True)
    looks = traitlets.Dict().tag(sync=True)
    status = traitlets.Dict().tag(sync=True)
    folder = traitlets.Unicode("my_twist").tag(sync=True)
    ask = traitlets.Dict().tag(sync=True)
