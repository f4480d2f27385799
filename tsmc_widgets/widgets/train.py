"""A live training of a twist: controls above, curves below, the computation in the background."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import WeakSet

import ipywidgets as ipw

from tsmc_widgets.errors import check_integer, message_of
from tsmc_widgets.evaluation.bounds import LogZBounds
from tsmc_widgets.learning.trainer import TwistTrainer
from tsmc_widgets.targets.target import Target
from tsmc_widgets.twists.storage import save_twist
from tsmc_widgets.twists.trainable import TrainableModule
from tsmc_widgets.widgets.front_end import run_action, showing
from tsmc_widgets.widgets.lesson import Lesson, speed
from tsmc_widgets.widgets.live import leave_a_core
from tsmc_widgets.widgets.problems import TrainSettings
from tsmc_widgets.widgets.runner import Progress, Runner
from tsmc_widgets.widgets.train_controls import TrainControls
from tsmc_widgets.widgets.train_record import (
    encode_curves,
    encode_header,
    encode_looks,
    positives_of,
)
from tsmc_widgets.widgets.train_view import TrainView

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
