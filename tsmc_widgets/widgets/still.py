"""What stands in a saved notebook in place of a page: its last state, as plain HTML."""

from __future__ import annotations

import base64
import html
import math
from typing import Any

import ipywidgets as ipw
import numpy as np
from IPython.display import DisplayHandle, display

from tsmc_widgets.widgets.controls import table
from tsmc_widgets.widgets.record import Recorder, array

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
MOST_CHARACTERS = 150_000
_TEXTS = 10
_WORDS = "This is the last state of a page that was live. Run this cell again to have it back."
# Notebooks show the two outputs of a page one after the other: this HTML goes where the page has
# come, and the error of a page whose kernel has gone goes where this HTML stands.
_STYLE = (
    ".jp-OutputArea-child:has(.tsmc-still):has(+ .jp-OutputArea-child :is(.tsmc-watch, .pv)), "
    ".jp-OutputArea-child:has(.tsmc-still) + .jp-OutputArea-child > .jupyter-widgets:not(:has(*)) "
    "{ display: none }"
)


class Still(ipw.Widget):
    """A page whose saved output reads without kernel and widgets."""

    _handle: DisplayHandle | None = None

    def still(self) -> str:
        """Its last state, as HTML without scripts; empty where there is none."""
        raise NotImplementedError

    def renew_still(self) -> None:
        """Put its present state into the notebook's output."""
        if self._handle is not None:
            self._handle.update(self._bundle(), raw=True)

    def _ipython_display_(self, **_: Any) -> None:
        self._handle = display(self._bundle(), raw=True, display_id=True)
        if self.comm is not None:
            # Beside it nothing, for hosts that know no widgets.
            live = {WIDGET_VIEW: self.get_view_spec(), "text/html": "", "text/plain": ""}
            display(live, raw=True)

    def _bundle(self) -> dict[str, str]:
        body = self.still()
        if len(body) > MOST_CHARACTERS:
            body = ""
        shown = f"<style>{_STYLE}</style><p><em>{_WORDS}</em></p>{body}"
        plain = f"{type(self).__name__}: run this cell again to have it back."
        return {"text/html": f'<div class="tsmc-still">{shown}</div>', "text/plain": plain}


def still_of_run(trace: Any, run: int, options: dict[str, Any]) -> str:
    """One run of a trace: its estimate, its ESS and log Z_hat over the steps, and final texts.

    Args:
        trace: an ``SMCTrace``, finished or not.
        run: which of its runs.
        options: further arguments of ``Recorder.encode``.
    """
    header = Recorder().encode(trace, run=run, **options)["header"]
    ess, log_z = (array(getattr(trace.columns, name))[run] for name in ("ess", "log_z"))
    facts = [
        f"“{header['prompt']}”",
        header["target"],
        f"{header['num_particles']} particles, step {header['steps_done']} of "
        f"{header['num_steps']}, run {run} of {len(header['runs'])}",
        *header["facts"],
    ]
    parts = [f"<p>{html.escape(' · '.join(facts))}</p>"]
    if len(ess):
        last = f"log Ẑ {log_z[-1]:.2f} nats, ESS {ess[-1]:.1f}"
        parts.append(f"<p>{last.replace('-', '−')}</p>")
        parts += [_curve(ess, "ESS over the steps"), _curve(log_z, "log Ẑ over the steps")]
    rows = [
        (f"{float(s['weight']):.3f}", f"{float(s['log_phi']):.2f}", s["text"][:400])
        for s in header["samples"][:_TEXTS]
    ]
    return "".join(parts) + (table(("weight", "log φ", "text"), rows) if rows else "")


def _curve(values: np.ndarray, name: str) -> str:
    """A line over the steps as an image, which needs no script."""
    finite = [(i, float(v)) for i, v in enumerate(values) if math.isfinite(v)]
    if not finite:
        return ""
    low, high = min(v for _, v in finite), max(v for _, v in finite)
    width, height = 300 / max(1, len(values) - 1), 60 / ((high - low) or 1.0)
    points = " ".join(f"{4 + i * width:.1f},{64 - (v - low) * height:.1f}" for i, v in finite)
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" width="308" height="68">'
        f'<polyline fill="none" stroke="#0072B2" stroke-width="2" points="{points}"/></svg>'
    )
    ends = f"{name}: {low:.3g} to {high:.3g}".replace("-", "−")
    data = base64.b64encode(svg.encode()).decode()
    return f'<p>{ends}<br><img alt="{ends}" src="data:image/svg+xml;base64,{data}"></p>'
