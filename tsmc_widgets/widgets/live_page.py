"""What every page with a live run shares: a view, a background thread, and a run kept as A."""

from __future__ import annotations

import html
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import ipywidgets as ipw
import torch

from tsmc_widgets.errors import BudgetError, TsmcError, message_of
from tsmc_widgets.evaluation.bracket import Bracket, bracket_log_z
from tsmc_widgets.experiments.spec import RunSpec
from tsmc_widgets.models.tabular import TabularLM
from tsmc_widgets.smc.exact import exact
from tsmc_widgets.smc.trace import SMCTrace
from tsmc_widgets.targets.target import Target
from tsmc_widgets.widgets.formula import words_of
from tsmc_widgets.widgets.front_end import showing
from tsmc_widgets.widgets.particle_view import ParticleView
from tsmc_widgets.widgets.run_panels import RunPanels
from tsmc_widgets.widgets.session import Progress, Runner
from tsmc_widgets.widgets.settings import RunSettings

_NAMES = {
    "num_steps": "T",
    "num_particles": "K",
    "star_beta": "stars β",
    "hostility_at_least": "η",
    "hostility_beta": "hostility β",
    "ess_threshold": "ESS below",
    "resampler": "resampling",
    "twist": "twist ψ",
    "proposal": "proposal q",
    "eos": "EOS",
}


@dataclass(frozen=True, slots=True)
class Pinned:
    """A finished run that is kept to be compared with.

    Attributes:
        trace: its record.
        settings: what it was asked for.
        seconds: how long it took.
        target: what was sampled, where that is at hand.
        exact_log_z: log Z in nats where it is known.
        bracket: a certified bracket of it, where one is known and narrow.
    """

    trace: Any
    settings: RunSettings | RunSpec
    seconds: float
    target: Any = None
    exact_log_z: float | None = None
    bracket: Any = None

    @property
    def words(self) -> dict[str, Any]:
        """What it was asked for, by the names that people see."""
        if isinstance(self.settings, RunSpec):
            return words_of(self.settings)
        named = {_NAMES.get(f.name, f.name): f.name for f in fields(self.settings)}
        return {name: getattr(self.settings, field) for name, field in named.items()}


def compare(a: Pinned, b: Pinned) -> str:
    """The differences from run A to run B, in words and numbers."""
    before, after = a.words, b.words
    changed = [
        f"{name} {_said(before.get(name, 'none'))} → {_said(after.get(name, 'none'))}"
        for name in {**before, **after}
        if before.get(name) != after.get(name)
    ]
    same_noise = all(before.get(name) == after.get(name) for name in ("seed", "K", "R"))
    noise = "on the same noise" if same_noise else "on other noise"
    parts = [
        f"log Ẑ {_estimate(a)} → {_estimate(b)}{_difference(_log_z(a), _log_z(b))}",
        f"ESS at the end {_ess(a)} → {_ess(b)}",
        *_allowed(a, b),
        f"first tokens left {_families(a)} → {_families(b)}",
        f"{_seconds(a)} → {_seconds(b)} s",
    ]
    what = "; ".join(changed) if changed else "nothing has changed yet"
    return f"A → B, {noise}: {what}. {', '.join(parts)}."


def _said(value: Any) -> str:
    if value == "":
        return "nothing"
    return f"“{value}”" if isinstance(value, str) and " " in value else f"{value}"


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "−∞" if value < 0 else "unknown"
    return f"{value:.2f}".replace("-", "−")


def _seconds(run: Pinned) -> str:
    return f"{run.seconds:.1f}" if run.seconds >= 0.05 else f"{run.seconds:.2f}"


def _log_z(run: Pinned) -> float:
    """Of one run; of several, the mean, which is a lower bound on log Z."""
    value = run.trace.log_z
    return value if isinstance(value, float) else float(value.mean())


def _estimate(run: Pinned) -> str:
    trace = run.trace
    if trace.num_runs > 1:
        spread = float(trace.log_z.std()) / math.sqrt(trace.num_runs)
        error = f" ± {spread:.2f} s.e." if math.isfinite(spread) else ""
        return f"{_number(_log_z(run))}{error} (mean of {trace.num_runs})"
    if trace.info.conditional or not trace.steps_done:
        return _number(trace.log_z)
    variance = trace.log_z_variance()
    known = -1e-9 < variance < 1.0
    return _number(trace.log_z) + (f" ± {math.sqrt(max(variance, 0.0)):.2f} s.e." if known else "")


def _difference(a: float, b: float) -> str:
    if not (math.isfinite(a) and math.isfinite(b)):
        return ""
    return f" ({'+' if b > a else ''}{_number(b - a)} nats)"


def _ess(run: Pinned) -> str:
    ess = run.trace.columns.ess
    last = float(ess[:, -1].mean()) if run.trace.steps_done else math.nan
    return f"{last:.1f} of {run.trace.num_particles}"


def _allowed(a: Pinned, b: Pinned) -> list[str]:
    """How many texts phi accepts, where it can refuse any."""
    counts = []
    for run in (a, b):
        if not run.trace.done:
            return []
        log_phi = run.trace.columns.log_psi[:, -1]
        counts.append((int((log_phi > -math.inf).sum()), log_phi.numel()))
    if all(accepted == total for accepted, total in counts):
        return []
    (before, of), (after, all_) = counts
    return [f"accepted by φ {before} of {of} → {after} of {all_} texts"]


def _families(run: Pinned) -> str:
    if not run.trace.steps_done:
        return "–"
    counts = torch.as_tensor(run.trace.surviving_ancestors(), dtype=torch.float64)
    return f"{float(counts.reshape(run.trace.num_runs, -1)[:, 0].mean()):g}"


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


EXACT_BUDGET = 1024
"""Texts that may be enumerated beside a run in order to draw the exact log Z."""
TABLE_BUDGET = 2**14
"""The same where the model is a table."""
BRACKET_TOKENS = 4096
"""Tokens that the model may read for a bracket."""
NARROW = 1.0
"""Width in nats from which on a bracket says less than the runs themselves."""


def exact_log_z(target: Target) -> float | None:
    """Log Z in nats where texts are few or the model is a Markov chain, else None."""
    lm = target.lm
    budget = TABLE_BUDGET if isinstance(lm, TabularLM) else EXACT_BUDGET
    if not (lm.vocab_size**target.num_steps <= budget or getattr(lm, "is_markov", False)):
        return None
    try:
        return exact(target, max_sequences=budget).log_z
    except BudgetError:
        return None


class Overtaken(Exception):
    """The search was given up for a newer run."""


def narrow_bracket(target: Target, overtaken: Callable[[], bool]) -> Bracket | None:
    """A certified bracket of log Z, searched for with little of the model; None where it is wide.

    Args:
        target: whose Z.
        overtaken: whether something else is waiting: then the search is given up.
    """

    def look_up(_: Bracket) -> None:
        if overtaken():
            raise Overtaken

    try:
        found = bracket_log_z(target, max_tokens=BRACKET_TOKENS, on_step=look_up)
    except (TsmcError, Overtaken):
        # No bound on phi is known, the target waits for an observation, or a newer run waits.
        return None
    return found if found.width <= NARROW else None


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
