"""A run on record: columns of every step, who descends from whom, weighted samples."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tsmc_widgets import numerics
from tsmc_widgets.errors import check_integer, import_extra
from tsmc_widgets.smc import genealogy, storage
from tsmc_widgets.smc.columns import TraceColumns, TraceInfo
from tsmc_widgets.smc.noise import AddressedNoise
from tsmc_widgets.smc.prefixes import NextTokenTable
from tsmc_widgets.smc.resampling import invert_cdf
from tsmc_widgets.smc.state import SMCConfig, StepRecord
from tsmc_widgets.targets.target import Target

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False, repr=False)
class SMCTrace:
    """The record of R runs in one batch, whole or as far as they got.

    Columns keep their run axis; properties drop it where there is one run, so that ``log_z`` is a
    float for one run and has shape (R,) for several.

    Attributes:
        columns: what every step recorded.
        info: how the run came about.
        token_texts: readable text of every token that occurs, in a path or in a table.
        final_texts: generated text of each particle, a list for each run.
        tables: the likeliest next tokens at each step, where they were recorded.
    """

    columns: TraceColumns
    info: TraceInfo
    token_texts: Mapping[int, str]
    final_texts: Sequence[Sequence[str]]
    tables: Sequence[NextTokenTable] = ()

    @classmethod
    def from_records(
        cls, records: Sequence[StepRecord], target: Target, config: SMCConfig
    ) -> SMCTrace:
        """Trace of the steps recorded so far."""
        shape = (config.num_runs, config.num_particles)
        columns = TraceColumns.stack(records, shape)
        tables = [record.table for record in records] if config.top_k else []
        return cls(
            columns=columns,
            info=TraceInfo.of(target, config),
            token_texts=_TokenTexts(columns, target, tables),
            final_texts=_FinalTexts(columns, target),
            tables=tables,
        )

    @property
    def num_runs(self) -> int:
        """R."""
        return self.columns.ancestors.shape[0]

    @property
    def num_particles(self) -> int:
        """K."""
        return self.columns.ancestors.shape[2]

    @property
    def num_steps(self) -> int:
        """T."""
        return self.info.num_steps

    @property
    def steps_done(self) -> int:
        """Steps on record."""
        return self.columns.ancestors.shape[1]

    @property
    def done(self) -> bool:
        """Whether all T steps are on record."""
        return self.steps_done == self.num_steps

    @property
    def prompt(self) -> str:
        """Text of s_0."""
        return self.info.prompt

    @property
    def log_z(self) -> float | Float[Tensor, " runs"]:
        """Log Z_hat after the last step, in nats; at T its exponential is unbiased for Z."""
        zeros = torch.zeros(self.num_runs, dtype=torch.float64)
        values = self.columns.log_z[:, -1] if self.steps_done else zeros
        return float(values[0]) if self.num_runs == 1 else values

    @property
    def ess(self) -> Float[Tensor, "*runs steps"]:
        """Effective sample size after each step, in [1, K]."""
        return self._squeeze(self.columns.ess)

    @property
    def log_weights(self) -> Float[Tensor, "*runs particles"]:
        """Log weights after the last recorded step."""
        return self._squeeze(self._last("log_weights"))

    @property
    def weights(self) -> Float[Tensor, "*runs particles"]:
        """Normalised weights after the last recorded step."""
        return self._squeeze(numerics.normalise(self._last("log_weights")))

    @property
    def log_phi(self) -> Float[Tensor, "*runs particles"]:
        """Log phi of the final texts, in nats; NaN before T."""
        values = self._last("log_psi") if self.done else self._last("log_psi") * math.nan
        return self._squeeze(values)

    @property
    def tokens(self) -> Int[Tensor, "*runs particles steps"]:
        """Tokens of each particle's own path."""
        return self._squeeze(self.paths("tokens"))

    def texts(self) -> list[str] | list[list[str]]:
        """Generated text of each particle, without the prompt; a list for each of several runs."""
        return list(self.final_texts[0]) if self.num_runs == 1 else list(self.final_texts)

    def paths(self, column: str) -> Tensor:
        """A column along each particle's own path through its ancestors: (R, K, steps)."""
        return genealogy.paths(self.columns.ancestors, getattr(self.columns, column))

    def lineage(self, particle: int, *, run: int = 0) -> Int[Tensor, " steps"]:
        """Slots through which a particle of the last step descends, one for each step."""
        slots = self.num_particles
        if not 0 <= particle < slots:
            raise ValueError(f"particle must be in 0..{slots - 1}; got {particle}.")
        self._check_run(run)
        ones = torch.arange(slots).expand_as(self.columns.tokens)
        return genealogy.paths(self.columns.ancestors, ones)[run, particle]

    def surviving_ancestors(self) -> Int[Tensor, "*runs steps"]:
        """How many slots of each step have a descendant at the last step."""
        return self._squeeze(genealogy.surviving_ancestors(self.columns.ancestors))

    def log_z_variance(self, *, lag: int | None = None) -> float | Float[Tensor, " runs"]:
        """Variance of log Z_hat as each run alone estimates it (delta method; may be negative).

        Args:
            lag: None follows each family from the first step (Lee and Whiteley 2018): times
                Z_hat**2 it is unbiased for Var(Z_hat) under multinomial resampling, and near 1 it
                only says that all particles share an ancestor. A number of steps (Olsson and Douc
                2019) is stable for long runs. It leaves out what a step does later than that,
                which may be much where a weak twist leaves the decision to phi at T.
        """
        if not self.steps_done:
            raise ValueError("no step has been recorded yet: run at least one.")
        weights = numerics.normalise(self.columns.log_weights)
        values = genealogy.log_z_variance(
            self.columns.ancestors, self.columns.resampled, weights, lag
        )
        return float(values[0]) if self.num_runs == 1 else values

    def k_hat(self) -> float | Float[Tensor, " runs"]:
        """Pareto k of the last weights, the shape of their tail (PSIS, Vehtari et al. 2024).

        Averages over the particles cannot be trusted above min(1 - 1 / log10 K, 0.7): 0.45 for 64
        particles, 0.7 from 2,200 on. NaN where the tail cannot be fitted: fewer than 25
        particles, or equal or dead weights.
        """
        array_stats = import_extra("arviz_stats.base", "lab", "SMCTrace.k_hat").array_stats
        values = [_pareto_k(array_stats, row) for row in self._last("log_weights")]
        return values[0] if self.num_runs == 1 else torch.tensor(values, dtype=torch.float64)

    def to_frame(self) -> pd.DataFrame:
        """Weighted samples: run, particle, weight, text, and in nats log_weight, log_phi, log_p."""
        pd = import_extra("pandas", "lab", "a table of samples")
        runs, size = self.num_runs, self.num_particles
        shape = (runs, size)
        return pd.DataFrame(
            {
                "run": torch.arange(runs).unsqueeze(1).expand(shape).reshape(-1).numpy(),
                "particle": torch.arange(size).expand(shape).reshape(-1).numpy(),
                "text": [text for row in self.final_texts for text in row],
                "weight": self.weights.reshape(-1).numpy(),
                "log_weight": self.log_weights.reshape(-1).numpy(),
                "log_phi": self.log_phi.reshape(-1).numpy(),
                "log_p": self.paths("log_p").sum(-1).reshape(-1).numpy(),
            }
        )

    def resampled_frame(self, num_samples: int | None = None, *, seed: int) -> pd.DataFrame:
        """Rows of ``to_frame`` drawn by weight, ``num_samples`` for each run (K if None)."""
        size = self.num_particles if num_samples is None else num_samples
        check_integer("num_samples", size)
        noise = AddressedNoise(seed, self.num_runs)
        uniforms = noise.uniform(step=self.num_steps + 1, use="resample", num_particles=size)
        weights = numerics.normalise(self._last("log_weights"))
        if not bool((weights.sum(1) > 0).all()):
            raise ValueError("a run's weights are all zero: there is nothing to resample.")
        drawn = invert_cdf(weights, uniforms) + self.num_particles * torch.arange(
            self.num_runs
        ).unsqueeze(1)
        frame = self.to_frame().drop(columns=["weight", "log_weight"])
        return frame.iloc[drawn.reshape(-1).numpy()].reset_index(drop=True)

    def save(self, path: str | Path) -> Path:
        """Write the trace to one file, without pickle; an existing file is replaced whole."""
        return storage.save_parts(
            Path(path), self.columns, self.info, self.token_texts, self.final_texts, self.tables
        )

    @classmethod
    def load(cls, path: str | Path) -> SMCTrace:
        """Read a saved trace; raises TraceFormatError for any other file."""
        return cls(**storage.load_parts(Path(path)))

    def run(self, run: int) -> SMCTrace:
        """One run of several."""
        self._check_run(run)
        columns = {f.name: getattr(self.columns, f.name) for f in fields(self.columns)}
        distinct = columns.pop("distinct")
        picked = {name: values[run : run + 1] for name, values in columns.items()}
        observed = self.info.observed
        if observed is not None:
            observed = observed[run : run + 1]
        return SMCTrace(
            columns=TraceColumns(**picked, distinct=distinct),
            info=replace(self.info, observed=observed),
            token_texts=self.token_texts,
            final_texts=self.final_texts[run : run + 1],
            tables=[replace(table, rows=table.rows[run : run + 1]) for table in self.tables],
        )

    def __repr__(self) -> str:
        """A line with the run's shape and its estimate."""
        return (
            f"SMCTrace(runs={self.num_runs}, particles={self.num_particles}, "
            f"steps={self.steps_done}/{self.num_steps}, potential={self.info.potential!r})"
        )

    def _check_run(self, run: int) -> None:
        if not 0 <= run < self.num_runs:
            raise ValueError(f"run must be in 0..{self.num_runs - 1}; got {run}.")

    def _last(self, column: str) -> Tensor:
        values = getattr(self.columns, column)
        if not self.steps_done:
            return torch.zeros(values.shape[0], values.shape[2], dtype=values.dtype)
        return values[:, -1]

    def _squeeze(self, values: Tensor) -> Any:
        return values[0] if self.num_runs == 1 else values


class _TokenTexts(Mapping[int, str]):
    """Token texts, looked up one by one when they are wanted."""

    def __init__(
        self, columns: TraceColumns, target: Target, tables: Sequence[NextTokenTable]
    ) -> None:
        self._columns, self._target, self._tables = columns, target, tables
        self._texts: dict[int, str] = {}

    @cached_property
    def _seen(self) -> frozenset[int]:
        tokens = [self._columns.tokens, self._target.prompt_tokens]
        tokens += [table.tokens for table in self._tables]
        flat = torch.cat([each.reshape(-1).cpu() for each in tokens])
        return frozenset(flat.unique().tolist())

    def __getitem__(self, token: int) -> str:
        if token not in self._texts:
            if token not in self._seen:
                raise KeyError(token)
            self._texts[token] = self._target.lm.token_text(token)
        return self._texts[token]

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(self._seen))

    def __len__(self) -> int:
        return len(self._seen)


class _FinalTexts(Sequence[Sequence[str]]):
    """Generated texts, decoded when they are first wanted, equal ones once."""

    def __init__(self, columns: TraceColumns, target: Target) -> None:
        self._columns, self._target = columns, target

    @cached_property
    def _texts(self) -> list[list[str]]:
        paths = genealogy.paths(self._columns.ancestors, self._columns.tokens)
        if not paths.shape[-1]:
            return [[""] * paths.shape[1]] * paths.shape[0]
        flat = paths.reshape(-1, paths.shape[-1])
        distinct, inverse = torch.unique(flat, dim=0, return_inverse=True)
        texts = self._target.texts(distinct.to(self._target.prompt_tokens.device))
        return [[texts[i] for i in row] for row in inverse.reshape(paths.shape[:2]).tolist()]

    def __getitem__(self, run: Any) -> Any:
        return self._texts[run]

    def __len__(self) -> int:
        return self._columns.tokens.shape[0]


def _pareto_k(array_stats: Any, log_weights: Float[Tensor, " particles"]) -> float:
    alive = log_weights[torch.isfinite(log_weights)]
    if log_weights.shape[0] < 25 or alive.numel() < 2 or float(alive.max() - alive.min()) < 1e-9:
        return math.nan
    # A zero weight enters as the smallest positive double would.
    filled = torch.where(torch.isfinite(log_weights), log_weights, alive.max() - 745.0)
    # psislw takes log likelihoods, whose reciprocals are the weights of leave-one-out.
    with np.errstate(all="ignore"):
        return float(array_stats.psislw(-filled.numpy())[1])
