"""A page on which one SMC run is watched: the live view, a run pinned beside it, known log Z."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import ipywidgets as ipw
import torch
from jaxtyping import Float64
from scipy import stats
from torch import Tensor

from tsmc_widgets.errors import Stopped, TsmcError, check_stop, message_of, stop_when
from tsmc_widgets.evaluation.bounds import runs_at_once
from tsmc_widgets.evaluation.bracket import Bracket, bracket_log_z
from tsmc_widgets.evaluation.estimates import MeanOverRuns, welch
from tsmc_widgets.experiments.code import noise_words, words_of
from tsmc_widgets.experiments.spec import RunSpec
from tsmc_widgets.models.tempered import table_of
from tsmc_widgets.smc.api import SMCSession
from tsmc_widgets.smc.exact import exact
from tsmc_widgets.smc.noise import AddressedNoise
from tsmc_widgets.smc.trace import SMCTrace
from tsmc_widgets.targets.target import Target
from tsmc_widgets.targets.words import contradiction
from tsmc_widgets.widgets.controls import (
    Note,
    Quiet,
    button,
    classed,
    close_whole,
    sentence_of,
    unfold,
)
from tsmc_widgets.widgets.particle_view import ParticleView, RunPanels
from tsmc_widgets.widgets.record import replicate_facts
from tsmc_widgets.widgets.session import LivePage, Progress, error_text


@dataclass(frozen=True, slots=True)
class Pinned:
    """A finished run that is kept to be compared with.

    Attributes:
        trace: its record.
        spec: what it was asked for.
        seconds: how long it took.
        target: what was sampled, where that is at hand.
        exact_log_z: log Z in nats where it is known.
        bracket: a certified bracket of it, where one is known and narrow.
        replicates: log Z_hat (runs, steps) of this run and of more on other noise, or None.
    """

    trace: SMCTrace
    spec: RunSpec
    seconds: float
    target: Target | None = None
    exact_log_z: float | None = None
    bracket: Bracket | None = None
    replicates: Float64[Tensor, "runs steps"] | None = None

    def is_of(self, other: Pinned) -> bool:
        """Whether both are one run, of which one may know more than the other."""
        return self.trace is other.trace and self.spec == other.spec

    @property
    def log_z(self) -> float:
        """Of one run; of several, the mean, which is a lower bound on log Z."""
        value = self.trace.log_z
        return value if isinstance(value, float) else float(value.mean())

    @property
    def estimate(self) -> str:
        """Log Z_hat, and what several runs say together, with its 95 % interval."""
        found = replicate_facts(self.trace, self.replicates)
        if found is None:
            return _number(self.log_z)
        low, high = float(found["low"]), float(found["high"])
        known = math.isfinite(low) or math.isfinite(high)
        ends = f", 95 % {_number(low)} to {_number(high)}" if known else ""
        pooled = f"{found['runs']} runs pooled {_number(float(found['pooled']))}{ends}"
        return pooled if self.trace.num_runs > 1 else f"{_number(self.log_z)} ({pooled})"

    @property
    def ess(self) -> str:
        """At the last step, mean over runs."""
        ess = self.trace.columns.ess
        last = float(ess[:, -1].mean()) if self.trace.steps_done else math.nan
        return f"{last:.1f} of {self.trace.num_particles}"

    @property
    def first_tokens(self) -> str:
        """How many first tokens have a descendant left, mean over runs."""
        if not self.trace.steps_done:
            return "–"
        counts = torch.as_tensor(self.trace.surviving_ancestors(), dtype=torch.float64)
        return f"{float(counts.reshape(self.trace.num_runs, -1)[:, 0].mean()):g}"

    @property
    def duration(self) -> str:
        """In seconds."""
        return f"{self.seconds:.1f}" if self.seconds >= 0.05 else f"{self.seconds:.2f}"

    @property
    def accepted(self) -> tuple[int, int]:
        """How many texts phi accepts, and of how many."""
        log_phi = self.trace.columns.log_psi[:, -1]
        return int((log_phi > -math.inf).sum()), log_phi.numel()


def compare(a: Pinned, b: Pinned) -> str:
    """The differences from run A to run B, in words and numbers."""
    before, after = words_of(a.spec), words_of(b.spec)
    changed = [
        f"{name} {_quoted(before.get(name, 'none'))} → {_quoted(after.get(name, 'none'))}"
        for name in {**before, **after}
        if before.get(name) != after.get(name)
    ]
    noise = f"on {noise_words(before, after)}"
    nats = ""
    if math.isfinite(a.log_z) and math.isfinite(b.log_z):
        nats = f" ({'+' if b.log_z > a.log_z else ''}{_number(b.log_z - a.log_z)} nats)"
    parts = [f"log Ẑ {a.estimate} → {b.estimate}{nats}", f"ESS at the end {a.ess} → {b.ess}"]
    if a.trace.done and b.trace.done:
        (yes_a, of_a), (yes_b, of_b) = a.accepted, b.accepted
        if yes_a < of_a or yes_b < of_b:
            parts.append(f"accepted by φ {yes_a} of {of_a} → {yes_b} of {of_b} texts")
    parts += [
        f"first tokens left {a.first_tokens} → {b.first_tokens}",
        f"{a.duration} → {b.duration} s",
    ]
    what = "; ".join(changed) if changed else "nothing has changed yet"
    verdict = f"B: ESS {b.ess} against {a.ess}; {_difference(a, b)}. "
    return f"{verdict}A → B, {noise}: {what}. {', '.join(parts)}."


def _difference(a: Pinned, b: Pinned) -> str:
    """Whether mean log Z_hat differs by more than its error: a 95 % t-interval (Welch) about 0.

    Taken as if the noise of both were independent.
    """
    means = []
    for run in (a, b):
        every = run.trace.columns.log_z if run.replicates is None else run.replicates
        last = every[:, -1] if every.shape[1] else every.new_zeros(1)
        if len(last) < 2 or not bool(torch.isfinite(last).all()):
            return "how far log Ẑ differs beyond its error is not known"
        means.append(MeanOverRuns.of(last))
    gap, (error, freedom) = means[1].mean - means[0].mean, welch(*means)
    reach = float(stats.t.ppf(0.975, freedom)) * error
    if abs(gap) <= reach:
        return f"log Ẑ differs within its error (±{_number(reach)} nats)"
    return f"log Ẑ differs by {_number(gap)} ± {_number(reach)} nats, more than its error"


def _quoted(value: Any) -> str:
    if value == "":
        return "nothing"
    return f"“{value}”" if isinstance(value, str) and " " in value else f"{value}"


def _number(value: float) -> str:
    if math.isnan(value):
        return "unknown"
    return f"{value:.2f}".replace("-", "−").replace("inf", "∞")


_NOT_YET = "Pin a run as A, then change anything: both are shown side by side, on the same noise."
_MORE = "log Ẑ run by run, weights, factors of φ, samples; code, files and the pinned run"
_HALF = {"flex": "1 1 480px", "min_width": "0", "width": "auto"}


class PinnedTable(ipw.VBox):
    """Pinned runs where they are several: a row each, to compare with it or to remove it.

    Args:
        compare: called with the run whose button is pressed.
        remove: called with the run that is taken away.
    """

    def __init__(self, compare: Callable[[Pinned], None], remove: Callable[[Pinned], None]) -> None:
        self._choose, self._drop = compare, remove
        super().__init__()
        self.add_class("tw-pinned")

    def show(self, runs: Sequence[Pinned], chosen: Pinned | None) -> None:
        """Show these, in the order in which they were pinned."""
        gone, self.children = self.children, self._rows(runs, chosen) if runs[1:] else []
        close_whole(*gone)

    def _rows(self, runs: Sequence[Pinned], chosen: Pinned | None) -> list[ipw.HBox]:
        heads = ("Pinned run", "ESS", "log Ẑ, nats", "ancestors")
        cells = [classed(Note("tw-cell").say(words), "tw-head") for words in heads]
        head = ipw.HBox([ipw.Label(), *cells, ipw.Label()])
        return [head, *(self._row(run, run is chosen) for run in runs)]

    def _row(self, run: Pinned, chosen: bool) -> ipw.HBox:
        compare = button("A" if chosen else "compare", "Compare the live run with this one")
        compare.disabled = chosen
        compare.on_click(lambda _: self._choose(run))
        remove = button("×", "Remove this run")
        remove.on_click(lambda _: self._drop(run))
        said = (sentence_of(run.spec), run.ess, run.estimate, run.first_tokens)
        cells = [Note("tw-cell").say(words) for words in said]
        return ipw.HBox([compare, *cells, remove])


class Bench(Quiet, ipw.VBox):
    """The live view, a button that pins its run, and the pinned runs: one of them beside it.

    Args:
        view: the live one.
        asked: called when the button is pressed, with whether a run is to be pinned.
        panels: what stands under the live view in step with it; a pinned one then gets its own.
    """

    def __init__(
        self, view: ParticleView, asked: Callable[[bool], None], *, panels: RunPanels | None = None
    ) -> None:
        self.view = view
        self.panels = panels
        self.pinned_panels: RunPanels | None = None
        self.pinned: Pinned | None = None
        self._now: Pinned | None = None
        self.pinned_view: ParticleView | None = None
        self.button = button("Pin this run as A", _NOT_YET, ipw.ToggleButton, disabled=True)
        self.button.layout.margin = "1px 8px 1px 2px"
        self.kept: list[Pinned] = []
        # A person pins while the run's thread tells more of it.
        self._changing = threading.RLock()
        self.another = button("Pin this run too", "Keep it in a table with those that are pinned")
        self.another.on_click(lambda _: asked(True))
        self.table = PinnedTable(self._beside, self._drop)
        self.sentence = classed(Note("", margin="0"), "tw-verdict")
        layout = {"flex_flow": "row wrap", "width": "100%", "grid_gap": "10px"}
        self.more = button("More", _MORE, ipw.ToggleButton)
        self._views = ipw.Box([] if panels is None else [panels], layout=layout)
        self.fold = classed(ipw.VBox([self._views]), "tw-more")
        self.button.observe(lambda change: self._quiet or asked(change["new"]), "value")
        self.row = classed(ipw.Box([self.button, self.another, self.more]), "tw-bar")
        parts = [self.row, self.sentence, self.table, view, self.fold]
        super().__init__(parts, layout={"width": "100%"})
        unfold(self.more, self.fold)
        self._set_button(on=False)
        if panels is not None:
            self.view.strips = False
            self._tie()

    def pin(self, run: Pinned | None) -> None:
        """Keep this run beside the live one; others that were pinned stay in the table."""
        if run is None:
            self._set_button(on=self.pinned is not None)
            self.sentence.say("There is no finished run to pin yet.")
            return
        with self._changing:
            if not any(each.is_of(run) for each in self.kept):
                self.kept.append(run)
            self._beside(run)
            self.compare(run)

    def _beside(self, run: Pinned) -> None:
        """Compare with this one of the pinned runs."""
        self._put_away()
        self.pinned = run
        shown = {"exact_log_z": run.exact_log_z, "replicates": run.replicates}
        self.pinned_view = ParticleView(run.trace, run=self.view.run, **shown)
        if self.panels is not None:
            self.pinned_view.strips = False
            self.pinned_panels = RunPanels(
                run.trace, bracket=run.bracket, target=run.target, run=self.view.run, **shown
            )
        self.pinned_view.status = {"state": "done", "text": f"A, pinned: {run.seconds:.1f} s"}
        self._tie()
        pinned = [self.pinned_view, *filter(None, [self.pinned_panels])]
        side = ipw.VBox(pinned, layout=_HALF)
        self._views.children = [side, *filter(None, [self.panels])]
        self.view.beside = overlay_of(run.trace, self.view.run)
        self._set_button(on=True)
        self.table.show(self.kept, run)
        if self._now is not None:
            self.sentence.say(compare(run, self._now))

    def _drop(self, run: Pinned) -> None:
        """Take one pinned run away; of the others the newest is the one to compare with."""
        self.kept = [each for each in self.kept if each is not run]
        if run is not self.pinned:
            self.table.show(self.kept, self.pinned)
        elif self.kept:
            self._beside(self.kept[-1])
        else:
            self._put_away()
            self._views.children = [] if self.panels is None else [self.panels]
            self._set_button(on=False)
            self.sentence.say("")
            self.table.show([], None)

    def add_tools(self, beside: list[ipw.Widget], folded: list[ipw.Widget]) -> None:
        """Put controls beside the buttons, and others first among what is folded away."""
        self.row.children = [self.button, self.another, *beside, self.more]
        self.fold.children = [*folded, *self.fold.children]

    def unpin(self) -> None:
        """Put away the run that is compared with."""
        if self.pinned is not None:
            self._drop(self.pinned)

    def compare(self, run: Pinned) -> None:
        """Say how the live run, now done, differs from the pinned one."""
        with self._changing:
            self._now = run
            self.button.disabled = False
            # What is known of a run may grow after it was pinned.
            self.kept = [run if each.is_of(run) else each for each in self.kept]
            if self.pinned is not None:
                self.pinned = run if self.pinned.is_of(run) else self.pinned
                self.table.show(self.kept, self.pinned)
                self.sentence.say(compare(self.pinned, run))

    def _put_away(self) -> None:
        if self.panels is None:
            self.view.group = ""
        close_whole(*(each for each in self._views.children if each is not self.panels))
        self.view.beside = {}
        self.pinned = self.pinned_view = self.pinned_panels = None

    def _tie(self) -> None:
        """Let all play heads move together."""
        for widget in (self.view, self.panels, self.pinned_view, self.pinned_panels):
            if widget is not None:
                widget.group = f"bench {self.model_id}"

    def _set_button(self, *, on: bool) -> None:
        with self._quietly():
            self.button.value = on
        self.button.description = "Put A away" if on else "Pin this run as A"
        self.another.layout.display = None if on else "none"


def overlay_of(trace: SMCTrace, run: int) -> dict[str, Any]:
    """What a view draws dashed of a run pinned beside its own; that it died is null."""
    run = min(run, trace.num_runs - 1)
    columns = trace.columns
    survivors = torch.as_tensor(trace.surviving_ancestors()).reshape(trace.num_runs, -1)[run]
    return {
        "size": trace.num_particles,
        "ess": columns.ess[run].tolist(),
        "survivors": survivors.tolist(),
        "log_z": [value if math.isfinite(value) else None for value in columns.log_z[run].tolist()],
    }


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
    table = table_of(target.lm)
    budget = EXACT_BUDGET if table is None else TABLE_BUDGET
    many = target.lm.vocab_size**target.num_steps > budget
    if many and not (table is not None and table.is_markov):
        return None
    try:
        return exact(target, max_sequences=budget).log_z
    except TsmcError:
        # Too many texts, or one that the run has not met and phi fails on.
        return None


def narrow_bracket(target: Target) -> Bracket | None:
    """A certified bracket of log Z, searched for with little of the model; None where it is wide.

    Raises:
        Stopped: its result is no longer wanted.
    """
    try:
        found = bracket_log_z(target, max_tokens=BRACKET_TOKENS, on_step=lambda _: check_stop())
    except TsmcError:
        # No bound on phi is known, or the target waits for an observation.
        return None
    return found if found.width <= NARROW else None


REPLICATES = 8
"""Runs whose spread is the error of one run's log Z_hat: that on show and seven more."""
PATIENCE = 10.0
"""Seconds that the seven may take."""


def replicate_log_z(session: Any, seconds: float) -> Float64[Tensor, "runs steps"] | None:
    """Log Z_hat after each step of a finished run and of seven more that differ in noise alone.

    They are runs 1 to 7 of what ``num_runs=8`` would have made. None where the session holds
    several runs or a retained sample, and where seven more would take too long.

    Args:
        session: the finished ``SMCSession``.
        seconds: how long it took.

    Raises:
        Stopped: the result is no longer wanted.
    """
    config, noise = session.config, session.config.noise
    if config.num_runs > 1 or config.retained is not None or not isinstance(noise, AddressedNoise):
        return None
    if seconds * (REPLICATES - 1) > PATIENCE:
        return None
    every = [session.trace.columns.log_z]
    chunk = runs_at_once(session.target, config.num_particles, None)
    for start in range(1, REPLICATES, chunk):
        count = min(chunk, REPLICATES - start)
        changed: dict[str, Any] = {"num_runs": count, "top_k": 0, "dead_runs": "keep"}
        changed["noise"] = replace(noise, num_runs=count, first_run=noise.first_run + start)
        if config.observed is not None:
            changed["observed"] = config.observed.expand(count, -1)
        more = SMCSession(session.target, replace(config, **changed))
        while not more.done:
            check_stop()
            more.step()
        every.append(more.trace.columns.log_z)
    return torch.cat(every)


REST = 0.03
"""Seconds that the controls must rest before a run starts."""


class RunPage(LivePage):
    """A particle view fed by runs in a background thread; the newest run replaces the one before.

    A subclass makes its controls and ``presets``, sets ``children``, and calls ``launch``.

    Args:
        panels: what stands under the view, in step with it; None for what the view itself has.

    Attributes:
        view: the live particle view.
        bench: the view with its button to pin a run, and the pinned run beside it.
        live: the engine.
        target: of the newest run that could be prepared.
    """

    def __init__(self, *, panels: RunPanels | None = None) -> None:
        super().__init__(ParticleView(), rest=REST)
        self.panels = panels
        self.bench = Bench(self.view, self._pin, panels=panels)
        if panels is not None:
            self.view.write_page = lambda path: panels.to_html(path, view=self.view)
        self.target: Target | None = None
        what = "Larger type, and the run alone: no controls beside it"
        self.present = button("Present", what, ipw.ToggleButton)
        self.present.observe(lambda change: self._present(change["new"]), "value")
        self._kept: Pinned | None = None
        self._asked: RunSpec | None = None
        self.view.observe(self._hold, "hold")
        self.view.observe(lambda _: self.live.step(), "more")

    @property
    def session(self) -> Any:
        """The newest run that could be started."""
        return self.live.session

    @property
    def trace(self) -> SMCTrace | None:
        """Everything recorded of that run so far."""
        return self.live.trace

    def pin(self) -> None:
        """Keep the run on show as A, beside whatever comes next as B."""
        self.bench.pin(self._kept)

    def unpin(self) -> None:
        """Put A away; another pinned run takes its place, where there is one."""
        self.bench.unpin()

    def launch(
        self, spec: RunSpec, make: Callable[[], Any], *, rest: float | int | None = None
    ) -> None:
        """Start the run of a spec in place of the one in progress.

        Args:
            spec: what was asked for, as a pinned run shows it.
            make: makes the run, in the thread; what it raises is shown.
            rest: seconds to wait for another change.
        """

        def make_and_note() -> Any:
            session = make()
            found = contradiction(session.target.potential)
            if found:
                named = " and ".join(f"“{each}”" for each in found)
                raise ValueError(
                    f"No text satisfies φ: {named} contradict each other. "
                    "Take one of them away, or change its words."
                )
            self.target, self._asked = session.target, spec
            return session

        self.view.hold = False
        self._submit(make_and_note, rest=rest)

    def still(self) -> str:
        """The run on show."""
        return self.view.still()

    def explain(self, progress: Progress) -> str:
        """What a person should know of the run's end beyond its numbers; empty for nothing."""
        stays = "The run shown below is the one before."
        below = stays if progress.trace is None and self.view.header else ""
        return error_text(progress.error, below).rstrip("\n")

    def shown(self, progress: Progress) -> None:
        """Called from the thread after each frame of a run; a subclass shows what else it has."""

    def _present(self, on: bool) -> None:
        (self.add_class if on else self.remove_class)("tw-present")

    def _pin(self, on: bool) -> None:
        (self.pin if on else self.unpin)()

    def _hold(self, change: Any) -> None:
        (self.live.pause if change["new"] else self.live.resume)()

    def _show(self, progress: Progress) -> None:
        if progress.trace is not None and not progress.trace.steps_done:
            progress = replace(progress, trace=None)
        trace, done, known = progress.trace, progress.state == "done", None
        if trace is not None:
            known = exact_log_z(self.target) if done else None
            self.view.update(trace, exact_log_z=known, run_id=progress.run_id)
        self._show_status(progress)
        if trace is None:
            return
        if done:
            self._kept = Pinned(trace, self._asked, progress.seconds, self.target, known)
            self.bench.compare(self._kept)
        self.presets.ask(self._asked)
        self.shown(progress)
        if self.panels is not None:
            shown = {"target": self.target, "run_id": progress.run_id}
            self.panels.update(trace, exact_log_z=known, **shown)
        if done:
            with suppress(Stopped), stop_when(lambda: self.live.stopping):
                self._add_errors(progress)

    def _add_errors(self, progress: Progress) -> None:
        """Look for what tells how far log Z_hat may be off, and show it: replicates, a bracket."""
        kept, replicates, bracket = self._kept, None, None
        try:
            replicates = replicate_log_z(self.session, progress.seconds)
        except Exception as error:  # noqa: BLE001 - the run itself is done, and stays on show
            problem = "This run is done. Seven more, for the error of log Ẑ, stopped: "
            problem += message_of(error)
            self.view.status = {**self.view.status, "error": problem}
        known = {"exact_log_z": kept.exact_log_z, "replicates": replicates}
        if replicates is not None:
            self._kept = kept = replace(kept, replicates=replicates)
            self.view.update(kept.trace, run_id=progress.run_id, **known)
            self.bench.compare(kept)
        if self.panels is None:
            return
        if kept.exact_log_z is None:
            bracket = narrow_bracket(self.target)
            self._kept = replace(kept, bracket=bracket)
        if replicates is not None or bracket is not None:
            shown = {"target": self.target, "run_id": progress.run_id}
            self.panels.update(kept.trace, bracket=bracket, **shown, **known)

    def _show_status(self, progress: Progress) -> None:
        self.view.status = {
            "state": progress.state,
            "text": in_words(progress),
            "error": self.explain(progress),
        }


def in_words(progress: Progress) -> str:
    """The state of a run, in a line."""
    trace = progress.trace
    step = "" if trace is None else f" at step {trace.steps_done} of {trace.num_steps}"
    return {
        "waiting": "",
        "running": f"computing{step}{_speed(progress)}",
        "paused": f"paused{step}",
        "done": f"done in {progress.seconds:.1f} s",
        "failed": f"stopped{step}",
        "cancelled": f"cancelled{step}",
    }[progress.state]


def _speed(progress: Progress) -> str:
    """Tokens a second and time left of a run that takes a second or more; else empty."""
    trace = progress.trace
    if trace is None or not progress.seconds:
        return ""
    step = progress.seconds / trace.steps_done
    if step * trace.num_steps < 1:
        return ""
    left = timedelta(seconds=math.ceil(step * (trace.num_steps - trace.steps_done)))
    return f": {trace.num_runs * trace.num_particles / step:,.0f} tokens a second, {left} left"


def explain_dead(trace: SMCTrace, spec: RunSpec) -> str:
    """Which runs died where, and which controls may help; empty where all live."""
    ess = trace.columns.ess
    dead = [run for run in range(trace.num_runs) if float(ess[run, -1]) == 0]
    if not dead:
        return ""
    step = min(int((ess[run] == 0).nonzero()[0, 0]) + 1 for run in dead)
    remedies = ["take more particles K", "ask for less: a shorter list of factors, a lower β or η"]
    if spec.method == "none":
        remedies.insert(0, "set twist ψ to look-ahead or to one that ships")
    elif spec.proposal == "base":
        remedies.insert(0, "set proposal q to twist-induced, which draws tokens that ψ likes")
    who = f"All {trace.num_particles} weights are zero from step {step} on"
    if trace.num_runs > 1:
        who = f"{len(dead)} of {trace.num_runs} runs died, the first at step {step}"
    log_z = "" if len(dead) < trace.num_runs else ", and log Ẑ is −∞"
    return (
        f"{who}: every text is one that φ{'' if spec.method == 'none' else ' or ψ'} rules out"
        f"{log_z}.\nTry to {'; or '.join(remedies)}."
    )
