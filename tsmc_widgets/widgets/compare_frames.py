"""Finished plots of one problem, from what a comparison has measured."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tsmc_widgets.evaluation.compare import Comparison
from tsmc_widgets.evaluation.intervals import t_interval
from tsmc_widgets.evaluation.runs import RunResult
from tsmc_widgets.widgets.compare_record import PROFILES, single_runs

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class Frames:
    """What figures of a problem are drawn from.

    Attributes:
        problem: its name.
        means: over seeds, as ``Comparison.to_frame`` gives them.
        results: of single specs.
    """

    problem: str
    means: pd.DataFrame
    results: tuple[RunResult, ...]

    @classmethod
    def of(cls, comparison: Comparison, problem: str) -> Frames:
        """The frames of a problem.

        Raises:
            ValueError: no method has all its seeds on it yet.
        """
        means = comparison.to_frame()
        means = means[means["problem"] == problem] if len(means) else means
        if means.empty:
            raise ValueError(f"no method has all its seeds on {problem!r} yet: press Start first.")
        found = comparison.table.results.values()
        mine = tuple(result for result in found if result.spec.problem_name == problem)
        if len(comparison.seeds) == 1:
            means = _intervals_over_runs(means, mine)
        return cls(problem, means, mine)

    @property
    def largest(self) -> int:
        """The largest K."""
        return max(max(result.spec.num_particles) for result in self.results)


def bounds(frames: Frames, theme: str) -> Any:
    """Bounds on log Z against K."""
    from tsmc_widgets.figures import bounds_figure

    title = f"Bounds on log Z: {frames.problem}"
    return bounds_figure(frames.means, theme=theme, title=title)


def gap(frames: Frames, theme: str) -> Any:
    """Gap against K."""
    from tsmc_widgets.figures import gap_figure

    title = f"Gap between the bounds: {frames.problem}"
    return gap_figure(frames.means, theme=theme, title=title)


def kl(frames: Frames, theme: str) -> Any:
    """Both divergences of each method."""
    from tsmc_widgets.figures import kl_forest_figure

    title = f"Divergences between proposal and target: {frames.problem}"
    means = frames.means.drop(columns="exact")
    return kl_forest_figure(means, label="method", theme=theme, title=title)


def reward(frames: Frames, theme: str) -> Any:
    """Reward against divergence from p0, a point a method."""
    import pandas as pd

    from tsmc_widgets.figures import frontier_figure

    names = {"KL(q||p0)": "kl", "E_q[log φ]": "reward"}
    records: dict[str, dict[str, Any]] = {}
    for row in frames.means.to_dict("records"):
        name = names.get(row["quantity"])
        if name is not None:
            own = records.setdefault(row["method"], {"method": row["method"]})
            own |= {name: row["value"], f"{name}_low": row["low"], f"{name}_high": row["high"]}
    whole = [
        r
        for r in records.values()
        if all(math.isfinite(r.get(n, math.nan)) for n in ("kl", "reward"))
    ]
    columns = ["method", *(f"{n}{end}" for n in ("kl", "reward") for end in ("", "_low", "_high"))]
    title = f"Reward against divergence from p0: {frames.problem}"
    return frontier_figure(
        pd.DataFrame(whole, columns=columns), by="method", theme=theme, title=title
    )


def profiles(frames: Frames, theme: str) -> Any:
    """ESS and surviving ancestors at the largest K."""
    import pandas as pd

    from tsmc_widgets.figures import profiles_figure

    title = f"ESS and surviving ancestors, K = {frames.largest}: {frames.problem}"
    return profiles_figure(pd.DataFrame(_profile_rows(frames)), theme=theme, title=title)


def runs(frames: Frames, theme: str) -> Any:
    """Log Z_hat of single runs at the largest K."""
    import pandas as pd

    from tsmc_widgets.figures import log_z_histogram

    exact = frames.means["exact"].dropna()
    rows = [
        {
            "method": method,
            "rule": rule,
            "log_z": value,
            "exact": exact.iloc[0] if len(exact) else None,
        }
        for (method, rule, size), values in single_runs(frames.results).items()
        if size == frames.largest
        for value in values
    ]
    title = f"log Ẑ of single runs, K = {frames.largest}: {frames.problem}"
    return log_z_histogram(
        pd.DataFrame(rows, columns=["method", "rule", "log_z", "exact"]), theme=theme, title=title
    )


FIGURES: dict[str, Callable[[Frames, str], Any]] = {
    "bounds": bounds, "gap": gap, "kl": kl, "reward": reward, "profiles": profiles, "runs": runs,
}  # fmt: skip


def _profile_rows(frames: Frames) -> list[dict[str, Any]]:
    """Means over the runs of all seeds, with t-intervals over runs."""
    found: dict[tuple, list[dict[str, Any]]] = {}
    for result in frames.results:
        for row in result.rows:
            if row["quantity"] in PROFILES and row["num_particles"] == frames.largest:
                key = (result.spec.method, row["rule"], row["quantity"], row["step"])
                found.setdefault(key, []).append(row)
    records = []
    for (method, rule, quantity, step), rows in found.items():
        mean = sum(row["value"] for row in rows) / len(rows)
        error = math.sqrt(sum(row["standard_error"] ** 2 for row in rows)) / len(rows)
        freedom = sum(row["num_runs"] - 1 for row in rows)
        low, high = t_interval(mean, error, freedom, 0.95)
        about = {"method": method, "rule": rule, "t": step}
        quantity = quantity.removesuffix(" / K")
        records.append(about | {"quantity": quantity, "mean": mean, "low": low, "high": high})
    return records


def _intervals_over_runs(means: pd.DataFrame, results: tuple[RunResult, ...]) -> pd.DataFrame:
    """Of a single seed there is no interval over seeds: that over its runs stands in."""
    ends = {
        (result.spec.method, row["rule"] or "", row["quantity"], row["side"] or "",
         int(row["num_particles"] or 0)): (row["low"], row["high"])
        for result in results
        for row in result.rows
        if row["step"] is None and row["run"] is None
    }  # fmt: skip
    keys = zip(
        means["method"], means["rule"], means["quantity"], means["side"], means["num_particles"],
        strict=True,
    )  # fmt: skip
    found = [ends[key] for key in keys]
    return means.assign(low=[low for low, _ in found], high=[high for _, high in found])
