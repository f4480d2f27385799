"""One particle view, or two beside each other whose play heads move together."""

from __future__ import annotations

import html
from collections.abc import Callable

import ipywidgets as ipw

from tsmc_widgets.widgets.compare import Pinned, compare
from tsmc_widgets.widgets.particle_view import ParticleView
from tsmc_widgets.widgets.run_panels import RunPanels

_NOT_YET = "Pin a run as A, then change anything: both are shown side by side, on the same noise."
_HALF = {"flex": "1 1 480px", "min_width": "0", "width": "auto"}


class Bench(ipw.VBox):
    """The live view, a button that pins its run, and the pinned run beside it.

    Args:
        view: the live one.
        asked: called when the button is pressed, with whether a run is to be pinned.
        panels: what stands under the live view in step with it; a pinned one then gets its own.
    """

    def __init__(
        self,
        view: ParticleView,
        asked: Callable[[bool], None],
        *,
        panels: RunPanels | None = None,
    ) -> None:
        self.view = view
        self.panels = panels
        self.pinned_panels: RunPanels | None = None
        self.pinned: Pinned | None = None
        self.pinned_view: ParticleView | None = None
        self.button = ipw.ToggleButton(
            description="Pin this run as A",
            tooltip=_NOT_YET,
            disabled=True,
            layout={"width": "auto", "margin": "1px 8px 1px 2px"},
        )
        self.sentence = ipw.HTML(layout={"flex": "1 1 300px", "margin": "0", "display": "none"})
        layout = {"flex_flow": "row wrap", "width": "100%", "grid_gap": "10px"}
        self.side = _side(view, panels)
        self._views = ipw.Box([self.side], layout=layout)
        self._quiet = False
        self.button.observe(lambda change: self._quiet or asked(change["new"]), "value")
        layout = {"flex_flow": "row wrap", "align_items": "center", "padding": "0 0 4px 14px"}
        self.row = ipw.Box([self.button, self.sentence], layout=layout)
        super().__init__([self.row, self._views], layout={"width": "100%"})
        if panels is not None:
            self.view.strips = False
            self._tie()

    def pin(self, run: Pinned | None) -> None:
        """Keep this run beside the live one."""
        if run is None:
            self._set_button(on=False)
            self._say("There is no finished run to pin yet.")
            return
        self._put_away()
        self.pinned = run
        self.pinned_view = ParticleView(run.trace, exact_log_z=run.exact_log_z, run=self.view.run)
        if self.panels is not None:
            self.pinned_view.strips = False
            self.pinned_panels = RunPanels(
                run.trace,
                exact_log_z=run.exact_log_z,
                bracket=run.bracket,
                target=run.target,
                run=self.view.run,
            )
        self.pinned_view.status = {"state": "done", "text": f"A, pinned: {run.seconds:.1f} s"}
        self._tie()
        self._views.children = [_side(self.pinned_view, self.pinned_panels), self.side]
        self._set_button(on=True)
        self.compare(run)

    def add_tools(self, tools: list[ipw.Widget]) -> None:
        """Put more controls beside the button; the sentence then stands under all of them."""
        self.sentence.layout.flex = "1 1 100%"
        self.row.children = [self.button, *tools, self.sentence]

    def unpin(self) -> None:
        """Show the live run alone."""
        self._put_away()
        self._views.children = [self.side]
        self._set_button(on=False)
        self._say("")

    def compare(self, run: Pinned) -> None:
        """Say how the live run, now done, differs from the pinned one."""
        self.button.disabled = False
        if self.pinned is not None:
            self._say(compare(self.pinned, run))

    def _put_away(self) -> None:
        if self.panels is None:
            self.view.group = ""
        for widget in (self.pinned_view, self.pinned_panels):
            if widget is not None:
                widget.close()
        self.pinned = self.pinned_view = self.pinned_panels = None

    def _tie(self) -> None:
        """Let all play heads move together."""
        for widget in (self.view, self.panels, self.pinned_view, self.pinned_panels):
            if widget is not None:
                widget.group = f"bench {self.model_id}"

    def _set_button(self, *, on: bool) -> None:
        self._quiet = True
        self.button.value = on
        self.button.description = "Put A away" if on else "Pin this run as A"
        self._quiet = False

    def _say(self, text: str) -> None:
        self.sentence.value = f"<span>{html.escape(text)}</span>" if text else ""
        self.sentence.layout.display = None if text else "none"


def _side(view: ParticleView, panels: RunPanels | None) -> ipw.Widget:
    if panels is None:
        view.layout = _HALF
        return view
    side = ipw.VBox([view, panels], layout=_HALF)
    side.add_class("tw-side")
    return side
