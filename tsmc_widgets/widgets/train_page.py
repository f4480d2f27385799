"""A live training of a twist: controls above, curves below, the computation in the background."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from weakref import WeakSet

import ipywidgets as ipw

from tsmc_widgets.errors import check_integer, check_one_of, message_of
from tsmc_widgets.evaluation.bounds import LogZBounds
from tsmc_widgets.learning.trainer import TwistTrainer
from tsmc_widgets.targets.target import Target
from tsmc_widgets.twists.storage import save_twist
from tsmc_widgets.twists.trainable import TrainableModule
from tsmc_widgets.widgets.controls import dress, group
from tsmc_widgets.widgets.front_end import run_action, showing
from tsmc_widgets.widgets.lesson import (
    FORMS,
    LEAST_RATE,
    METHODS,
    MOST_RATE,
    MOST_SEED,
    PROBLEMS,
    Lesson,
    TrainSettings,
    speed,
)
from tsmc_widgets.widgets.live_page import leave_a_core
from tsmc_widgets.widgets.session import Progress, Runner
from tsmc_widgets.widgets.train_record import (
    encode_curves,
    encode_header,
    encode_looks,
    positives_of,
)
from tsmc_widgets.widgets.train_view import TrainView

METHOD_NAMES = {
    "ctl": "CTL: contrastive twist learning",
    "ctl+dpg": "CTL + DPG: both, 1 to 10",
    "rl": "RL: path consistency",
    "sixo": "SIXO: classify σ against p₀",
    "fudge": "FUDGE: predict φ from a prefix",
    "nvi": "NVI: nested variational inference",
    "cd": "CD: regress φ on a prefix",
    "dpg": "DPG: policy gradient (proposal only)",
    "ppo": "PPO: clipped policy (proposal only)",
}
BATCHES = (10, 20, 50, 100, 200, 500)
UPDATES = (20, 40, 60, 120, 240, 500, 1000, 2000)
SIZES = (1, 2, 4, 8, 16, 32)


class TrainControls(ipw.Box):
    """Three groups of controls, side by side where there is room.

    Args:
        settings: what they show at first.
        changed: called with the new settings after each change.
    """

    def __init__(self, settings: TrainSettings, changed: Callable[[TrainSettings], None]) -> None:
        self.settings = settings
        self.fields = _task_fields(settings) | _training_fields(settings)
        self.rivals = {
            name: ipw.Checkbox(
                name in settings.rivals,
                description=name.upper().replace("+", " + "),
                indent=False,
                layout={"width": "104px" if "+" in name else "82px", "margin": "0"},
            )
            for name in METHODS
        }
        self._changed = changed
        self._many = False
        label = {"width": "92px", "justify_content": "flex-end", "margin": "0 8px 0 0"}
        race = ipw.HBox(
            [ipw.Label("race", layout=label),
             ipw.HBox(list(self.rivals.values()), layout={"flex_flow": "row wrap", "flex": "1"})],
            layout={"margin": "1px 0"},
        )  # fmt: skip
        fields = self.fields
        groups = [
            group("What to learn", [fields["problem"], fields["method"], race], grow=1.5),
            group("Twist ψ", [fields[name] for name in ("form", "learning_rate", "batch_size")]),
            group("Training", [fields[n] for n in ("num_updates", "bound_particles", "seed")]),
        ]
        layout = {"flex_flow": "row wrap", "width": "100%", "padding": "4px 0 4px 14px"}
        super().__init__(groups, layout=layout)
        self._show_what_matters()
        for name, field in fields.items():
            field.observe(lambda change, name=name: self._note({name: change["new"]}), "value")
        for box in self.rivals.values():
            box.observe(lambda _: self._note({"rivals": self._ticked()}), "value")

    def set(self, **values: Any) -> None:
        """Move controls from code, as a hand would."""
        for name in values:
            check_one_of("the control", name, [*self.fields, "rivals"])
        self._show(_follow(self.settings, values))

    def _note(self, values: dict[str, Any]) -> None:
        if not self._many:
            self._show(_follow(self.settings, values))

    def _show(self, settings: TrainSettings) -> None:
        """Put every control where the settings say, and tell of them."""
        before, self.settings, self._many = self.settings, settings, True
        try:
            forms = PROBLEMS[settings.problem].forms
            if self.fields["form"].options != forms:
                self.fields["form"].options = forms
            for name, field in self.fields.items():
                value = getattr(settings, name)
                if isinstance(field, ipw.SelectionSlider) and value not in field.options:
                    field.options = sorted({*field.options, value})
                field.value = value
            for name, box in self.rivals.items():
                box.value = name in settings.methods
        finally:
            self._many = False
        self._show_what_matters()
        if settings != before:
            self._changed(settings)

    def _ticked(self) -> tuple[str, ...]:
        now = self.settings.method
        return tuple(name for name, box in self.rivals.items() if box.value and name != now)

    def _show_what_matters(self) -> None:
        """The chosen method always takes part in its race."""
        for name, box in self.rivals.items():
            box.disabled = name == self.settings.method
            if box.disabled:
                self._many, was = True, self._many
                box.value = True
                self._many = was


def _follow(settings: TrainSettings, values: dict[str, Any]) -> TrainSettings:
    """Settings after a change; what no longer fits goes back to its usual value."""
    asked = asdict(settings) | values
    if asked["form"] not in PROBLEMS[asked["problem"]].forms:
        asked["form"] = ""
    moved = asked["form"] != settings.form
    if moved and "learning_rate" not in values:
        asked["learning_rate"] = 0.0
    if "method" in values and "rivals" not in values:
        asked["rivals"] = tuple(name for name in settings.rivals if name != values["method"])
    return replace(settings, **asked)


def _task_fields(now: TrainSettings) -> dict[str, Any]:
    return {
        "problem": dress(
            ipw.Dropdown,
            "problem",
            "Which texts the twist is to lead to",
            options=list(PROBLEMS),
            value=now.problem,
        ),
        "method": dress(
            ipw.Dropdown,
            "method",
            "How the twist is learned; tick others below to race them",
            options=[(METHOD_NAMES.get(name, name), name) for name in METHODS],
            value=now.method,
        ),
        "form": dress(
            ipw.Dropdown,
            "form",
            "What computes log psi from the text so far",
            options=PROBLEMS[now.problem].forms,
            value=now.form,
        ),
        "learning_rate": dress(
            ipw.FloatLogSlider,
            "learning rate",
            "Of Adam at the start; it falls as training goes on. Usual: "
            + ", ".join(f"{n} {f.learning_rate:g}" for n, f in FORMS.items()),
            value=now.learning_rate,
            base=10,
            min=math.log10(LEAST_RATE),
            max=math.log10(MOST_RATE),
            step=0.05,
            readout_format=".1e",
            continuous_update=False,
        ),
    }


def _training_fields(now: TrainSettings) -> dict[str, Any]:
    return {
        "batch_size": dress(
            ipw.SelectionSlider,
            "batch",
            "Texts drawn for each update, and positives read",
            options=sorted({*BATCHES, now.batch_size}),
            value=now.batch_size,
        ),
        "num_updates": dress(
            ipw.SelectionSlider,
            "updates",
            "That one press of Start takes, with each method",
            options=sorted({*UPDATES, now.num_updates}),
            value=now.num_updates,
        ),
        "bound_particles": dress(
            ipw.SelectionSlider,
            "bounds' K",
            "Particles of the bounds on log Z; with 1 their gap is KL(q||σ) + KL(σ||q)",
            options=sorted({*SIZES, now.bound_particles}),
            value=now.bound_particles,
        ),
        "seed": dress(
            ipw.BoundedIntText,
            "seed",
            "Equal seeds give equal trainings",
            value=now.seed,
            max=MOST_SEED,
        ),
    }


WAIT_SECONDS = 0.1
_STATES = {"waiting": "idle", "cancelled": "stopped"}
_WORDS = {
    "problem": "problem", "method": "method", "rivals": "race", "form": "form",
    "learning_rate": "learning rate", "batch_size": "batch", "bound_particles": "bounds' K",
    "seed": "seed",
}  # fmt: skip

_SESSIONS: WeakSet[TrainSession] = WeakSet()


class TrainSession(ipw.VBox):
    """Watch a twist being learned: choose, press Start, pause, go on, race methods, save.

    Shown as the last line of a cell. Training runs in a background thread, so the kernel stays
    free; ``twist``, ``target`` and ``trainers`` are at hand in the next cell.

    Args:
        problem: a name in the menu of problems.
        **settings: where the other controls start, see ``TrainSettings``.
    """

    def __init__(self, problem: str = "1-star reviews", **settings: Any) -> None:
        self.view = TrainView()
        self.runner = Runner(self._publish, rest=0.0)
        self.lesson: Lesson | None = None
        self._shown: Any = None
        self._note = self._refusal = ""
        self.controls = TrainControls(TrainSettings(problem=problem, **settings), self._moved)
        super().__init__([self.controls, self.view], layout={"width": "100%"})
        self.add_class("tsmc-watch")
        self.view.observe(self._run_action, "ask")
        self._show_status(Progress("waiting"))
        self._stop_others()
        _SESSIONS.add(self)

    @property
    def settings(self) -> TrainSettings:
        """What the controls say."""
        return self.controls.settings

    @property
    def target(self) -> Target | None:
        """The target of the training on show."""
        return None if self.lesson is None else self.lesson.target

    @property
    def trainers(self) -> dict[str, TwistTrainer]:
        """The trainer of each method, once the training has begun."""
        racers = [] if self.lesson is None else self.lesson.racers
        return {racer.method: racer.trainer for racer in racers}

    @property
    def bounds(self) -> dict[str, list[tuple[int, LogZBounds]]]:
        """Of each method, bounds on log Z after so many updates."""
        racers = [] if self.lesson is None else self.lesson.racers
        return {racer.method: list(racer.bounds) for racer in racers}

    @property
    def twist(self) -> TrainableModule | None:
        """The twist of the first method, as it stands."""
        trainers = list(self.trainers.values())
        return trainers[0].twist if trainers else None

    @property
    def stale(self) -> str:
        """Which controls were moved away from the training on show; empty for none."""
        if self.lesson is None:
            return ""
        made, now = self.lesson.settings, self.settings
        moved = [word for name, word in _WORDS.items() if getattr(made, name) != getattr(now, name)]
        return ", ".join(moved)

    def set(self, **settings: Any) -> None:
        """Move controls from code: ``session.set(method="rl", seed=1)``."""
        self.controls.set(**settings)

    def start(self) -> None:
        """Begin, go on after a stop or a pause, or add updates to a training that has ended.

        Where controls were moved away from the training on show, a new one begins.
        """
        lesson = self.lesson
        if lesson is None or self.stale:
            self._begin(Lesson(self.settings))
        elif self.runner.progress.state in ("running", "paused"):
            self.runner.release()
        else:
            if lesson.done:
                lesson.goal += self.settings.num_updates
            self._begin(lesson)

    def pause(self) -> None:
        """Wait after the update in progress."""
        self.runner.hold()

    def stop(self) -> None:
        """End after the update in progress; all that was learned stays, and Start goes on."""
        self.runner.cancel()

    def restart(self) -> None:
        """Throw away what was learned and begin anew with what the controls say."""
        self._begin(Lesson(self.settings))

    def undo(self) -> None:
        """Put the controls back to the training on show."""
        if self.lesson is not None:
            made = self.lesson.settings
            fields = [*self.controls.fields, "rivals"]
            self.controls.set(**{name: getattr(made, name) for name in fields})

    def train(self, updates: int, timeout: float | int | None = None) -> bool:
        """Train until each method has had this many updates, and wait for it.

        Args:
            updates: counted from the beginning of the training on show.
            timeout: seconds to wait at most; None waits as long as it takes.

        Returns:
            Whether it got there; False where the time was up, or someone stopped it.
        """
        check_integer("updates", updates)
        if self.lesson is None or self.stale:
            self._begin(Lesson(replace(self.settings, num_updates=updates)))
        else:
            self.lesson.goal = max(self.lesson.goal, updates)
            if not self.lesson.done:
                self.start()
        return self.wait(timeout) and self.lesson.updates >= updates

    def wait(self, timeout: float | int | None = None) -> bool:
        """Wait until the training has ended or is paused; False if that takes too long."""
        end = None if timeout is None else time.monotonic() + timeout
        # In short turns, so that an interrupt of the kernel is heard.
        while not self.runner.wait(WAIT_SECONDS):
            if end is not None and time.monotonic() > end:
                return False
        if self.runner.progress.error is not None:
            raise self.runner.progress.error
        return True

    def save(self, folder: str | Path | None = None) -> Path:
        """Save the twist into a folder; after a race, each into a folder of its own inside.

        Args:
            folder: None takes what stands in the view.
        """
        path = Path(folder or self.view.folder)
        trainers = self.trainers
        if not trainers:
            raise ValueError("There is no twist to save yet: press Start first.")

        def write() -> None:
            for method, trainer in trainers.items():
                place = path if len(trainers) == 1 else path / method
                history = [
                    {"number": u.number, "losses": u.losses, "ess": u.ess, "log_z": u.log_z}
                    for u in trainer.history
                ]
                save_twist(trainer.twist, place, target=self.target, history=history)

        self.runner.read(write)
        self._note = f"saved to {path}"
        self._show_status(self.runner.progress)
        return path

    def close(self) -> None:
        """End the training and take the widgets from the page."""
        self.runner.close()
        self.view.close()
        self.controls.close()
        super().close()

    def _stop_others(self) -> None:
        """One training at a time: a cell that is run again leaves its old session behind."""
        for session in _SESSIONS:
            if session is not self:
                session.stop()

    def _begin(self, lesson: Lesson) -> None:
        self._stop_others()
        self.lesson, self._note, self._refusal = lesson, "", ""
        self.view.status = {"state": "running", "text": "starting"}

        def prepare() -> Lesson:
            leave_a_core()
            return lesson

        self.runner.submit(prepare)

    def _moved(self, settings: TrainSettings) -> None:
        """A control was moved: what is on show no longer is what was asked for."""
        if self.stale:
            self.runner.cancel()
        self._show_status(self.runner.progress)

    def _run_action(self, change: Any) -> None:
        """Do what was pressed in the view, and say why where that can not be."""
        acts: dict[str, Callable[[], Any]] = {
            "start": self.start, "pause": self.pause, "stop": self.stop,
            "restart": self.restart, "undo": self.undo, "save": self.save,
        }  # fmt: skip
        self._refusal = ""
        self._refusal = run_action(change["new"], acts)
        if self._refusal:
            self._show_status(self.runner.progress)

    def _publish(self, progress: Progress) -> None:
        """Show how the training stands; called from the thread."""
        with showing(self.view, "training"):
            self._show(progress)

    def _show(self, progress: Progress) -> None:
        lesson = self.lesson
        if lesson is not None and progress.trace is not None:
            measured = (
                id(lesson),
                lesson.target is None,
                sum(len(r.bounds) for r in lesson.racers),
            )
            with self.view.hold_sync():
                self.view.header = encode_header(lesson)
                self.view.curves = encode_curves(lesson)
                if measured != self._shown:
                    self._shown = measured
                    self.view.looks = encode_looks(lesson)
        self._show_status(progress)

    def _show_status(self, progress: Progress) -> None:
        self.view.status = {
            "state": _STATES.get(progress.state, progress.state),
            "text": "" if self.lesson is None else describe(self.lesson, progress),
            "error": self._refusal or describe_error(progress),
            "stale": self.stale,
            "note": self._note,
        }


def describe(lesson: Lesson, progress: Progress) -> str:
    """The progress line."""
    if not lesson.racers:
        return lesson.doing
    first = lesson.racers[0].trainer
    parts = [f"update {lesson.updates} of {lesson.goal}"]
    if first.done:
        parts.append(f"{speed(lesson.racers):.1f} updates/s")
    if lesson.doing.startswith("measuring") and progress.state == "running":
        parts.append(lesson.doing)
    source = positives_of(first)
    parts.append("reads no positives" if source is None else f"positives: {source}")
    parts.append(f"{sum(racer.trainer.skipped for racer in lesson.racers)} skipped")
    return " · ".join(parts)


def describe_error(progress: Progress) -> str:
    """What stopped the training, in words."""
    if progress.error is None:
        return ""
    return f"{message_of(progress.error)}\nWhat was learned stays."
