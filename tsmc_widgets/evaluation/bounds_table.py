"""Bounds on log Z as they are reported: one pair, or a table over K and resampling rules."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, overload

from jaxtyping import Float64
from torch import Tensor

from tsmc_widgets.errors import import_extra
from tsmc_widgets.evaluation.intervals import MeanOverRuns, PooledOverRuns, t_interval, welch

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = (
    "num_particles", "method", "rule", "side", "kind", "mean", "standard_error", "low", "high",
    "pooled", "pooled_standard_error", "pooled_low", "pooled_high", "effective_runs", "num_runs",
    "exact",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class LogZBounds:
    """Log Z between two means (paper, section 5): E[lower] <= log Z <= E[upper].

    Attributes:
        lower: mean of log Z_hat over forward runs.
        upper: mean of conditional log Z_hat over exact samples; None where there were none.
        num_particles: K of both.
        pooled_lower: log mean Z_hat over the same runs, a tighter bound; None if not computed.
        pooled_upper: -log mean(1 / Z_hat) over the same samples, tighter; None where none.
        upper_kind: "bound" from exact samples, "estimate" from approximate ones: no bound.
        rule: when both sides resampled, in words.
        exact: log Z where it is known, in nats; None elsewhere.
        lower_log_z: log Z_hat of each forward run; None if not kept.
        upper_log_z: conditional log Z_hat of each sample; None if not kept.

    Where phi or a twist may be zero, the pooled upper bound stays above log Z by
    -log P(a forward run survives), however many runs there are.
    """

    lower: MeanOverRuns
    upper: MeanOverRuns | None
    num_particles: int
    pooled_lower: PooledOverRuns | None = None
    pooled_upper: PooledOverRuns | None = None
    upper_kind: str | None = None
    rule: str | None = None
    exact: float | None = None
    lower_log_z: Float64[Tensor, " runs"] | None = field(default=None, repr=False, compare=False)
    upper_log_z: Float64[Tensor, " samples"] | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(
        cls,
        lower_log_z: Float64[Tensor, " runs"],
        upper_log_z: Float64[Tensor, " samples"] | None,
        *,
        num_particles: int,
        upper_kind: str = "bound",
        rule: str | None = None,
        exact: float | int | None = None,
    ) -> LogZBounds:
        """Bounds from one log Z_hat for each run: what parts of a large job are pooled with."""
        above = upper_log_z is not None
        return cls(
            lower=MeanOverRuns.of(lower_log_z),
            upper=MeanOverRuns.of(upper_log_z) if above else None,
            num_particles=num_particles,
            pooled_lower=PooledOverRuns.of(lower_log_z),
            pooled_upper=PooledOverRuns.of(upper_log_z, reciprocal=True) if above else None,
            upper_kind=upper_kind if above else None,
            rule=rule,
            exact=None if exact is None else float(exact),
            lower_log_z=lower_log_z,
            upper_log_z=upper_log_z,
        )

    @property
    def gap(self) -> float:
        """Upper minus lower, in nats: bounds the symmetrised KL of one SMC draw and sigma."""
        return math.nan if self.upper is None else self.upper.mean - self.lower.mean

    @property
    def gap_standard_error(self) -> float:
        """Standard error of the gap; both sides are independent."""
        if self.upper is None:
            return math.nan
        return math.hypot(self.lower.standard_error, self.upper.standard_error)

    def gap_interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Welch's t interval of the gap; it may reach below 0, where the gap itself can not be."""
        sides = [self.lower] if self.upper is None else [self.lower, self.upper]
        error, freedom = welch(*((side.standard_error, side.num_runs - 1) for side in sides))
        return t_interval(self.gap, error, freedom, confidence)

    @property
    def midpoint(self) -> float:
        """Middle of both means, in nats; NaN without an upper one."""
        return math.nan if self.upper is None else (self.lower.mean + self.upper.mean) / 2


@dataclass(frozen=True)
class BoundsTable(Sequence):
    """Bounds for each K and rule, in the order in which they were computed.

    Attributes:
        rows: one ``LogZBounds`` each.
    """

    rows: tuple[LogZBounds, ...]

    def __len__(self) -> int:
        """How many."""
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> LogZBounds: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[LogZBounds, ...]: ...

    def __getitem__(self, index: Any) -> Any:
        """Bounds by their place."""
        return self.rows[index]

    def __iter__(self) -> Iterator[LogZBounds]:
        """One after another."""
        return iter(self.rows)

    def tightest(self) -> LogZBounds:
        """The bounds whose gap is smallest.

        Chosen among many by what was measured, it looks a little better than it is.

        Raises:
            ValueError: no row has bounds from both sides.
        """
        closed = [row for row in self.rows if math.isfinite(row.gap)]
        if not closed:
            raise ValueError(
                "no row of this table has a finite bound on both sides: give exact_samples for "
                "the upper one, and a twist or more particles where runs die."
            )
        return min(closed, key=lambda row: row.gap)

    def to_frame(self) -> pd.DataFrame:
        """Tidy table: one row for each K, rule and side; all but the counts in nats.

        ``low`` and ``high`` are the ends of the 95 % t-interval of ``mean``; ``pooled`` is the
        tighter estimate with its own error and interval; ``effective_runs`` says how many runs it
        rests on; ``kind`` is "bound" or, for samples that are not exact, "estimate".
        """
        records = [_record(row, side) for row in self.rows for side in ("lower", "upper")]
        return import_extra("pandas", "lab", "a table of bounds").DataFrame(
            [r for r in records if r is not None], columns=list(COLUMNS)
        )

    def gap_frame(self) -> pd.DataFrame:
        """Upper minus lower mean, one row for each K and rule, in nats.

        Columns: num_particles, method, rule, kind, gap, standard_error, low, high. The gap bounds
        the symmetrised KL of one SMC draw and sigma.
        """
        records = []
        for row in self.rows:
            if row.upper is None:
                continue
            low, high = row.gap_interval()
            records.append(
                {
                    "num_particles": row.num_particles,
                    "method": method_name(row.rule),
                    "rule": row.rule,
                    "kind": row.upper_kind,
                    "gap": row.gap,
                    "standard_error": row.gap_standard_error,
                    "low": low,
                    "high": high,
                }
            )
        return import_extra("pandas", "lab", "a table of bounds").DataFrame(records)

    def runs_frame(self) -> pd.DataFrame:
        """Log Z_hat of every single run: num_particles, method, rule, side, run, log_z, exact."""
        pd = import_extra("pandas", "lab", "a table of bounds")
        parts = [
            pd.DataFrame(
                {
                    "num_particles": row.num_particles,
                    "method": method_name(row.rule),
                    "rule": row.rule,
                    "side": side,
                    "run": range(len(values)),
                    "log_z": values.numpy(),
                    "exact": math.nan if row.exact is None else row.exact,
                }
            )
            for row in self.rows
            for side, values in (("lower", row.lower_log_z), ("upper", row.upper_log_z))
            if values is not None
        ]
        return pd.concat(parts, ignore_index=True)


def method_name(rule: str | None) -> str:
    """What a resampling rule makes of the sampler: SMC, or IWAE where it never resamples."""
    if rule is None:
        return "SMC"
    return "IWAE" if rule == "never" else f"SMC, {rule}"


def _record(row: LogZBounds, side: str) -> dict[str, Any] | None:
    mean = getattr(row, side)
    if mean is None:
        return None
    pooled = getattr(row, f"pooled_{side}")
    record = {
        "num_particles": row.num_particles,
        "method": method_name(row.rule),
        "rule": row.rule,
        "side": side,
        "kind": row.upper_kind or "bound" if side == "upper" else "bound",
        "mean": mean.mean,
        "standard_error": mean.standard_error,
        "num_runs": mean.num_runs,
        "exact": math.nan if row.exact is None else row.exact,
    }
    record["low"], record["high"] = mean.interval()
    if pooled is not None:
        record["pooled"] = pooled.value
        record["pooled_standard_error"] = pooled.standard_error
        record["pooled_low"], record["pooled_high"] = pooled.interval()
        record["effective_runs"] = pooled.effective_runs
    return record
