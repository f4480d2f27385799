"""Learned against optimal log psi: slope, rank correlation, error, and where it is worst."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

from tsmc_widgets.errors import import_extra
from tsmc_widgets.evaluation.prefixes import Prefixes, centre
from tsmc_widgets.targets.target import Target

if TYPE_CHECKING:
    import pandas as pd

RESAMPLES = 2000
Numbers = np.ndarray | np.floating


@dataclass(frozen=True, slots=True)
class PsiComparison:
    """A twist's log psi beside the optimal one, each with the mean of every t taken off.

    Attributes:
        frame: one row a prefix: t, text, learned, optimal, optimal_error, error (learned less
            optimal), all but t and text in nats.
        slope: of learned on optimal (least squares); 1 is right, 0 knows nothing.
        correlation: Pearson's.
        rank_correlation: Spearman's.
        rmse: root of the mean squared error, in nats.
        intervals: 95 % interval of each of these by bootstrap over prefixes; both ends are the
            value itself where the prefixes are all there are.
        reliability: share of the optimal values' variance that is not error of rollouts; the slope
            is drawn towards 0, and the rmse up, by what is missing to 1.
        note: where the optimal values come from.
    """

    frame: pd.DataFrame
    slope: float
    correlation: float
    rank_correlation: float
    rmse: float
    intervals: dict[str, tuple[float, float]]
    reliability: float
    note: str

    def worst(self, count: int = 10) -> pd.DataFrame:
        """The prefixes at which the twist is most wrong, worst first."""
        order = self.frame["error"].abs().sort_values(ascending=False, kind="stable").index
        return self.frame.loc[order[:count]].reset_index(drop=True)

    def summary(self) -> pd.DataFrame:
        """One row a statistic: statistic, value, low, high."""
        names = ("slope", "correlation", "rank_correlation", "rmse")
        return import_extra("pandas", "lab", "a table of prefixes").DataFrame(
            [
                {
                    "statistic": name,
                    "value": getattr(self, name),
                    "low": self.intervals[name][0],
                    "high": self.intervals[name][1],
                }
                for name in names
            ]
        )


def compare_log_psi(
    target: Target, twist: Any, prefixes: Prefixes, *, seed: int = 0
) -> PsiComparison:
    """Compare a twist with the optimal one at some prefixes.

    Args:
        target: whose twist.
        twist: psi, learned or not.
        prefixes: of ``all_prefixes``, or of ``pick_prefixes`` after ``roll_out`` on each.
        seed: of the bootstrap.

    Raises:
        ValueError: a prefix has no optimal value yet.
    """
    if bool(prefixes.log_psi.isnan().any()):
        raise ValueError(
            "some prefixes have no optimal log psi yet: call roll_out(target, prefixes, place, "
            "seed=...) on every place first."
        )
    learned = centre(prefixes.learned(target, twist), prefixes.step.cpu()).numpy()
    optimal = centre(prefixes.log_psi, prefixes.step).cpu().numpy()
    frame = import_extra("pandas", "lab", "a table of prefixes").DataFrame(
        {
            "t": prefixes.step.cpu().numpy(),
            "text": prefixes.texts(target),
            "learned": learned,
            "optimal": optimal,
            "optimal_error": prefixes.error.cpu().numpy(),
            "error": learned - optimal,
        }
    )
    values = {name: float(f(learned, optimal)) for name, f in STATISTICS.items()}
    if prefixes.enumerated:
        intervals = {name: (value, value) for name, value in values.items()}
    else:
        intervals = bootstrap(learned, optimal, seed)
    spread = float(optimal.var())
    noise = float((prefixes.error.cpu().numpy() ** 2).mean())
    return PsiComparison(
        frame=frame,
        **values,
        intervals=intervals,
        reliability=max(0.0, 1 - noise / spread) if spread > 0 else math.nan,
        note=prefixes.note,
    )


def bootstrap(
    learned: np.ndarray, optimal: np.ndarray, seed: int
) -> dict[str, tuple[float, float]]:
    """95 % percentile interval of each statistic, prefixes drawn with replacement."""
    draws = np.random.default_rng(seed).integers(len(learned), size=(RESAMPLES, len(learned)))
    intervals = {}
    for name, statistic in STATISTICS.items():
        values = statistic(learned[draws], optimal[draws])
        known = values[np.isfinite(values)]
        low, high = np.quantile(known, [0.025, 0.975]) if len(known) else (math.nan, math.nan)
        intervals[name] = (float(low), float(high))
    return intervals


def _slope(learned: np.ndarray, optimal: np.ndarray) -> Numbers:
    x, y = _centred(optimal), _centred(learned)
    return _ratio((x * y).mean(-1), (x * x).mean(-1))


def _correlation(learned: np.ndarray, optimal: np.ndarray) -> Numbers:
    x, y = _centred(optimal), _centred(learned)
    return _ratio((x * y).mean(-1), np.sqrt((x * x).mean(-1) * (y * y).mean(-1)))


def _rank_correlation(learned: np.ndarray, optimal: np.ndarray) -> Numbers:
    return _correlation(stats.rankdata(learned, axis=-1), stats.rankdata(optimal, axis=-1))


def _rmse(learned: np.ndarray, optimal: np.ndarray) -> Numbers:
    return np.sqrt(((learned - optimal) ** 2).mean(-1))


def _centred(values: np.ndarray) -> np.ndarray:
    return values - values.mean(-1, keepdims=True)


def _ratio(above: Numbers, below: Numbers) -> Numbers:
    """A quotient; NaN where what is below is no more than rounding."""
    return np.where(below > 1e-18, above / np.where(below > 1e-18, below, 1.0), math.nan)


STATISTICS: dict[str, Callable[[np.ndarray, np.ndarray], Numbers]] = {
    "slope": _slope,
    "correlation": _correlation,
    "rank_correlation": _rank_correlation,
    "rmse": _rmse,
}
