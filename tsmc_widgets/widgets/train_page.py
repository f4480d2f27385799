"""A live training of a twist: controls above, curves below, the computation in the background."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import ipywidgets as ipw

from tsmc_widgets.errors import check_integer, shortened
from tsmc_widgets.evaluation.bounds import LogZBounds, MeanOverRuns
from tsmc_widgets.files import page_path
from tsmc_widgets.learning.trainer import TwistTrainer, weighted_sum
from tsmc_widgets.models.protocol import readable
from tsmc_widgets.targets.target import Target
from tsmc_widgets.twists.storage import BEGINS, CARD, WEIGHTS, save_twist
from tsmc_widgets.twists.trainable import TrainableModule
from tsmc_widgets.widgets.controls import SettingsBox, dress, group, menu, seed_field, sizes, table
from tsmc_widgets.widgets.front_end import TrainView
from tsmc_widgets.widgets.record import finite
from tsmc_widgets.widgets.session import LivePage, Progress, error_text
from tsmc_widgets.widgets.training_run import (
    EVERY,
    FORMS,
    LEAST_RATE,
    METHOD_LABELS,
    METHODS,
    MOST_RATE,
    NUM_RUNS,
    NUM_TEXTS,
    PROBLEM_LABELS,
    MethodRun,
    TrainingRun,
    TrainSettings,
    forms_of,
    problem_label,
    problem_name,
    speed,
    usual_rate,
)

BATCHES = (10, 20, 50, 100, 200, 500)
UPDATES = (20, 40, 60, 120, 240, 500, 1000, 2000)
SIZES = (1, 2, 4, 8, 16, 32)


class TrainControls(SettingsBox):
    """Controls whose values are a ``TrainSettings``.

    Args:
        settings: what they show at first.
        changed: called with the new settings after each change.
    """

    def __init__(self, settings: TrainSettings, changed: Callable[[TrainSettings], None]) -> None:
        fields = _fields(settings)
        self.rivals = {
            name: ipw.Checkbox(
                name in settings.rivals,
                description=name.upper().replace("+", " + "),
                indent=False,
                layout={"width": "104px" if "+" in name else "82px", "margin": "0"},
            )
            for name in METHODS
        }
        label = {"width": "92px", "justify_content": "flex-end", "margin": "0 8px 0 0"}
        boxes = ipw.HBox(list(self.rivals.values()), layout={"flex_flow": "row wrap", "flex": "1"})
        race = ipw.HBox([ipw.Label("race", layout=label), boxes], layout={"margin": "1px 0"})
        groups = [
            group("What to learn", [fields["problem"], fields["method"], race], grow=1.5),
            group("Twist ψ", [fields[name] for name in ("form", "learning_rate", "batch_size")]),
            group("Training", [fields[n] for n in ("num_updates", "bound_particles", "seed")]),
        ]
        super().__init__(settings, fields, groups, changed)
        for box in self.rivals.values():
            box.observe(lambda _: self._note({"rivals": self._ticked()}), "value")

    def names(self) -> list[str]:
        """The fields, and the methods that are raced."""
        return [*self.fields, "rivals"]

    def _follow(self, values: dict[str, Any]) -> TrainSettings:
        """Settings after a change; what no longer fits goes back to its usual value."""
        settings = self.settings
        asked = asdict(settings) | values
        asked["problem"] = problem_name(asked["problem"])
        if asked["form"] not in forms_of(asked["problem"]):
            asked["form"] = ""
        if asked["form"] != settings.form and "learning_rate" not in values:
            asked["learning_rate"] = 0.0
        if "method" in values and "rivals" not in values:
            asked["rivals"] = tuple(name for name in settings.rivals if name != values["method"])
        return replace(settings, **asked)

    def _put(self, settings: TrainSettings) -> None:
        forms = forms_of(settings.problem)
        if self.fields["form"].options != forms:
            self.fields["form"].options = forms
        super()._put(settings)
        for name, box in self.rivals.items():
            box.value = name in settings.methods

    def _ticked(self) -> tuple[str, ...]:
        now = self.settings.method
        return tuple(name for name, box in self.rivals.items() if box.value and name != now)

    def _show_what_matters(self) -> None:
        """The chosen method always takes part in its race."""
        for name, box in self.rivals.items():
            box.disabled = name == self.settings.method
            box.value = box.value or box.disabled


def _fields(now: TrainSettings) -> dict[str, Any]:
    usual = ", ".join(f"{form} {usual_rate(form).at(0):g}" for form in FORMS)
    hints = {
        "problem": "Which texts the twist is to lead to",
        "method": "How the twist is learned; tick others below to race them",
        "form": "What computes log psi from the text so far",
        "rate": f"Of Adam at the start; it falls as training goes on. Usual: {usual}",
        "batch": "Texts drawn for each update, and positives read",
        "updates": "That one press of Start takes, with each method",
        "size": "Particles of the bounds on log Z; with 1 their gap is KL(q||σ) + KL(σ||q)",
    }
    problems = [(label, name) for name, label in PROBLEM_LABELS.items()]
    if not isinstance(now.problem, str):
        problems.append((problem_label(now.problem), now.problem))
    methods = [(label, name) for name, label in METHOD_LABELS.items()]
    return {
        "problem": menu("problem", hints["problem"], now.problem, problems),
        "method": menu("method", hints["method"], now.method, methods),
        "form": menu("form", hints["form"], now.form, forms_of(now.problem)),
        "learning_rate": dress(
            ipw.FloatLogSlider,
            "learning rate",
            hints["rate"],
            value=now.learning_rate,
            min=math.log10(LEAST_RATE),
            max=math.log10(MOST_RATE),
            step=0.05,
            readout_format=".1e",
            continuous_update=False,
        ),
        "batch_size": sizes("batch", hints["batch"], now.batch_size, BATCHES),
        "num_updates": sizes("updates", hints["updates"], now.num_updates, UPDATES),
        "bound_particles": sizes("bounds' K", hints["size"], now.bound_particles, SIZES),
        "seed": seed_field(now.seed, "trainings"),
    }


_STATES = {"waiting": "idle", "cancelled": "stopped"}
_WORDS = {
    "problem": "problem", "method": "method", "rivals": "race", "form": "form",
    "learning_rate": "learning rate", "batch_size": "batch", "bound_particles": "bounds' K",
    "seed": "seed",
}  # fmt: skip


class TrainSession(LivePage):
    """Watch a twist being learned: choose, press Start, pause, go on, race methods, save.

    Shown as the last line of a cell. Training runs in a background thread, so the kernel stays
    free; ``twist``, ``target`` and ``trainers`` are at hand in the next cell.

    Args:
        problem: a name in the menu of problems, or a description as for ``RunSpec``, such as a
            workbench's ``spec.problem``.
        **settings: where the other controls start, see ``TrainSettings``.
    """

    _subject = "training"
    _raises = True

    def __init__(self, problem: Any = "one-star-review", **settings: Any) -> None:
        start = TrainSettings(problem=problem, **settings)
        super().__init__(TrainView())
        self.training: TrainingRun | None = None
        self._shown: Any = None
        self._note = ""
        self.controls = TrainControls(start, self._moved)
        self.children = [self.controls, self.view]
        self.view.observe(self._press, "ask")
        self._show_status(self.live.progress)
        self._stop_others()

    @property
    def settings(self) -> TrainSettings:
        """What the controls say."""
        return self.controls.settings

    @property
    def target(self) -> Target | None:
        """The target of the training on show."""
        return None if self.training is None else self.training.target

    @property
    def trainers(self) -> dict[str, TwistTrainer]:
        """The trainer of each method, once the training has begun."""
        runs = [] if self.training is None else self.training.runs
        return {run.method: run.trainer for run in runs}

    @property
    def bounds(self) -> dict[str, list[tuple[int, LogZBounds]]]:
        """Of each method, bounds on log Z after so many updates."""
        runs = [] if self.training is None else self.training.runs
        return {run.method: list(run.bounds) for run in runs}

    @property
    def twist(self) -> TrainableModule | None:
        """The twist of the first method, as it stands."""
        trainers = list(self.trainers.values())
        return trainers[0].twist if trainers else None

    @property
    def stale(self) -> str:
        """Which controls were moved away from the training on show; empty for none."""
        if self.training is None:
            return ""
        made, now = self.training.settings, self.settings
        moved = [word for name, word in _WORDS.items() if getattr(made, name) != getattr(now, name)]
        return ", ".join(moved)

    @property
    def _actions(self) -> dict[str, Callable[[], Any]]:
        """What can be pressed in the view."""
        return {
            "start": self.start, "pause": self.pause, "stop": self.stop,
            "restart": self.restart, "undo": self.undo, "save": self.save,
        }  # fmt: skip

    def set(self, **settings: Any) -> None:
        """Move controls from code: ``session.set(method="rl", seed=1)``."""
        self.controls.set(**settings)

    def start(self) -> None:
        """Begin, go on after a stop or a pause, or add updates to a training that has ended.

        Where controls were moved away from the training on show, a new one begins.
        """
        training = self.training
        if training is None or self.stale:
            self.restart()
        elif self.live.progress.state in ("running", "paused"):
            self.live.resume()
        else:
            if training.done:
                training.goal += self.settings.num_updates
            self._train(training)

    def pause(self) -> None:
        """Wait after the update in progress."""
        self.live.pause()

    def stop(self) -> None:
        """End after the update in progress; all that was learned stays, and Start goes on."""
        self.live.cancel()

    def restart(self) -> None:
        """Discard what was learned and begin again with what the controls say."""
        self._train(TrainingRun(self.settings))

    def undo(self) -> None:
        """Put the controls back to the training on show."""
        if self.training is not None:
            made = self.training.settings
            self.controls.set(**{name: getattr(made, name) for name in self.controls.names()})

    def train(self, updates: int, timeout: float | int | None = None) -> bool:
        """Train until each method has had this many updates, and wait for it.

        Args:
            updates: counted from the beginning of the training on show.
            timeout: seconds to wait at most; None waits as long as it takes.

        Returns:
            Whether it got there; False where the time was up, or someone stopped it.
        """
        check_integer("updates", updates)
        if self.training is None or self.stale:
            self._train(TrainingRun(replace(self.settings, num_updates=updates)))
        else:
            self.training.goal = max(self.training.goal, updates)
            if not self.training.done:
                self.start()
        return self.wait(timeout) and self.training.updates >= updates

    def save(self, folder: str | Path | None = None) -> Path:
        """Save the twist into a folder; after a race, each into a folder of its own inside.

        Args:
            folder: None takes what stands in the view.
        """
        trainers = self.trainers
        if not trainers:
            raise ValueError("There is no twist to save yet: press Start first.")
        path = Path(folder or self.view.folder)
        places = {m: path if len(trainers) == 1 else path / m for m in trainers}
        for place in () if folder else places.values():
            page_path(place / CARD, begins=BEGINS)
            if not (place / CARD).exists():
                page_path(place / WEIGHTS, begins=BEGINS)

        def write() -> None:
            for method, trainer in trainers.items():
                history = [
                    {"number": u.number, "losses": u.losses, "ess": u.ess, "log_z": u.log_z}
                    for u in trainer.history
                ]
                save_twist(trainer.twist, places[method], target=self.target, history=history)

        self.live.read(write)
        self._note = f"saved to {path}"
        self._show_status(self.live.progress)
        return path

    def still(self) -> str:
        """The bounds on log Z that each method has reached."""
        rows = [
            (method, str(every[-1][0]), str(every[-1][1]))
            for method, every in self.bounds.items()
            if every
        ]
        what = f"{problem_label(self.settings.problem)}: {self.view.status.get('text', '')}"
        return f"<p>{html.escape(what)}</p>" + table(("method", "updates", "log Z"), rows)

    def _train(self, training: TrainingRun) -> None:
        self._stop_others()
        self.training, self._note, self._refusal = training, "", ""
        self._submit(lambda: training)

    def _moved(self, settings: TrainSettings) -> None:
        """A control was moved: what is on show no longer is what was asked for."""
        if self.stale:
            self.live.cancel()
        self._show_status(self.live.progress)

    def _show(self, progress: Progress) -> None:
        training = self.training
        if training is not None and progress.trace is not None:
            num_bounds = sum(len(run.bounds) for run in training.runs)
            measured = (id(training), training.target is None, num_bounds)
            with self.view.hold_sync():
                self.view.header = encode_header(training)
                self.view.curves = encode_curves(training)
                if measured != self._shown:
                    self._shown = measured
                    self.view.looks = encode_looks(training)
        self._show_status(progress)

    def _show_status(self, progress: Progress) -> None:
        self.view.status = {
            "state": _STATES.get(progress.state, progress.state),
            "text": "" if self.training is None else describe(self.training, progress),
            "error": self._refusal or error_text(progress.error, "What was learned stays."),
            "stale": self.stale,
            "note": self._note,
        }


def describe(training: TrainingRun, progress: Progress) -> str:
    """The progress line."""
    if not training.runs:
        return training.doing
    first = training.runs[0].trainer
    parts = [f"update {training.updates} of {training.goal}"]
    if first.done:
        parts.append(f"{speed(training.runs):.1f} updates/s")
    if training.doing.startswith("measuring") and progress.state == "running":
        parts.append(training.doing)
    source = None if first.positives is None else first.positives.describe()
    if first.history:
        source = first.history[-1].positives
    parts.append("reads no positives" if source is None else f"positives: {source}")
    parts.append(f"{sum(run.trainer.skipped for run in training.runs)} skipped")
    parts += [run.trainer.warning for run in training.runs if run.trainer.warning]
    return " · ".join(parts)


MOST_POINTS = 400
"""Points of a curve that are sent; longer ones are averaged in pieces."""
_PREFIX = 60
"""Letters of a prefix that are shown."""


def thin(points: Sequence[tuple[int, float | int]]) -> list[list[float | None]]:
    """Points [x, y] of a curve, means of pieces where there are too many."""
    size = math.ceil(len(points) / MOST_POINTS) or 1
    pieces = [points[i : i + size] for i in range(0, len(points), size)]
    return [
        [finite(sum(x for x, _ in piece) / len(piece)),
         finite(sum(y for _, y in piece) / len(piece))]
        for piece in pieces
    ]  # fmt: skip


def encode_header(training: TrainingRun) -> dict[str, Any]:
    """What does not change while a training goes on."""
    settings, target = training.settings, training.target
    header = {
        "problem": problem_label(settings.problem),
        "form": settings.form,
        "batch_size": settings.batch_size,
        "learning_rate": settings.learning_rate,
        "seed": settings.seed,
        "bound_particles": settings.bound_particles,
        "exact": training.exact,
        "held_out": 0 if training.held_out is None else len(training.held_out),
        "num_runs": NUM_RUNS,
        "num_texts": NUM_TEXTS,
        "every": EVERY,
    }
    if target is not None:
        header["prompt"] = readable(target.lm, target.prompt_tokens.unsqueeze(0))[0]
        header["target"] = target.potential.describe()
        header["num_steps"] = target.num_steps
    return header


def encode_curves(training: TrainingRun) -> dict[str, Any]:
    """All curves so far."""
    curves: dict[str, Any] = {
        "goal": training.goal,
        "racers": [_curves(run) for run in training.runs],
    }
    if training.log_z is not None:
        value, error = training.log_z
        curves["log_z"] = [finite(value), finite(error)]
    return curves


def encode_looks(training: TrainingRun) -> dict[str, Any]:
    """Comparison with the optimal twist, and texts, of the last evaluations."""
    if training.prefixes is None:
        return {}
    return {
        "note": training.prefixes.note,
        "before": None if training.before is None else _samples(training.before),
        "racers": [_looks(run) for run in training.runs],
    }


def _curves(run: MethodRun) -> dict[str, Any]:
    trainer = run.trainer
    learned = [update for update in trainer.history if update.losses]
    losses = [(each.number, weighted_sum(each.losses, trainer.weights)) for each in learned]
    return {
        "method": run.method,
        "done": trainer.done,
        "skipped": trainer.skipped,
        "proposal_only": run.proposal_only,
        "from_base": run.draws_from_base,
        "loss": thin(losses),
        "ess": thin(run.ess),
        "bounds": [_bounds(done, bounds) for done, bounds in run.bounds],
    }


def _bounds(done: int, bounds: LogZBounds) -> list[Any]:
    error = bounds.gap_standard_error
    return [
        done, *_mean(bounds.lower), *_mean(bounds.upper), finite(bounds.gap), finite(error)
    ]  # fmt: skip


def _mean(mean: MeanOverRuns) -> list[float | None]:
    """Mean and both ends of its 95 % interval."""
    low, high = mean.interval()
    return [finite(mean.mean), finite(low), finite(high)]


def _looks(run: MethodRun) -> dict[str, Any]:
    looks: dict[str, Any] = {"method": run.method}
    if run.scatter is not None:
        scatter = run.scatter
        columns = ("step", "optimal", "error", "learned")
        rows = zip(*(scatter[name].tolist() for name in columns), strict=True)
        texts = [shortened(text, _PREFIX) for text in scatter["text"]]
        looks["points"] = [
            [*(finite(value, 4) for value in row), text]
            for row, text in zip(rows, texts, strict=True)
        ]
        looks["correlation"] = finite(scatter["correlation"])
        looks["interval"] = [finite(end) for end in scatter["interval"]]
    if run.samples is not None:
        looks["samples"] = _samples(run.samples)
        looks["at"] = run.bounds[-1][0] if run.bounds else 0
    return looks


def _samples(samples: dict[str, Any]) -> dict[str, Any]:
    mean = samples["log_mean_phi"]
    return {
        "texts": [[text, finite(value, 4)] for text, value in samples["texts"]],
        "log_mean_phi": [finite(mean.value), finite(mean.standard_error)],
    }
