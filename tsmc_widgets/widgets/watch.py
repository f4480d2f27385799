"""A live run of SMC: controls above, the particle view below, the computation in the background."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ipywidgets as ipw
import torch

from tsmc_widgets.errors import AllParticlesDeadError, BudgetError
from tsmc_widgets.models.loading import load_language_model
from tsmc_widgets.models.protocol import LanguageModel
from tsmc_widgets.smc.exact import exact
from tsmc_widgets.smc.session import SMCSession
from tsmc_widgets.smc.trace import SMCTrace
from tsmc_widgets.targets.target import Target
from tsmc_widgets.widgets.bench import Bench
from tsmc_widgets.widgets.compare import Pinned
from tsmc_widgets.widgets.controls import Controls
from tsmc_widgets.widgets.particle_view import ParticleView
from tsmc_widgets.widgets.presets import PresetBar, find_preset
from tsmc_widgets.widgets.runner import Progress, Runner
from tsmc_widgets.widgets.settings import Judges, RunSettings, make_session, make_target

REST = 0.03
"""Seconds that the controls must rest before a run starts."""
EXACT_BUDGET = 1024
"""Texts that may be enumerated beside a run in order to draw the exact log Z."""


class WatchSMC(ipw.VBox):
    """Watch SMC at work: move a control and the run starts anew; pause, step, rewind, look.

    Shown as the last line of a cell. The run is computed in a background thread, so the kernel
    stays free; ``session``, ``trace`` and ``target`` are at hand in the next cell.

    Args:
        lm: a language model, or a name that ``load_language_model`` takes.
        judges: the classifiers behind the controls of stars and hostility; those that ship, if
            None.
        **settings: where the controls start, see ``RunSettings``.
    """

    def __init__(
        self,
        lm: LanguageModel | str = "storybook",
        *,
        judges: Judges | None = None,
        **settings: Any,
    ) -> None:
        with no_progress_bars():
            self.lm = load_language_model(lm) if isinstance(lm, str) else lm
            self.judges = (Judges() if judges is None else judges).loaded()
        self.target: Target | None = None
        self._settings_of_run: RunSettings | None = None
        self._kept: Pinned | None = None
        self.view = ParticleView()
        self.runner = Runner(self._publish, rest=REST)
        self.controls = Controls(RunSettings(**settings), self.judges, self.start)
        self.presets = PresetBar(self._take)
        judged = self.judges.stars is not None and self.judges.hostility is not None
        self.presets.layout.display = None if judged else "none"
        self.bench = Bench(self.view, self._pin)
        children = [self.presets, self.controls, self.bench]
        super().__init__(children, layout={"width": "100%"})
        self.add_class("tsmc-watch")
        self.view.observe(self._hold, "hold")
        self.view.observe(lambda _: self.runner.more(), "more")
        self.start(self.controls.settings, rest=0.0)

    @property
    def settings(self) -> RunSettings:
        """What the controls say."""
        return self.controls.settings

    @property
    def session(self) -> SMCSession | None:
        """The newest run that could be started."""
        return self.runner.session

    @property
    def trace(self) -> SMCTrace | None:
        """Everything recorded of that run so far."""
        return self.runner.trace

    def set(self, **settings: Any) -> None:
        """Move controls from code: ``watch.set(star_beta=4.0, num_particles=128)``."""
        self.controls.set(**settings)

    def pin(self) -> None:
        """Keep the run on show as A, beside whatever comes next as B."""
        self.bench.pin(self._kept)

    def unpin(self) -> None:
        """Put A away."""
        self.bench.unpin()

    def start(self, settings: RunSettings, rest: float | int | None = None) -> None:
        """Start this run in place of the one that is on."""
        self.view.hold = False
        self.presets.show(find_preset(settings))
        self.view.status = {"state": "running", "text": "starting"}

        def prepare() -> SMCSession:
            leave_a_core()
            target = make_target(settings, self.lm, self.judges)
            session = make_session(settings, target)
            self.target, self._settings_of_run = target, settings
            return session

        self.runner.submit(prepare, rest=rest)

    def wait(self, timeout: float | int | None = None) -> bool:
        """Wait until the run has ended or is paused; False if that takes too long."""
        return self.runner.wait(timeout)

    def close(self) -> None:
        """End the run and take the widgets from the page."""
        self.runner.close()
        self.view.close()
        self.controls.close()
        super().close()

    def _take(self, settings: dict[str, Any]) -> None:
        self.controls.set(**settings)

    def _pin(self, on: bool) -> None:
        (self.pin if on else self.unpin)()

    def _hold(self, change: Any) -> None:
        (self.runner.hold if change["new"] else self.runner.release)()

    def _publish(self, progress: Progress) -> None:
        """Show how the run stands; called from the thread."""
        try:
            self._show(progress)
        except Exception as error:
            problem = f"The run goes on, but can not be shown: {error!r}"
            self.view.status = {"state": "failed", "text": "not shown", "error": problem}
            raise

    def _show(self, progress: Progress) -> None:
        if progress.trace is not None:
            exact_log_z = self._exact_log_z() if progress.state == "done" else None
            self.view.update(progress.trace, exact_log_z=exact_log_z, run_id=progress.run_id)
        self.view.status = describe(progress, self.settings)
        if progress.state == "done":
            self._kept = Pinned(progress.trace, self._settings_of_run, progress.seconds)
            self.bench.compare(self._kept)

    def _exact_log_z(self) -> float | None:
        """Log Z where it costs little to know."""
        target = self.session.target
        small = self.lm.vocab_size**target.num_steps <= EXACT_BUDGET
        if not (small or getattr(self.lm, "is_markov", False)):
            return None
        try:
            return exact(target, max_sequences=EXACT_BUDGET).log_z
        except BudgetError:
            return None


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


def describe(progress: Progress, settings: RunSettings) -> dict[str, str]:
    """The view's status: one word for the colour, a line for people, and the error if any."""
    trace = progress.trace
    step = "" if trace is None else f" at step {trace.steps_done} of {trace.num_steps}"
    text = {
        "waiting": "",
        "running": f"computing{step}",
        "paused": f"paused{step}",
        "done": f"done in {progress.seconds:.1f} s",
        "failed": f"stopped{step}",
        "cancelled": f"cancelled{step}",
    }[progress.state]
    error = ""
    if progress.error is not None:
        error = str(progress.error) or type(progress.error).__name__
        if trace is None:
            error += "\nThe run shown below is the one before."
        elif isinstance(progress.error, AllParticlesDeadError):
            error = explain_death(trace, settings)
    return {"state": progress.state, "text": text, "error": error}


def explain_death(trace: SMCTrace, settings: RunSettings) -> str:
    """Why no particle has weight left, and which controls may help."""
    remedies = [
        "take more particles K",
        "ask for less: another prompt, fewer words, a lower η or β",
    ]
    if settings.twist == "none":
        remedies.insert(0, "set twist ψ to look-ahead, which hears φ before the end")
    elif settings.proposal == "base":
        remedies.insert(0, "set proposal q to twist-induced, which draws tokens that ψ likes")
    return (
        f"All {trace.num_particles} weights are zero at step {trace.steps_done}: "
        f"every text is one that φ rules out, and log Ẑ is −∞.\nTry to {'; or '.join(remedies)}."
    )
