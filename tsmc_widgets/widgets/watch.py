"""A live run of SMC: controls above, the particle view below, the computation in the background."""

from __future__ import annotations

from typing import Any

from tsmc_widgets.errors import AllParticlesDeadError
from tsmc_widgets.models.loading import load_language_model
from tsmc_widgets.models.protocol import LanguageModel
from tsmc_widgets.smc.session import SMCSession
from tsmc_widgets.smc.trace import SMCTrace
from tsmc_widgets.widgets.controls import Controls
from tsmc_widgets.widgets.live import LivePage, no_progress_bars
from tsmc_widgets.widgets.presets import PresetBar, find_preset
from tsmc_widgets.widgets.runner import Progress
from tsmc_widgets.widgets.settings import Judges, RunSettings, make_session, make_target


class WatchSMC(LivePage):
    """Watch SMC at work: move a control and the run starts anew; pause, step, rewind, look.

    Shown as the last line of a cell. The run is computed in a background thread, so the kernel
    stays free; ``session``, ``trace`` and ``target`` are at hand in the next cell. ``Workbench`` is
    its larger sibling.

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
        super().__init__()
        self.controls = Controls(RunSettings(**settings), self.judges, self.start)
        self.presets = PresetBar(self._take)
        judged = self.judges.stars is not None and self.judges.hostility is not None
        self.presets.layout.display = None if judged else "none"
        self.children = [self.presets, self.controls, self.bench]
        self.start(self.controls.settings, rest=0.0)

    @property
    def settings(self) -> RunSettings:
        """What the controls say."""
        return self.controls.settings

    def set(self, **settings: Any) -> None:
        """Move controls from code: ``watch.set(star_beta=4.0, num_particles=128)``."""
        self.controls.set(**settings)

    def start(self, settings: RunSettings, rest: float | int | None = None) -> None:
        """Start this run in place of the one that is on."""
        self.presets.show(find_preset(settings))

        def make() -> SMCSession:
            return make_session(settings, make_target(settings, self.lm, self.judges))

        self.launch(settings, make, rest=rest)

    def close(self) -> None:
        """End the run and take the widgets from the page."""
        self.controls.close()
        super().close()

    def explain(self, progress: Progress) -> str:
        """What stopped the run, and for dead particles what may help."""
        if isinstance(progress.error, AllParticlesDeadError) and progress.trace is not None:
            return explain_death(progress.trace, self.settings)
        return super().explain(progress)

    def _take(self, settings: dict[str, Any]) -> None:
        self.controls.set(**settings)


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
