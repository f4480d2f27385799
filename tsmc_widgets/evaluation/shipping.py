"""Trains the twists that ship: ``python -m tsmc_widgets.evaluation.shipping [problem ...]``.

Each is a small head learned by CTL and saved in half precision, with bounds on log Z of one
particle before and after, on exact samples that the training has not seen. Their gap is
KL(q || sigma) + KL(sigma || q) of the twist-induced proposal.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tsmc_widgets.errors import check_one_of
from tsmc_widgets.evaluation.bounds import LogZBounds, log_z_bounds
from tsmc_widgets.learning.positives import GrowingPool
from tsmc_widgets.learning.trainer import TwistTrainer
from tsmc_widgets.smc.proposals import TwistInduced
from tsmc_widgets.targets.exact_draws import ExactDraws
from tsmc_widgets.targets.problems import load_problem
from tsmc_widgets.targets.target import Target
from tsmc_widgets.twists.forms import make_twist
from tsmc_widgets.twists.shipped import WEIGHTS
from tsmc_widgets.twists.storage import load_twist, save_twist

log = logging.getLogger(__name__)

HELD_OUT = 500
REMEMBERED = 50


@dataclass(frozen=True, slots=True)
class Training:
    """How the twist of a problem is trained.

    Attributes:
        form: a name in ``TWIST_FORMS``.
        updates: of CTL.
        batch_size: texts drawn for each, and exact samples read.
        pool: exact samples to learn from.
        seed: of everything.
    """

    form: str = "MLP head"
    updates: int = 600
    batch_size: int = 100
    pool: int = 4000
    seed: int = 1


TRAININGS = {
    "one-star-review": Training(),
    "five-star-review": Training(),
    "hostile-story": Training(),
    "hostile-story-beta-10": Training(pool=1000),
    "hostile-story-threshold": Training(pool=1000),
}


def ship(name: str, *, folder: Path = WEIGHTS, training: Training | None = None) -> dict[str, Any]:
    """Train the twist of a problem, save it, read it back and measure what was read.

    Returns:
        What was measured, as it stands in the last entry of the twist's history.
    """
    training = TRAININGS[name] if training is None else training
    target = load_problem(name).target()
    draws = ExactDraws(target, training.seed, block=4096)
    while len(draws) < HELD_OUT + training.pool:
        draws.extend()
    held_out = draws.tokens[:HELD_OUT]
    twist = make_twist(training.form, target, seed=training.seed)
    trainer = TwistTrainer(
        target,
        twist,
        batch_size=training.batch_size,
        positives=GrowingPool(draws, training.seed, held_out=HELD_OUT, size=training.pool),
        seed=training.seed,
    )
    before = _measure(target, twist, held_out)
    for update in trainer.updates(training.updates):
        if update.number % 50 == 0:
            log.info("%s: update %d, ESS %.1f", name, update.number, update.ess)
    history = _history(trainer)
    save_twist(trainer.twist, folder / name, target=target, history=history, dtype=torch.float16)
    after = _measure(target, load_twist(folder / name, target.lm), held_out)
    log_z, error = draws.log_z
    measured = {
        "measured": "means of log Z_hat, K = 1, in nats, with standard errors",
        "updates": trainer.done,
        "seconds": sum(update.seconds for update in trainer.history),
        "log_z": [log_z, error],
        "before": _numbers(before),
        "after": _numbers(after),
    }
    save_twist(
        load_twist(folder / name, target.lm), folder / name, history=[*history, measured],
        dtype=torch.float16,
    )  # fmt: skip
    log.info(
        "%s: gap %.2f ± %.2f -> %.2f ± %.2f nats (%d updates, %.0f s)", name,
        before.gap, before.gap_standard_error, after.gap, after.gap_standard_error,
        trainer.done, measured["seconds"],
    )  # fmt: skip
    return measured


def _measure(target: Target, twist: Any, held_out: torch.Tensor) -> LogZBounds:
    return log_z_bounds(
        target,
        proposal=TwistInduced(twist),
        num_particles=1,
        num_runs=len(held_out),
        exact_samples=held_out,
        rule="never",
        seed=10**6,
    )


def _numbers(bounds: LogZBounds) -> dict[str, list[float]]:
    sides = {"lower": bounds.lower, "upper": bounds.upper}
    numbers = {side: [mean.mean, mean.standard_error] for side, mean in sides.items()}
    return {**numbers, "gap": [bounds.gap, bounds.gap_standard_error]}


def _history(trainer: TwistTrainer) -> list[dict[str, Any]]:
    every = max(1, trainer.done // REMEMBERED)
    return [
        {"number": u.number, "losses": u.losses, "ess": u.ess, "log_z": u.log_z}
        for u in trainer.history
        if u.number % every == 0
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the twists named on the command line, or all of them."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("problems", nargs="*", metavar="problem", help=", ".join(TRAININGS))
    for name in parser.parse_args(arguments).problems or TRAININGS:
        check_one_of("problem", name, TRAININGS)
        ship(name)


if __name__ == "__main__":
    main()
