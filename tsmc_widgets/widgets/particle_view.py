"""The particle view: a whole run in the browser, played, scrubbed and searched without Python."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import traitlets

from tsmc_widgets.errors import message_of
from tsmc_widgets.widgets.front_end import RunView, join_modules, write_page


class ParticleView(RunView):
    """Particles, weights, resampling, next tokens, ESS, log Z_hat and samples of one run.

    Shown as the last line of a cell: ``tw.ParticleView(trace)``. All of the record is in the
    browser, so playing, scrubbing and looking at tokens need no kernel.

    Args:
        trace: an ``SMCTrace``, finished or not; None shows one later, by ``update``. One recorded
            with ``top_k=8`` shows what else each particle could have written.
        exact_log_z: log Z in nats, drawn as a line where it is known.
        replicates: log Z_hat (runs, steps) of runs on other noise, this one among them: the error
            of one run; None takes the trace's own runs, where they are several.
        run: which of the trace's runs; the view has a menu of all.
        target: what stands beside the prompt; phi in words where it is empty.

    Attributes:
        step: the step on show, sent when a movement ends; set it to move the view.
        run: the run on show; set it to show another.
        group: views of one group, if it is not empty, move together.
        strips: whether the view draws ESS, log Z_hat, weights, ancestors and final samples itself;
            put out where ``RunPanels`` stands beside it.
        beside: ``ess``, ``survivors`` and ``log_z`` of another run, drawn dashed.
        hold: whether the person at the view has asked a live run to wait.
        more: counts the steps asked for one by one at the end of what is recorded.
        status: ``state``, ``text`` and ``error`` of a live run.
        share: ``code`` and ``spec`` that make the run, for the menu; left out where not known.
        pages: counts the pages asked for in the menu; each is sent as bytes, and no file written.
        write_page: writes that page, in place of ``to_html``.
        lesson: what is asked of a person before the run is played, see ``Preset``; empty for none.
        lessons_done: counts presses of Next.
    """

    _esm = join_modules("js/particle_view.js")
    _css = join_modules("particle_view.css")
    _takes = ("hello", "step", "run", "hold", "more", "pages", "lessons_done")
    _stays = ("share", "lesson")

    strips = traitlets.Bool(True).tag(sync=True)
    beside = traitlets.Dict().tag(sync=True)
    hold = traitlets.Bool(False).tag(sync=True)
    more = traitlets.Int(0).tag(sync=True)
    share = traitlets.Dict().tag(sync=True)
    pages = traitlets.Int(0).tag(sync=True)
    lesson = traitlets.Dict().tag(sync=True)
    lessons_done = traitlets.Int(0).tag(sync=True)
    write_page: Callable[[Path], Path] | None = None

    def to_html(self, path: str | Path, *, title: str = "") -> Path:
        """Write one file that shows the run on any machine, without kernel and network.

        Every run of the trace is in it, up to ``MAX_RUNS_OFFLINE``; of more, only the one on show.

        Args:
            path: the file; an existing one is replaced.
            title: of the page; the prompt and phi if empty.

        Returns:
            The path.
        """
        return write_page(path, title=title, parts=[self.part()], run=self.run)

    @traitlets.observe("pages")
    def _send_page(self, _: Any) -> None:
        try:
            with TemporaryDirectory() as folder:
                page = (self.write_page or self.to_html)(Path(folder) / "run.html")
                self.send({"page": page.name}, [page.read_bytes()])
        except Exception as error:  # noqa: BLE001 - shown on the page
            self._refuse(message_of(error))


class RunPanels(RunView):
    """ESS, weights, ancestors, log Z_hat of all runs, factors of phi and final samples.

    Put it beside a ``ParticleView`` of the same trace and give both the same ``group``: then their
    play heads and their choice of run move together, in the browser alone.

    Args:
        trace: an ``SMCTrace``, finished or not; None shows one later, by ``update``.
        exact_log_z: log Z in nats where it is known.
        bracket: a certified bracket of log Z, as ``bracket_log_z`` gives it, or a pair in nats.
        replicates: log Z_hat (runs, steps) of runs on other noise, as for ``ParticleView``.
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
    _panels = True

    samples = traitlets.Bytes(b"").tag(sync=True)

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
        parts = [self.part(group="" if view is None else "page")]
        if view is not None and view.trace is not self.trace:
            raise ValueError("the view shows another trace than the panels: give both the same.")
        if view is not None:
            parts.insert(0, view.part(group="page", strips=False))
        return write_page(path, title=title, parts=parts, run=self.run)
