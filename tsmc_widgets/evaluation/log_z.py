"""A value of log Z to measure divergences with: how large, how sure, and where from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tsmc_widgets.evaluation.bounds_table import BoundsTable, LogZBounds
from tsmc_widgets.evaluation.intervals import t_interval, welch


@dataclass(frozen=True, slots=True)
class LogZ:
    """Log Z with all that is uncertain about it.

    Attributes:
        value: in nats.
        source: where it comes from, in words.
        standard_error: of sampling; 0 where computed.
        freedom: degrees of freedom of that error.
        slack: how far log Z may lie from ``value`` were there no sampling error: half of the gap
            between two bounds; 0 where none.
    """

    value: float
    source: str
    standard_error: float = 0.0
    freedom: float | int = math.inf
    slack: float = 0.0

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
            return cls(float(given), "exact, as given")
        if hasattr(given, "optimal_twist"):
            return cls(given.log_z, "exact, by the oracle")
        if isinstance(given, BoundsTable):
            given = given.tightest()
        if isinstance(given, LogZBounds):
            return cls._of_bounds(given)
        if hasattr(given, "log_z_standard_error"):
            error, draws = given.log_z_standard_error, given.proposed
            source = f"mean of phi over {draws:,} draws from p0"
            return cls(given.log_z, source, error, max(1, draws - 1))
        if hasattr(given, "tokens_spent"):
            middle, half = (given.lower + given.upper) / 2, (given.upper - given.lower) / 2
            if not math.isfinite(half):
                raise ValueError(
                    f"this bracket, {given.lower:g} to {given.upper:g}, is open: spend more tokens "
                    "on it, or give bounds."
                )
            return cls(middle, "middle of a certified bracket", slack=half)
        raise TypeError(
            "log_z must be a number, an oracle, bounds with both sides, exact samples by "
            f"rejection or a bracket; got {given!r}."
        )

    @classmethod
    def pooled(cls, bounds: LogZBounds) -> LogZ:
        """Middle of the two pooled estimates: closer to log Z than the means' middle.

        Their interval holds what it says while log Z_hat spreads by less than about 0.4 nats.
        """
        lower, upper = bounds.pooled_lower, bounds.pooled_upper
        if lower is None or upper is None:
            raise ValueError(_ONE_SIDE)
        error, freedom = welch(
            (lower.standard_error / 2, lower.effective_runs - 1),
            (upper.standard_error / 2, upper.effective_runs - 1),
        )
        source = f"midpoint of pooled estimates, K = {bounds.num_particles:,}"
        slack = max(0.0, upper.value - lower.value) / 2
        return cls((lower.value + upper.value) / 2, source, error, freedom, slack)

    @classmethod
    def _of_bounds(cls, bounds: LogZBounds) -> LogZ:
        if bounds.exact is not None:
            return cls(bounds.exact, "exact, from the table of bounds")
        if bounds.upper is None or not math.isfinite(bounds.gap):
            raise ValueError(_ONE_SIDE)
        above = "bounds" if bounds.upper_kind != "estimate" else "a bound and an estimate"
        error, freedom = welch(
            (bounds.lower.standard_error / 2, bounds.lower.num_runs - 1),
            (bounds.upper.standard_error / 2, bounds.upper.num_runs - 1),
        )
        source = f"midpoint of {above}, K = {bounds.num_particles:,}"
        return cls(bounds.midpoint, source, error, freedom, max(0.0, bounds.gap) / 2)

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """The t-interval of ``value``, widened by ``slack`` on both sides."""
        if self.standard_error == 0:
            return (self.value - self.slack, self.value + self.slack)
        low, high = t_interval(self.value, self.standard_error, self.freedom, confidence)
        return (low - self.slack, high + self.slack)


_ONE_SIDE = (
    "the midpoint of bounds needs a finite one on both sides: call log_z_bounds with "
    "exact_samples, and with a twist or more particles where runs die."
)
