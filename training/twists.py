"""Train the twists that ship: ``python -m training.twists [problem ...]``.

Each is a small head, saved in half precision with the divergences of its twist-induced proposal q
from sigma before and after training, on held-out exact samples. "Before" is psi = 1, where q = p0
and where each but one starts: the rare indicator starts from the twist of a softer target, whose
samples reach it. A head cannot represent the optimal twist. CTL alone fits the marginals pi_t; with
DPG added to it q is much nearer to sigma, and SMC no worse.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tsmc_widgets.errors import check_one_of
from tsmc_widgets.evaluation.divergences import Divergences, kl_divergences
from tsmc_widgets.evaluation.estimates import LogZ
from tsmc_widgets.learning.trainer import TwistTrainer
from tsmc_widgets.smc.proposals import TwistInduced
from tsmc_widgets.targets.exact_samples import ExactDraws
from tsmc_widgets.targets.problems import load_problem
from tsmc_widgets.targets.target import Target
from tsmc_widgets.twists.forms import make_twist
from tsmc_widgets.twists.storage import SHIPPED_FOLDER, load_twist, save_twist

log = logging.getLogger(__name__)

REMEMBERED = 50
MEASURING_SEED = 10**6


@dataclass(frozen=True, slots=True)
class Training:
    """How the twist of a problem is trained.

    Attributes:
        method: a name of ``METHODS``.
        updates: how many.
        held_out: exact samples that measure and are not learned from.
        start: the shipped twist that it begins with; "" for psi = 1.
        learning_rate: None for the form's usual one.
        batch_size: sequences of an update.
        drawn: sequences of q that measure KL(q||sigma), whose tail is heavy.
        seed: of everything.
    """

    method: str = "ctl+dpg"
    updates: int = 600
    held_out: int = 500
    start: str = ""
    learning_rate: float | None = None
    batch_size: int = 100
    drawn: int = 4000
    seed: int = 1


ON_SMOLLM2 = Training(method="rl", updates=40, held_out=150, batch_size=64, drawn=1000)
TRAININGS = {
    "one-star-review": Training(),
    "five-star-review": Training(),
    "five-star-review-beta-8": Training(held_out=300),
    "hostile-story": Training(held_out=300),
    "hostile-story-beta-10": Training(held_out=150),
    "hostile-story-threshold": Training(
        updates=50, held_out=200, start="hostile-story-beta-10", learning_rate=3e-4, seed=2
    ),
    "star-review-conditional": Training(),
    "infilling-15-10": Training(method="ctl"),
    "infilling-2-1": Training(method="ctl"),
    "happy-review": ON_SMOLLM2,
    "unhappy-story": replace(ON_SMOLLM2, held_out=100),
}


def ship(
    name: str, *, folder: Path = SHIPPED_FOLDER, training: Training | None = None
) -> dict[str, Any]:
    """Train the twist of a problem, save it, read it back and measure what was read.

    Returns:
        What was measured, as it stands in the last entry of the twist's history.
    """
    training = TRAININGS[name] if training is None else training
    problem = load_problem(name)
    target = problem.target()
    exact, log_z = _samples(target, training)
    twist = make_twist(problem.form, target, seed=training.seed)

    def measure(twist: Any) -> Divergences:
        return kl_divergences(
            target,
            proposal=TwistInduced(twist),
            num_samples=training.drawn,
            exact_samples=exact,
            log_z=log_z,
            seed=MEASURING_SEED,
        )

    before = measure(twist)
    if training.start:
        twist = load_twist(training.start, target.lm)
    trainer = TwistTrainer(
        target,
        twist,
        method=training.method,
        learning_rate=training.learning_rate,
        batch_size=training.batch_size,
        seed=training.seed,
    )
    for update in trainer.updates(training.updates):
        if update.number % 10 == 0:
            log.info("%s: update %d, ESS %.1f", name, update.number, update.ess)
    history = _history(trainer)
    place = folder / name
    save_twist(trainer.twist, place, target=target, history=history, dtype=torch.float16)
    shipped = load_twist(place, target.lm)
    after = measure(shipped)
    measured = {
        "measured": (
            "in nats, with standard errors, on exact samples that were held out and "
            "draws from q that were not learned from"
        ),
        "updates": trainer.done,
        "seconds": sum(update.seconds for update in trainer.history),
        "log_z": None if log_z is None else [log_z.value, log_z.standard_error],
        "before": _numbers(before),
        "after": _numbers(after),
    }
    save_twist(shipped, place, history=[*history, measured], dtype=torch.float16)
    return measured


def _samples(target: Target, training: Training) -> tuple[Any, LogZ | None]:
    """Held-out exact samples, and log Z with its standard error."""
    if target.is_conditional:
        found = target.exact_samples(training.held_out, seed=MEASURING_SEED, progress=False)
        return found, None
    draws = ExactDraws(target, training.seed, block=1024)
    while len(draws) < training.held_out:
        draws.extend()
    value, error = draws.log_z
    source = f"mean of phi over {draws.proposed:,} draws from p0"
    return draws.tokens[: training.held_out], LogZ(value, source, error, draws.proposed - 1)


def _numbers(found: Divergences) -> dict[str, list[float]]:
    kls = {"KL(q||sigma)": found.q_sigma, "KL(sigma||q)": found.sigma_q, "sum": found.symmetrised}
    return {name: [kl.value, kl.standard_error] for name, kl in kls.items() if kl is not None}


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
        measured = ship(name)
        log.info("%s: %s -> %s nats", name, measured["before"], measured["after"])


if __name__ == "__main__":
    main()
