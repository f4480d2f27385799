"""The particle view: a whole run in the browser, played, scrubbed and searched without Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anywidget
import traitlets

from tsmc_widgets.widgets.record import encode

_HERE = Path(__file__).parent
SOURCES = (
    "dom",
    "record",
    "scales",
    "grid",
    "overview",
    "strips",
    "transport",
    "panels",
    "contact",
    "main",
)
"""Parts of the script in the order they are joined: a front end imports one self-contained text."""


def script() -> str:
    """The view's ES module."""
    return "\n".join((_HERE / "js" / f"{name}.js").read_text("utf-8") for name in SOURCES)


class ParticleView(anywidget.AnyWidget):
    """Particles, weights, ESS, log Z_hat and samples of one run.

    Make one with ``ParticleView.from_trace(trace)`` and show it as the last line of a cell. All
    of the record is in the browser, so playing and scrubbing need no kernel.

    Attributes:
        step: the step on show, sent when a movement ends; set it to move the view.
        hold: whether the person at the view has asked a live run to wait.
        more: counts the steps asked for one by one at the end of what is recorded.
        status: ``state``, ``text`` and ``error`` of a live run.
    """

    _esm = script()
    _css = (_HERE / "particle_view.css").read_text("utf-8")

    header = traitlets.Dict().tag(sync=True)
    data = traitlets.Bytes(b"").tag(sync=True)
    status = traitlets.Dict().tag(sync=True)
    step = traitlets.Int(0).tag(sync=True)
    hold = traitlets.Bool(False).tag(sync=True)
    more = traitlets.Int(0).tag(sync=True)
    hello = traitlets.Int(0).tag(sync=True)
    welcome = traitlets.Int(0).tag(sync=True)

    @classmethod
    def from_trace(
        cls, trace: Any, exact_log_z: float | None = None, run: int = 0, target: str = ""
    ) -> ParticleView:
        """A view of one run of a trace.

        Args:
            trace: an ``SMCTrace``, finished or not.
            exact_log_z: log Z in nats, drawn as a line where it is known.
            run: which of the trace's runs.
            target: what stands beside the prompt; phi in words where it is empty.
        """
        encoded = encode(trace, exact_log_z=exact_log_z, run=run, target=target)
        return cls(header=encoded.header, data=encoded.data)

    def update(
        self,
        trace: Any,
        *,
        exact_log_z: float | None = None,
        run: int = 0,
        target: str = "",
        run_id: int = 0,
    ) -> None:
        """Show this trace instead; at most ten times a second. The play head stays in place."""
        encoded = encode(trace, exact_log_z=exact_log_z, run=run, target=target, run_id=run_id)
        with self.hold_sync():
            self.header = encoded.header
            self.data = encoded.data

    @traitlets.observe("hello")
    def _answer(self, change: Any) -> None:
        self.welcome = change["new"]
