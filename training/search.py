"""Find the learning rate and batch size of a training: successive halving on the bound gap."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from tsmc_widgets.errors import check_integer
from tsmc_widgets.evaluation.bounds import log_z_bounds, log_z_bounds_given
from tsmc_widgets.evaluation.estimates import MeanOverRuns, t_interval
from tsmc_widgets.learning.objectives import link_for, reads_positives, resolve_method
from tsmc_widgets.learning.positives import ReplayedPositives
from tsmc_widgets.learning.trainer import TwistTrainer
from tsmc_widgets.smc.proposals import TwistInduced
from tsmc_widgets.targets.target import Target
from tsmc_widgets.twists.forms import make_twist

# Far from the seeds of training and its positives.
HELD_OUT_SEED = 1_000_003


@dataclass(frozen=True, slots=True)
class Trial:
    """One setting after one round.

    Attributes:
        learning_rate: as for ``TwistTrainer``.
        batch_size: sequences for each update.
        round: from 1.
        updates: taken so far.
        seconds: that they took.
        gap: upper minus lower bound of one particle, KL(q || sigma) + KL(sigma || q), in nats; inf
            where the training diverged.
        interval: 95 % t interval of the gap.
        kept: whether it is in the next round.
    """

    learning_rate: Any
    batch_size: int
    round: int
    updates: int
    seconds: float
    gap: float
    interval: tuple[float, float]
    kept: bool


@dataclass(frozen=True, slots=True)
class SearchResult:
    """Every trial of a search, in the order of rounds and then of gaps."""

    method: str
    form: str
    start: MeanOverRuns
    trials: tuple[Trial, ...]

    @property
    def best(self) -> Trial:
        """The setting with the least gap of the last round."""
        last = max(trial.round for trial in self.trials)
        return min((t for t in self.trials if t.round == last), key=lambda trial: trial.gap)

    @property
    def call(self) -> str:
        """Python that trains with the best setting."""
        link = ', link="sigmoid"' if self.method == "fudge" else ""
        return (
            f'TwistTrainer(target, make_twist("{self.form}", target{link}), '
            f'method="{self.method}", learning_rate={self.best.learning_rate!r}, '
            f"batch_size={self.best.batch_size})"
        )

    def __str__(self) -> str:
        """The table, with the call to use below it."""
        low, high = self.start.interval()
        lines = [
            f"untrained: gap {self.start.mean:.3f} nats ({low:.3f} to {high:.3f})",
            f"{'round':>5}  {'rate':<28} {'batch':>5} {'updates':>7} {'seconds':>7}  gap (95 %)",
        ]
        for trial in self.trials:
            low, high = trial.interval
            mark = "kept" if trial.kept else ""
            lines.append(
                f"{trial.round:>5}  {trial.learning_rate!s:<28} {trial.batch_size:>5} "
                f"{trial.updates:>7} {trial.seconds:>7.1f}  "
                f"{trial.gap:.3f} ({low:.3f} to {high:.3f}) {mark}".rstrip()
            )
        return "\n".join([*lines, "", self.call])


@dataclass(slots=True)
class _Candidate:
    trainer: TwistTrainer
    learning_rate: Any
    gap: float = math.inf
    interval: tuple[float, float] = field(default=(math.nan, math.nan))

    def train(self, sequences: int) -> bool:
        """Train until so many sequences have been drawn; False where the training diverges."""
        wanted = max(1, sequences // self.trainer.batch_size) - self.trainer.done
        try:
            for _ in self.trainer.updates(wanted) if wanted > 0 else ():
                pass
        except FloatingPointError:
            return False
        return True

    def trial(self, number: int, kept: bool) -> Trial:
        """Its record after a round."""
        return Trial(
            learning_rate=self.learning_rate,
            batch_size=self.trainer.batch_size,
            round=number,
            updates=self.trainer.done,
            seconds=math.fsum(update.seconds for update in self.trainer.history),
            gap=self.gap,
            interval=self.interval,
            kept=kept,
        )


def search_settings(
    target: Target,
    *,
    method: str = "ctl",
    form: str = "MLP head",
    learning_rates: Sequence[Any],
    batch_sizes: Sequence[int] = (100,),
    first_sequences: int = 2000,
    num_held_out: int = 200,
    seed: int = 0,
    on_round: Callable[[int, int], object] = lambda number, left: None,
) -> SearchResult:
    """Search rates and batch sizes by successive halving: the better half trains twice as long.

    All settings draw equally many sequences in a round, start with the same replay where the method
    has one, and are measured on the same held-out samples with the same noise.

    Args:
        target: conditional or not, with exact samples.
        method: a name of ``METHODS``.
        form: a name of ``TWIST_FORMS``.
        learning_rates: as for ``TwistTrainer``: numbers, ``ConstantRate``, ``FallingRate`` or None.
        batch_sizes: sequences for each update.
        first_sequences: that each setting draws in the first round; each round has twice as many
            in all as the one before it.
        num_held_out: exact samples that the gap is measured on.
        seed: of training and noise.
        on_round: called with the number of a round and of the settings in it, before it.

    Raises:
        PotentialError: the target has no exact samples, so that no gap can be measured.
    """
    check_integer("first_sequences", first_sequences)
    check_integer("num_held_out", num_held_out, at_least=2)
    if not learning_rates or not batch_sizes:
        raise ValueError("give at least one learning rate and one batch size.")
    held_out = target.exact_samples(num_held_out, seed=HELD_OUT_SEED + seed, progress=False)
    candidates = list(_candidates(target, method, form, learning_rates, batch_sizes, seed))
    measure = _gaps(target, held_out, seed)
    start = MeanOverRuns.of(measure(make_twist(form, target)))
    trials: list[Trial] = []
    number = 0
    while True:
        number += 1
        on_round(number, len(candidates))
        for candidate in candidates:
            candidate.gap, candidate.interval = math.inf, (math.nan, math.nan)
            if candidate.train(first_sequences * 2 ** (number - 1)):
                found = MeanOverRuns.of(measure(candidate.trainer.twist))
                candidate.gap = found.mean
                candidate.interval = t_interval(found.mean, found.standard_error, num_held_out - 1)
        candidates.sort(key=lambda candidate: candidate.gap)
        kept = 0 if len(candidates) == 1 else math.ceil(len(candidates) / 2)
        trials += [each.trial(number, place < kept) for place, each in enumerate(candidates)]
        if not kept:
            return SearchResult(method, form, start, tuple(trials))
        candidates = candidates[:kept]


def _candidates(
    target: Target,
    method: str,
    form: str,
    learning_rates: Sequence[Any],
    batch_sizes: Sequence[int],
    seed: int,
) -> Iterator[_Candidate]:
    source: ReplayedPositives | None = None
    if reads_positives(resolve_method(method)) and not target.is_conditional:
        source = ReplayedPositives(target, seed)
    for rate in learning_rates:
        for size in batch_sizes:
            trainer = TwistTrainer(
                target,
                make_twist(form, target, link=link_for(method)),
                method=method,
                learning_rate=rate,
                batch_size=size,
                positives=None if source is None else source.afresh(),
                seed=seed,
            )
            yield _Candidate(trainer, rate)


def _gaps(target: Target, held_out: Any, seed: int) -> Callable[[Any], Float64[Tensor, " n"]]:
    """A function of a twist to the gap at each held-out sample, whose mean is the gap."""

    def measure(twist: Any) -> Float64[Tensor, " n"]:
        how: dict[str, Any] = {
            "num_particles": 1,
            "proposal": TwistInduced(twist),
            "rule": "never",
            "seed": seed,
        }
        if target.is_conditional:
            given = log_z_bounds_given(target, held_out, **how)
            return given.upper - given.lower
        bounds = log_z_bounds(target, num_runs=len(held_out.tokens), exact_samples=held_out, **how)
        return torch.as_tensor(bounds.upper_log_z - bounds.lower_log_z)

    return measure
