"""Means and log-means over independent runs, with standard errors and t-intervals."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float64
from scipy import stats
from torch import Tensor

from tsmc_widgets import numerics
from tsmc_widgets.errors import check_number, import_extra, quoted
from tsmc_widgets.smc.exact import Oracle
from tsmc_widgets.smc.trace import pareto_k
from tsmc_widgets.targets.exact_samples import ExactSamples

if TYPE_CHECKING:
    import pandas as pd

EVERYWHERE = (-math.inf, math.inf)
AGREE = 1e-7
"""Values that differ by less, in nats, agree: rounding alone makes so much."""
HEAVY = 0.5
"""Pareto k from which on what is averaged has no variance, so that its mean has no t-interval."""


def frame_of(rows: Any, columns: Sequence[str | int] | None = None) -> pd.DataFrame:
    """A pandas table of rows, or of columns by name."""
    pd = import_extra("pandas", "lab", "a table")
    return pd.DataFrame(rows, columns=None if columns is None else list(columns))


def pareto_shape(log_weights: Float64[Tensor, " n"]) -> float:
    """``pareto_k``; NaN also where arviz-stats is not installed."""
    if find_spec("arviz_stats") is None:
        return math.nan
    array_stats = import_extra("arviz_stats.base", "lab", "a Pareto k").array_stats
    return pareto_k(array_stats, log_weights)


class Estimate:
    """A number with its error: its interval, and the columns of a table that hold both.

    Subclasses have ``value``, ``standard_error``, ``freedom`` (degrees of freedom of that error),
    ``slack``: how far the truth may lie from ``value`` were there no sampling error, and
    ``unseen``: 1 / n where n draws that agree say nothing of their spread, 0 elsewhere.
    """

    __slots__ = ()
    value: float
    standard_error: float
    freedom: float | int
    slack: float
    unseen: float

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Student's t interval, widened on both sides; the value where it is exact.

        It is widened by ``slack``, and by log(2 / (1 - confidence)) / n where n draws agree: rarer
        values may have that probability, unseen; as much holds each end of what the draws certify
        for log Z (``LogZBounds.certified``).
        """
        low = high = self.value
        if self.standard_error != 0:
            low, high = t_interval(self.value, self.standard_error, self.freedom, confidence)
        reach = self.slack + _reach(self.unseen, confidence)
        return (low - reach, high + reach)

    def row(self, name: str = "value") -> dict[str, float]:
        """The value under ``name``, with standard_error, low and high (95 %)."""
        low, high = self.interval()
        columns = {"standard_error": self.standard_error, "low": low, "high": high}
        return {name: self.value, **columns}


def _unseen(deviation: float, count: int) -> float:
    return 1.0 / count if deviation < AGREE else 0.0


def _reach(unseen: float, confidence: float) -> float:
    """Nats by which an interval is widened where draws agree."""
    return unseen * math.log(2 / (1 - confidence))


class OverRuns(Estimate):
    """An estimate from independent runs, of which there are ``num_runs``."""

    __slots__ = ()
    num_runs: int
    slack: ClassVar[float] = 0.0  # type: ignore[misc]

    @property
    def unseen(self) -> float:  # type: ignore[override]
        """1 / n where all values agree."""
        return _unseen(self.standard_error * math.sqrt(self.num_runs), self.num_runs)


@dataclass(frozen=True, slots=True)
class MeanOverRuns(OverRuns):
    """A mean over independent runs.

    Its nominal 95 % t-interval, of 5 to 20 forward runs, covers E[log Z_hat] at least 92 % of the
    time where log Z_hat spreads by up to 0.71 nats over runs, and at least 73 % at up to 1.71 nats,
    where its tail is skewed; not where a run may die, whose log Z_hat of -inf the runs seen may
    lack (docs/coverage.md has targets and counts).

    Attributes:
        mean: in nats; -inf where a run died.
        standard_error: of the mean; NaN for one run or where a run died.
        num_runs: how many.
    """

    mean: float
    standard_error: float
    num_runs: int

    @classmethod
    def of(cls, values: Float64[Tensor, " runs"]) -> MeanOverRuns:
        """Mean of one value for each run."""
        count = len(values)
        mean = float(values.mean())
        if count < 2 or not math.isfinite(mean):
            return cls(mean, math.nan, count)
        return cls(mean, float(values.std()) / math.sqrt(count), count)

    @property
    def value(self) -> float:
        """The mean."""
        return self.mean

    @property
    def freedom(self) -> int:
        """Degrees of freedom."""
        return self.num_runs - 1


@dataclass(frozen=True, slots=True)
class PooledOverRuns(OverRuns):
    """Log of a mean over runs: as a bound it is tighter than the mean of logs, and consistent.

    Attributes:
        value: log mean Z_hat of forward runs, or -log mean(1 / Z_hat) of conditional ones, in nats.
        standard_error: by the jackknife; NaN for one run or where only one counts.
        num_runs: how many.
        effective_runs: (sum w)**2 / sum w**2 of what is averaged: near 1, one run decides alone.

    The interval is Student's t with ``effective_runs`` - 1 degrees of freedom, so that few runs of
    uneven weight get a wide one. An average may be made by runs that are rarely seen, and no
    interval knows of what no run has shown: nominal 95 % intervals of 5 to 20 forward runs cover
    log Z at least 92 % of the time where log Z_hat spreads by up to 0.71 nats over runs, and at
    least 73 % at up to 1.71 nats (docs/coverage.md has targets and counts).
    ``LogZBounds.certified`` holds at any spread.
    """

    value: float
    standard_error: float
    num_runs: int
    effective_runs: float

    @classmethod
    def of(cls, log_z: Float64[Tensor, " runs"], *, reciprocal: bool = False) -> PooledOverRuns:
        """Pool one log Z_hat for each run; ``reciprocal`` averages 1 / Z_hat (conditional runs)."""
        sign = -1.0 if reciprocal else 1.0
        logs, count = sign * log_z.double(), len(log_z)
        value = sign * float(numerics.logmeanexp(logs))
        effective = float(numerics.ess(logs))
        error = math.nan
        if count > 1 and math.isfinite(value):
            rest = _all_but_one(logs)
            error = math.sqrt((count - 1) * float(rest.var(correction=0)))
        return cls(value, error if math.isfinite(error) else math.nan, count, effective)

    @property
    def freedom(self) -> float:
        """Degrees of freedom; see the class for how well the interval covers."""
        return max(1.0, self.effective_runs - 1)


def _all_but_one(logs: Float64[Tensor, " runs"]) -> Float64[Tensor, " runs"]:
    """Log sum of all weights but each one, from both ends, so that nothing is subtracted."""
    nothing = torch.full((1,), -math.inf, dtype=logs.dtype)
    before = torch.cat([nothing, logs.logcumsumexp(0)[:-1]])
    after = torch.cat([logs.flip(0).logcumsumexp(0)[:-1].flip(0), nothing])
    return torch.logaddexp(before, after)


def t_interval(
    middle: float, standard_error: float, freedom: float | int, confidence: float = 0.95
) -> tuple[float, float]:
    """Student's t interval; the whole line where no standard error is known."""
    if not math.isfinite(standard_error) or not math.isfinite(middle):
        return EVERYWHERE
    reach = float(stats.t.ppf((1 + confidence) / 2, freedom)) * standard_error
    return (middle - reach, middle + reach)


def mean_with_ends(values: Float64[Tensor, " runs"]) -> tuple[float, float, float]:
    """Mean over independent runs with its 95 % t-interval; NaN ends for one run, or a dead one."""
    mean = MeanOverRuns.of(values)
    if not math.isfinite(mean.standard_error):
        return mean.mean, math.nan, math.nan
    return mean.mean, *t_interval(mean.mean, mean.standard_error, mean.freedom)


def percentiles(values: np.ndarray) -> tuple[float, float]:
    """The 2.5 and 97.5 % quantiles of what is finite; NaN where nothing is."""
    known = values[np.isfinite(values)]
    low, high = np.quantile(known, [0.025, 0.975]) if len(known) else (math.nan, math.nan)
    return float(low), float(high)


def mean_within(
    values: Float64[Tensor, " runs"], upper: float = math.inf
) -> tuple[float, float, float]:
    """Mean over independent runs of what lies in [0, upper], with a 95 % t-interval inside it.

    By the delta method on the log, or with an upper end on the log odds, so that a variance stays
    positive and a share of K between 0 and 1. NaN ends where the runs agree, or are one: they say
    nothing of how they spread.
    """
    count, mean = len(values), float(values.mean())
    error = float(values.std()) / math.sqrt(count) if count > 1 else 0.0
    if error < AGREE * max(1.0, mean) or not 0 < mean < upper:
        return mean, math.nan, math.nan
    reach = float(stats.t.ppf(0.975, count - 1)) * error
    if upper == math.inf:
        return mean, mean * math.exp(-reach / mean), mean * math.exp(reach / mean)
    rest = upper - mean
    odds, reach = math.log(mean / rest), reach * upper / (mean * rest)
    low, high = (upper / (1 + math.exp(-min(700.0, odds + end))) for end in (-reach, reach))
    return mean, low, high


def welch(*parts: Estimate, weight: float = 1.0) -> tuple[float, float]:
    """Standard error and degrees of freedom of a sum of independent parts, each times ``weight``.

    Exactly known parts have error 0 (Welch and Satterthwaite).
    """
    errors = [weight * part.standard_error for part in parts]
    total = math.fsum(error**2 for error in errors)
    if not math.isfinite(total):
        return math.nan, 1.0
    pull = math.fsum(
        error**4 / max(part.freedom, 1)
        for error, part in zip(errors, parts, strict=True)
        if error > 0
    )
    return math.sqrt(total), total**2 / pull if pull > 0 else math.inf


COLUMNS = (
    "num_particles", "method", "rule", "side", "kind", "mean", "standard_error", "low", "high",
    "pooled", "pooled_standard_error", "pooled_low", "pooled_high", "effective_runs", "certified",
    "num_runs", "exact",
)  # fmt: skip
GAP_COLUMNS = (
    "num_particles", "method", "rule", "kind", "gap", "standard_error", "low", "high",
)  # fmt: skip
RUN_COLUMNS = ("num_particles", "method", "rule", "side", "run", "log_z", "exact")


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

    def certified(self, confidence: float = 0.95) -> tuple[float, float]:
        """An interval that holds log Z with this probability at least, whatever the tails (nats).

        Markov's inequality for unbiased estimates: the product of n independent Z_hat / Z has mean
        1, so mean log Z_hat exceeds log Z by log(1 / delta) / n with probability delta at most; so
        does their mean, by log(1 / delta), which holds where runs have died. Conditional runs give
        the other end, as E[1 / Z_hat] <= 1 / Z. Open where there is no such bound.
        """
        delta = (1 - confidence) / 2
        low = self.lower.mean - math.log(2 / delta) / self.lower.num_runs
        if self.pooled_lower is not None:
            low = max(low, self.pooled_lower.value - math.log(2 / delta))
        if self.upper is None or self.upper_kind == "estimate":
            return (low, math.inf)
        return (low, self.upper.mean + math.log(1 / delta) / self.upper.num_runs)

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
        """Welch's t interval of the gap; it may reach below 0, where the gap itself cannot be."""
        sides = [self.lower] if self.upper is None else [self.lower, self.upper]
        low, high = t_interval(self.gap, *welch(*sides), confidence)
        reach = _reach(sum(side.unseen for side in sides), confidence)
        return (low - reach, high + reach)

    def gap_row(self, name: str = "value") -> dict[str, float]:
        """The gap as a row of a table, as ``Estimate.row``."""
        low, high = self.gap_interval()
        columns = {"standard_error": self.gap_standard_error, "low": low, "high": high}
        return {name: self.gap, **columns}

    def sides(
        self,
    ) -> Iterator[tuple[str, MeanOverRuns, PooledOverRuns | None, Float64[Tensor, " runs"] | None]]:
        """Name, mean, pooled estimate and single runs of each side that there is."""
        yield "lower", self.lower, self.pooled_lower, self.lower_log_z
        if self.upper is not None:
            yield "upper", self.upper, self.pooled_upper, self.upper_log_z

    def about(self) -> dict[str, Any]:
        """What a row of a table says of the run: K, the method, the rule and the exact log Z."""
        return {
            "num_particles": self.num_particles,
            "method": method_name(self.rule),
            "rule": self.rule,
            "exact": math.nan if self.exact is None else self.exact,
        }


@dataclass(frozen=True)
class BoundsTable(Sequence):
    """Bounds for each K and rule, in the order in which they were computed.

    Attributes:
        rows: one ``LogZBounds`` each.
    """

    rows: tuple[LogZBounds, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

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
        rests on; ``certified`` is the end of ``LogZBounds.certified`` on this side; ``kind`` is
        "bound" or, for samples that are not exact, "estimate".
        """
        records = []
        for row in self.rows:
            certified = dict(zip(("lower", "upper"), row.certified(), strict=True))
            for side, mean, pooled, _ in row.sides():
                kind = "bound" if side == "lower" else row.upper_kind or "bound"
                record = row.about() | {"side": side, "kind": kind} | mean.row("mean")
                record |= {"num_runs": mean.num_runs, "certified": certified[side]}
                if pooled is not None:
                    record |= {f"pooled_{name}": value for name, value in pooled.row().items()}
                    record |= {"pooled": pooled.value, "effective_runs": pooled.effective_runs}
                records.append(record)
        return frame_of(records, COLUMNS)

    def gap_frame(self) -> pd.DataFrame:
        """Upper minus lower mean, one row for each K and rule, in nats.

        Columns: num_particles, method, rule, kind, gap, standard_error, low, high. The gap bounds
        the symmetrised KL of one SMC draw and sigma.
        """
        closed = [row for row in self.rows if row.upper is not None]
        return frame_of(
            [row.about() | {"kind": row.upper_kind} | row.gap_row("gap") for row in closed],
            GAP_COLUMNS if closed else None,
        )

    def runs_frame(self) -> pd.DataFrame:
        """Log Z_hat of every single run: num_particles, method, rule, side, run, log_z, exact."""
        pd = import_extra("pandas", "lab", "a table of bounds")
        parts = [
            pd.DataFrame(
                row.about() | {"side": side, "run": range(len(values)), "log_z": values.numpy()}
            )
            for row in self.rows
            for side, _, _, values in row.sides()
            if values is not None
        ]
        return pd.concat(parts, ignore_index=True)[list(RUN_COLUMNS)]


def method_name(rule: str | None) -> str:
    """What a resampling rule makes of the sampler: SMC, or IWAE where it never resamples."""
    if rule is None:
        return "SMC"
    return "IWAE" if rule == "never" else f"SMC, {rule}"


@dataclass(frozen=True, slots=True)
class Bracket:
    """Log Z lies between ``lower`` and ``upper``, for certain and not on average.

    Certain for the model as it was computed: ``margin`` allows for the rounding of its
    log-probabilities, not for a device that computes something else each time.

    Attributes:
        lower: log of the mass that all sequences looked at must have, in nats; -inf at first.
        upper: log of that and of what all others may have at most.
        undecided: p0's mass of the sequences that nothing is known of yet.
        texts: whole sequences whose phi was computed one by one.
        prefixes_read: prefixes that the model was asked about.
        frontier: prefixes that wait.
        tokens_spent: tokens that the model has read, prompts included.
        margin: nats by which both ends were moved apart for rounding.
        done: whether nothing is left to look at.
    """

    lower: float
    upper: float
    undecided: float
    texts: int
    prefixes_read: int
    frontier: int
    tokens_spent: int
    margin: float
    done: bool

    @property
    def width(self) -> float:
        """Upper minus lower, in nats."""
        return self.upper - self.lower

    def contains(self, log_z: float | int) -> bool:
        """Whether a value of log Z is possible."""
        return self.lower <= log_z <= self.upper

    def contradiction(self, bounds: LogZBounds, *, confidence: float = 0.9999) -> str:
        """What in bounds by SMC cannot be true beside this bracket; "" where all can."""
        if bounds.lower.interval(confidence)[0] > self.upper:
            return (
                f"the lower bound {bounds.lower.mean:.4g} lies above the bracket's upper end "
                f"{self.upper:.4g}: sampler, proposal or log_phi_max must be wrong."
            )
        if bounds.upper is not None and bounds.upper.interval(confidence)[1] < self.lower:
            return (
                f"the upper bound {bounds.upper.mean:.4g} lies below the bracket's lower end "
                f"{self.lower:.4g}: the samples it is made with cannot be exact."
            )
        return ""


@dataclass(frozen=True, slots=True)
class LogZ(Estimate):
    """Log Z with all that is uncertain about it.

    Attributes:
        value: in nats.
        source: where it comes from, in words.
        standard_error: of sampling; 0 where computed.
        freedom: degrees of freedom of that error.
        slack: how far log Z may lie from ``value`` were there no sampling error: half of the gap
            between two bounds; 0 where none.
        unseen: 1 / n where n draws agree, so that their error is not known.
        influence: how much each exact sample moves ``value``, times their number: what a mean over
            the same samples varies with. None where log Z does not rest on exact samples.
    """

    value: float
    source: str
    standard_error: float = 0.0
    freedom: float | int = math.inf
    slack: float = 0.0
    unseen: float = 0.0
    influence: Float64[Tensor, " samples"] | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, given: Any) -> LogZ:
        """Read what a user may give for log Z.

        Args:
            given: a number (exact); an oracle; ``LogZBounds`` with both sides, or a
                ``BoundsTable``, of which the tightest: their exact value if they know it, else
                their midpoint; ``ExactSamples`` (the mean of phi over all draws of rejection); a
                certified bracket; or a ``LogZ``.

        Raises:
            TypeError: anything else.
            ValueError: bounds without an upper side, or none that is finite.
        """
        if isinstance(given, LogZ):
            return given
        if isinstance(given, int | float) and not isinstance(given, bool):
            return cls(check_number("log_z", given, "(-inf, inf)"), "exact, as given")
        if isinstance(given, Oracle):
            return cls(given.log_z, "exact, by the oracle")
        if isinstance(given, BoundsTable):
            given = given.tightest()
        if isinstance(given, LogZBounds):
            if given.exact is not None:
                return cls(given.exact, "exact, from the table of bounds")
            if not math.isfinite(given.gap):
                raise ValueError(_ONE_SIDE)
            what = "bounds" if given.upper_kind != "estimate" else "a bound and an estimate"
            source = f"{what}, K = {given.num_particles:,}"
            return cls._middle(given.lower, given.upper, source, given.upper_log_z)
        if isinstance(given, ExactSamples):
            error, draws = given.log_z_standard_error, given.proposed
            source = f"mean of phi over {draws:,} draws from p0"
            # Of the draws that made log Z, the accepted ones are the samples.
            share = (given.log_phi - given.log_z).exp() * (len(given.tokens) / max(1, draws))
            return cls(
                given.log_z,
                source,
                error,
                max(1, draws - 1),
                unseen=_unseen(error * math.sqrt(draws), draws),
                influence=share.cpu(),
            )
        if isinstance(given, Bracket):
            middle, half = (given.lower + given.upper) / 2, given.width / 2
            if not math.isfinite(half):
                raise ValueError(
                    f"this bracket, {given.lower:g} to {given.upper:g}, is open: spend more tokens "
                    "on it, or give bounds."
                )
            return cls(middle, "middle of a certified bracket", slack=half)
        raise TypeError(
            "log_z must be a number, an oracle, bounds with both sides, exact samples by "
            f"rejection or a bracket; got {quoted(given)}."
        )

    @classmethod
    def pooled(cls, bounds: LogZBounds) -> LogZ:
        """Middle of the two pooled estimates: closer to log Z than the means' middle.

        Their interval holds what it says while log Z_hat spreads by less than about 0.4 nats.
        """
        lower, upper = bounds.pooled_lower, bounds.pooled_upper
        if lower is None or upper is None:
            raise ValueError(_ONE_SIDE)
        influence = bounds.upper_log_z
        if influence is not None:
            influence = -(upper.value - influence).exp()
        source = f"pooled estimates, K = {bounds.num_particles:,}"
        return cls._middle(lower, upper, source, influence)

    @classmethod
    def _middle(cls, lower: Estimate, upper: Estimate, what: str, influence: Tensor | None) -> LogZ:
        error, freedom = welch(lower, upper, weight=0.5)
        return cls(
            (lower.value + upper.value) / 2,
            f"midpoint of {what}",
            error,
            freedom,
            slack=max(0.0, upper.value - lower.value) / 2,
            unseen=(lower.unseen + upper.unseen) / 2,
            influence=None if influence is None else influence / 2,
        )


_ONE_SIDE = (
    "the midpoint of bounds needs a finite one on both sides: call log_z_bounds with "
    "exact_samples, and with a twist or more particles where runs die."
)
