"""What the browser gets of a training: plain dictionaries of short numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tsmc_widgets.errors import shortened
from tsmc_widgets.evaluation.bounds import LogZBounds, MeanOverRuns
from tsmc_widgets.learning.trainer import weighted_sum
from tsmc_widgets.models.protocol import readable
from tsmc_widgets.widgets.record import finite
from tsmc_widgets.widgets.training_run import (
    EVERY,
    NUM_RUNS,
    NUM_TEXTS,
    MethodRun,
    TrainingRun,
    problem_label,
)

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
