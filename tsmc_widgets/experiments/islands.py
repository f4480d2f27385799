"""Island runs: one large population split over workers, and pooled without bias."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from tsmc_widgets import numerics
from tsmc_widgets.errors import check_integer, check_kind
from tsmc_widgets.evaluation.estimates import LogZBounds
from tsmc_widgets.experiments.runs import map_runs
from tsmc_widgets.experiments.spec import RunSpec
from tsmc_widgets.targets.description import parse_problem


@dataclass(frozen=True, slots=True)
class IslandRuns:
    """Runs of K particles, each made of M islands of K / M that resample among themselves.

    Attributes:
        log_z: log of the mean over islands of Z_hat, for each run: exp of it is unbiased for Z.
        island_log_z: log Z_hat of each island.
        num_particles: K of all islands together.
        rule: when an island resampled, in words.
    """

    log_z: Float64[Tensor, " runs"]
    island_log_z: Float64[Tensor, "islands runs"]
    num_particles: int
    rule: str

    @property
    def bounds(self) -> LogZBounds:
        """The lower bound that the pooled runs give."""
        return LogZBounds.of(self.log_z, None, num_particles=self.num_particles, rule=self.rule)


def island_specs(spec: RunSpec, num_islands: int) -> list[RunSpec]:
    """The islands of a spec's runs, each a spec for one worker.

    Args:
        spec: one K, a multiple of ``num_islands``, and one rule.
        num_islands: M.
    """
    check_kind("spec", spec, RunSpec, "a RunSpec")
    check_integer("num_islands", num_islands)
    if len(spec.num_particles) != 1 or len(spec.rule) != 1:
        raise ValueError(
            f"islands are of one K and one rule; got {spec.num_particles} and {spec.rule}."
        )
    # Exact samples matter to islands only where they bring the observations along.
    num_exact = spec.num_exact if parse_problem(spec.problem).conditional else 0
    plain = spec.with_(measures=("runs",), num_exact=num_exact)
    return [plain.with_(island=(i, num_islands)) for i in range(num_islands)]


def run_islands(
    spec: RunSpec,
    num_islands: int,
    executor: Any = None,
    folder: str | Path | None = None,
) -> IslandRuns:
    """Split each run's K particles over workers and pool what they find.

    Islands do not exchange particles, so that nothing but one number for each run travels. Without
    resampling the pooled runs are those of one large batch; with it, each island's Z_hat is
    unbiased for Z and so is their mean, but islands of few particles lose more to resampling than
    one large population does.

    Args:
        spec: what to run; its ``num_particles`` is K of all islands together.
        num_islands: M.
        executor: as for ``map_runs``.
        folder: as for ``map_runs``: islands that are stored are not run again.

    Raises:
        SpecError: an island failed.
        WorkerLostError: workers died; islands that were finished are stored.
    """
    specs = island_specs(spec, num_islands)
    found: dict[int, list[dict[str, Any]]] = {}
    for result in map_runs(specs, executor, folder):
        found[result.raise_error().spec.island[0]] = result.rows
    log_z = torch.tensor(
        [[row["value"] for row in found[i]] for i in range(num_islands)], dtype=torch.float64
    )
    pooled = numerics.logmeanexp(log_z.T)
    return IslandRuns(pooled, log_z, spec.num_particles[0], found[0][0]["rule"])
