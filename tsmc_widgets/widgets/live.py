"""What every page with a live run shares: a view, a background thread, and a run kept as A."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import ipywidgets as ipw
import torch

from tsmc_widgets.errors import message_of
from tsmc_widgets.smc.trace import SMCTrace
from tsmc_widgets.targets.target import Target
from tsmc_widgets.widgets.bench import Bench
from tsmc_widgets.widgets.compare import Pinned
from tsmc_widgets.widgets.front_end import showing
from tsmc_widgets.widgets.known import exact_log_z, narrow_bracket
from tsmc_widgets.widgets.particle_view import ParticleView
from tsmc_widgets.widgets.run_panels import RunPanels
from tsmc_widgets.widgets.runner import Progress, Runner

REST = 0.03
"""Seconds that the controls must rest before a run starts."""


class LivePage(ipw.VBox):
    """A particle view fed by runs in a background thread; the newest run wins.

    A subclass makes its controls, sets ``children``, and calls ``launch`` when they have moved.

    Args:
        panels: what stands under the view, in step with it; None for what the view itself has.

    Attributes:
        view: the live particle view.
        bench: the view with its button to pin a run, and the pinned run beside it.
        runner: the thread.
        target: of the newest run that could be prepared.
    """

    def __init__(self, *, panels: RunPanels | None = None) -> None:
        self.view = ParticleView()
        self.panels = panels
        self.runner = Runner(self._publish, rest=REST)
        self.bench = Bench(self.view, self._pin, panels=panels)
        self.target: Target | None = None
        self._kept: Pinned | None = None
        self._asked: Any = None
        super().__init__(layout={"width": "100%"})
        self.add_class("tsmc-watch")
        self.view.observe(self._hold, "hold")
        self.view.observe(lambda _: self.runner.more(), "more")

    @property
    def session(self) -> Any:
        """The newest run that could be started."""
        return self.runner.session

    @property
    def trace(self) -> SMCTrace | None:
        """Everything recorded of that run so far."""
        return self.runner.trace

    def pin(self) -> None:
        """Keep the run on show as A, beside whatever comes next as B."""
        self.bench.pin(self._kept)

    def unpin(self) -> None:
        """Put A away."""
        self.bench.unpin()

    def launch(
        self, asked: Any, make: Callable[[], Any], *, rest: float | int | None = None
    ) -> None:
        """Start a run in place of the one that is on.

        Args:
            asked: what was asked for, as a pinned run shows it.
            make: makes the session, in the thread; what it raises is shown.
            rest: seconds to wait for another change.
        """
        self.view.hold = False
        self.view.status = {"state": "running", "text": "starting"}

        def prepare() -> Any:
            leave_a_core()
            session = make()
            self.target, self._asked = session.target, asked
            return session

        self.runner.submit(prepare, rest=rest)

    def wait(self, timeout: float | int | None = None) -> bool:
        """Wait until the run has ended or is paused; False if that takes too long."""
        return self.runner.wait(timeout)

    def close(self) -> None:
        """End the run and take the widgets from the page."""
        if not hasattr(self, "bench"):
            # Collected after its making failed.
            return
        self.runner.close()
        self.view.close()
        if self.panels is not None:
            self.panels.close()
        super().close()

    def explain(self, progress: Progress) -> str:
        """What a person should know of the run's end beyond its numbers; empty for nothing."""
        if progress.error is None:
            return ""
        text = message_of(progress.error)
        return text if progress.trace is not None else f"{text}\n{self._below()}"

    def shown(self, progress: Progress, exact_log_z: float | None) -> None:
        """Called from the thread after each frame; a subclass shows what else it has."""

    def _below(self) -> str:
        return "The run shown below is the one before." if self.view.header else ""

    def _pin(self, on: bool) -> None:
        (self.pin if on else self.unpin)()

    def _hold(self, change: Any) -> None:
        (self.runner.hold if change["new"] else self.runner.release)()

    def _publish(self, progress: Progress) -> None:
        """Show how the run stands; called from the thread."""
        with showing(self.view, "run"):
            self._show(progress)

    def _show(self, progress: Progress) -> None:
        known = None
        if progress.trace is not None:
            known = exact_log_z(self.session.target) if progress.state == "done" else None
            self.view.update(progress.trace, exact_log_z=known, run_id=progress.run_id)
        self.view.status = {
            "state": progress.state,
            "text": in_words(progress),
            "error": self.explain(progress),
        }
        if progress.state == "done":
            self._kept = Pinned(progress.trace, self._asked, progress.seconds, self.target, known)
            self.bench.compare(self._kept)
        self.shown(progress, known)
        if self.panels is None or progress.trace is None:
            return
        shown = {"exact_log_z": known, "target": self.target, "run_id": progress.run_id}
        self.panels.update(progress.trace, **shown)
        if progress.state == "done" and known is None:
            bracket = narrow_bracket(self.target, lambda: self.runner.overtaken)
            if bracket is not None:
                self.panels.update(progress.trace, bracket=bracket, **shown)
                self._kept = replace(self._kept, bracket=bracket)


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Load models without a bar for each, which would stay on the page beside the view."""
    try:
        from transformers.utils import logging
    except ImportError:
        yield
        return
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def leave_a_core() -> None:
    """Let this thread compute on all cores but one, which the kernel and the page share."""
    spare = max(1, (os.cpu_count() or 1) - 1)
    if torch.get_num_threads() > spare:
        torch.set_num_threads(spare)


def in_words(progress: Progress) -> str:
    """How a run stands, in a line."""
    trace = progress.trace
    step = "" if trace is None else f" at step {trace.steps_done} of {trace.num_steps}"
    return {
        "waiting": "",
        "running": f"computing{step}",
        "paused": f"paused{step}",
        "done": f"done in {progress.seconds:.1f} s",
        "failed": f"stopped{step}",
        "cancelled": f"cancelled{step}",
    }[progress.state]
