"""Means over seeds with Student's t-intervals, and who is best where intervals separate."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from tsmc_widgets.evaluation.intervals import MeanOverRuns
from tsmc_widgets.evaluation.runs import RunResult

LOWER_IS_BETTER = (
    "KL(q||σ)", "KL(σ||q)", "KL(q||σ) + KL(σ||q)", "gap", "upper", "upper, pooled",
)  # fmt: skip
HIGHER_IS_BETTER = ("lower", "lower, pooled")
REFERENCES = ("optimal",)
"""Methods that show what is possible and do not compete."""


@dataclass(frozen=True, slots=True)
class Place:
    """What a number is about: methods and rules compete for the same place.

    Attributes:
        problem: its name.
        quantity: what was measured; "lower" and "upper" are the bounds on log Z, and "lower,
            pooled" and "upper, pooled" the tighter ones.
        num_particles: K; 0 where it does not matter.
    """

    problem: str
    quantity: str
    num_particles: int = 0


@dataclass(frozen=True, slots=True)
class OverSeeds:
    """A number for one method, over seeds.

    Attributes:
        place: what it is about.
        method: whose it is.
        values: one for each seed, in the order of the seeds.
        rule: when it resampled, in words; "" where nothing is resampled.
        best: whether it is best, and its interval apart from that of every other method.
    """

    place: Place
    method: str
    values: tuple[float, ...]
    rule: str = ""
    best: bool = False

    @property
    def mean(self) -> float:
        """Mean over seeds; infinite where one is."""
        return float(torch.tensor(self.values, dtype=torch.float64).mean())

    @property
    def interval(self) -> tuple[float, float]:
        """Student's 95 % t-interval over seeds; the whole line where there is no spread to see.

        Values that agree to the last digit have an interval of no width, and infinite ones stay
        where they are.
        """
        if all(value == self.values[0] for value in self.values) and len(self.values) > 1:
            return (self.values[0], self.values[0])
        values = torch.tensor(self.values, dtype=torch.float64)
        return MeanOverRuns.of(values).interval()

    @property
    def half_width(self) -> float:
        """Half of the interval; infinite for one seed."""
        low, high = self.interval
        return 0.0 if low == high else (high - low) / 2


def over_seeds(results: Iterable[RunResult], seeds: Sequence[int]) -> list[OverSeeds]:
    """Numbers of every place and method that has all its seeds, with the best marked.

    Args:
        results: one for each problem, method and seed.
        seeds: those that count; a method that lacks one of them at a place is left out there.
    """
    found: dict[tuple[Place, str, str], dict[int, float]] = {}
    for result in results:
        for row in result.rows:
            place = place_of(result, row)
            if place is not None:
                own = found.setdefault((place, result.spec.method, row["rule"] or ""), {})
                own[result.spec.seed] = row["value"]
    whole = [
        OverSeeds(place, method, tuple(values[seed] for seed in seeds), rule)
        for (place, method, rule), values in found.items()
        if set(seeds) <= set(values)
    ]
    return mark_best(whole)


def place_of(result: RunResult, row: Mapping) -> Place | None:
    """What a row of a result is about; None where methods do not compete in it."""
    quantity = row["quantity"]
    if row["step"] is not None or row["run"] is not None:
        return None
    if row["side"]:
        if row["kind"] == "estimate" or math.isnan(row["value"]):
            return None
        quantity = row["side"] if quantity == "log Z" else f"{row['side']}, pooled"
    return Place(result.spec.problem_name, quantity, int(row["num_particles"] or 0))


def split_quantity(quantity: str) -> tuple[str, str]:
    """A quantity as results name it: bounds are "log Z" with a side, others have no side."""
    side, _, pooled = quantity.partition(", ")
    if side not in ("lower", "upper"):
        return quantity, ""
    return ("log Z, pooled" if pooled else "log Z"), side


def mark_best(entries: Sequence[OverSeeds]) -> list[OverSeeds]:
    """The same entries, of which at most one for each place is marked as best."""
    rivals: dict[Place, list[OverSeeds]] = {}
    for entry in entries:
        if entry.method not in REFERENCES:
            rivals.setdefault(entry.place, []).append(entry)
    best = [winner for group in rivals.values() if (winner := _winner(group)) is not None]
    return [replace(entry, best=any(entry is winner for winner in best)) for entry in entries]


def _winner(group: Sequence[OverSeeds]) -> OverSeeds | None:
    """Whose interval lies beyond all others; None where there is none, or no rival."""
    quantity = group[0].place.quantity
    if len(group) < 2 or quantity not in (*LOWER_IS_BETTER, *HIGHER_IS_BETTER):
        return None
    sign = 1.0 if quantity in LOWER_IS_BETTER else -1.0

    def ends(entry: OverSeeds) -> tuple[float, float]:
        low, high = (sign * end for end in entry.interval)
        return (low, high) if sign > 0 else (high, low)

    first, *others = sorted(group, key=lambda entry: sign * entry.mean)
    if not math.isfinite(first.mean):
        return None
    apart = all(ends(first)[1] < ends(other)[0] for other in others)
    return first if apart else None
