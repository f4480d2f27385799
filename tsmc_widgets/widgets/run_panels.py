"""Panels beside the particle view: measures over the steps, over runs, of factors, and samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import traitlets

from tsmc_widgets.widgets.front_end import RunView, join_modules
from tsmc_widgets.widgets.offline import Part, write_page
from tsmc_widgets.widgets.panel_record import PanelRecorder
from tsmc_widgets.widgets.particle_view import ParticleView, page_title, runs_offline


class RunPanels(RunView):
    """ESS, weights, ancestors, log Z_hat of all runs, factors of phi and final samples.

    Put it beside a ``ParticleView`` of the same trace and give both the same ``group``: then their
    play heads and their choice of run move together, in the browser alone.

    Args:
        trace: an ``SMCTrace``, finished or not; None shows one later, by ``update``.
        exact_log_z: log Z in nats where it is known.
        bracket: a certified bracket of log Z, as ``bracket_log_z`` gives it, or a pair in nats.
        target: the ``Target`` that was sampled; with it each factor of phi is looked at.
        run: which of the trace's runs.
        group: views of one group, if it is not empty, move together.

    Attributes:
        step: the step on show, sent when a movement ends; set it to move the panels.
        run: the run on show; set it to show another.
        group: as above.
    """

    _esm = join_modules("js/run_panels.js")
    _css = join_modules("run_panels.css")

    samples = traitlets.Bytes(b"").tag(sync=True)

    def __init__(
        self,
        trace: Any = None,
        *,
        exact_log_z: float | int | None = None,
        bracket: Any = None,
        target: Any = None,
        run: int = 0,
        group: str = "",
    ) -> None:
        shown = {"trace": trace, "exact_log_z": exact_log_z, "bracket": bracket, "target": target}
        super().__init__(PanelRecorder(), shown, run, group=group)

    def update(
        self,
        trace: Any,
        *,
        exact_log_z: float | int | None = None,
        bracket: Any = None,
        target: Any = None,
        run: int | None = None,
        run_id: int | None = None,
    ) -> None:
        """Show this trace instead; at most ten times a second. The play head stays in place.

        Args:
            trace: an ``SMCTrace``, finished or not.
            exact_log_z: log Z in nats where it is known.
            bracket: a certified bracket of log Z, or a pair in nats.
            target: the ``Target`` that was sampled.
            run: which of the trace's runs; the one on show if None, where there is one of it.
            run_id: the same number again says that this is the same run, grown: then only new
                steps are sent.
        """
        shown = {"trace": trace, "exact_log_z": exact_log_z, "bracket": bracket, "target": target}
        self._put(shown, run, run_id)

    def to_html(
        self, path: str | Path, *, view: ParticleView | None = None, title: str = ""
    ) -> Path:
        """Write one file that shows the panels on any machine, without kernel and network.

        Args:
            path: the file; an existing one is replaced.
            view: a particle view of the same trace, to stand above the panels and move with them.
            title: of the page; the prompt and phi if empty.

        Returns:
            The path.
        """
        if not self._shown:
            raise ValueError("there is no trace to write yet: give the panels one first.")
        if view is not None and view.trace is not self.trace:
            raise ValueError("the view shows another trace than the panels: give both the same.")
        group = "page" if view is not None else ""
        recorder = PanelRecorder()
        runs = {
            run: recorder.encode(run=run, **self._shown).traits
            for run in runs_offline(self.trace, self.run)
        }
        parts = [Part(self._esm, self._css, runs, {"group": group})]
        if view is not None:
            parts.insert(0, view.part(run=self.run, group=group, strips=False))
        title = title or page_title(runs[self.run]["header"])
        return write_page(Path(path), title=title, parts=parts, run=self.run)
