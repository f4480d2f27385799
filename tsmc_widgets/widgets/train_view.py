"""The view of a training: curves, comparison with the optimal twist, and texts, in the browser."""

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
    "train_panels",
    "train_main",
)
"""Parts of the script in the order they are joined; most are the particle view's."""


class TrainView(anywidget.AnyWidget):
    """Shows what Python puts into its traits, and says in ``ask`` what was pressed.

    Attributes:
        header: what is trained.
        curves: loss, ESS and bounds of every method.
        looks: comparison with the optimal twist, and texts, of the last evaluations.
        status: ``state``, ``text``, ``error``, ``stale`` and ``note`` of the training.
        folder: where Save writes.
        ask: the last press: ``act`` and a counter ``n``.
    """

    _esm = "\n".join((_HERE / "js" / f"{name}.js").read_text("utf-8") for name in SOURCES)
    _css = "\n".join(
        (_HERE / f"{name}.css").read_text("utf-8") for name in ("particle_view", "train_view")
    )

    header = traitlets.Dict().tag(sync=True)
    curves = traitlets.Dict().tag(sync=True)
    looks = traitlets.Dict().tag(sync=True)
    status = traitlets.Dict().tag(sync=True)
    folder = traitlets.Unicode("my_twist").tag(sync=True)
    ask = traitlets.Dict().tag(sync=True)
    hello = traitlets.Int(0).tag(sync=True)
    welcome = traitlets.Int(0).tag(sync=True)

    @traitlets.observe("hello")
    def _answer(self, change: Any) -> None:
        self.welcome = change["new"]
