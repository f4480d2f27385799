"""SMCTrace: the columns that every step recorded, lineages, weighted samples, saving."""

from __future__ import annotations

import json
import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tsmc_widgets import numerics
from tsmc_widgets.errors import (
    NoTokenizerError,
    TraceFormatError,
    check_integer,
    check_kind,
    import_extra,
    quoted,
)
from tsmc_widgets.files import load_json, write_atomically
from tsmc_widgets.smc import genealogy
from tsmc_widgets.smc.noise import AddressedNoise
from tsmc_widgets.smc.prefixes import NextTokenTable
from tsmc_widgets.smc.resampling import ESSBelow, invert_cdf
from tsmc_widgets.smc.state import SMCConfig, StepRecord
from tsmc_widgets.targets.target import Target, check_target
from tsmc_widgets.twists.storage import fingerprint, other_model

if TYPE_CHECKING:
    import pandas as pd


FORMAT = "tsmc_widgets.SMCTrace"
VERSION = 2
_HEADER_BYTES = 1000
"""Of a header, for each token at most: its text, and its share of the rest."""
_MOST_TOKENS = 2**20
"""Of a vocabulary."""
_PER_RUN = ("resampled", "ess", "log_z")
_PER_PARTICLE = (
    "ancestors", "tokens", "log_p", "log_q", "log_psi", "log_increment", "log_weights",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class TraceColumns:
    """What every step recorded; see ``StepRecord`` for what each column holds."""

    resampled: Bool[Tensor, "runs steps"]
    ancestors: Int[Tensor, "runs steps particles"]
    tokens: Int[Tensor, "runs steps particles"]
    log_p: Float[Tensor, "runs steps particles"]
    log_q: Float[Tensor, "runs steps particles"]
    log_psi: Float[Tensor, "runs steps particles"]
    log_increment: Float[Tensor, "runs steps particles"]
    log_weights: Float[Tensor, "runs steps particles"]
    ess: Float[Tensor, "runs steps"]
    log_z: Float[Tensor, "runs steps"]
    distinct: Int[Tensor, " steps"]

    @classmethod
    def stack(cls, records: Sequence[StepRecord], shape: tuple[int, int]) -> TraceColumns:
        """Columns of the records of (R, K) = ``shape`` runs and particles; none gives T = 0."""
        runs, size = shape
        kinds = {"resampled": torch.bool, "ancestors": torch.int64, "tokens": torch.int64}
        columns = {}
        for name in (*_PER_RUN, *_PER_PARTICLE):
            if records:
                columns[name] = torch.stack([getattr(r, name) for r in records], dim=1).cpu()
            else:
                empty = (runs, 0) if name in _PER_RUN else (runs, 0, size)
                columns[name] = torch.zeros(empty, dtype=kinds.get(name, torch.float64))
        distinct = torch.tensor([r.distinct for r in records], dtype=torch.int64)
        return cls(**columns, distinct=distinct)


class _RecordedColumns(TraceColumns):
    """Columns that are stacked when one is first read; the records stay until that succeeds."""

    __slots__ = ("_source",)

    @classmethod
    def of(cls, records: Sequence[StepRecord], shape: tuple[int, int]) -> TraceColumns:
        """Columns of the records of (R, K) = ``shape`` runs and particles."""
        self = cls.__new__(cls)
        object.__setattr__(self, "_source", (records, shape))
        return self

    def __getattr__(self, name: str) -> Tensor:
        """A column that is not there yet."""
        names = [f.name for f in fields(TraceColumns)]
        if name not in names:
            raise AttributeError(name)
        source = self._source  # None where another thread has just stacked them.
        if source is not None:
            stacked = TraceColumns.stack(*source)
            for each in names:
                object.__setattr__(self, each, getattr(stacked, each))
            object.__setattr__(self, "_source", None)
        return object.__getattribute__(self, name)


@dataclass(frozen=True, slots=True)
class TraceInfo:
    """What a trace knows of how it came about: words and numbers only, so that it can be saved.

    Attributes:
        num_steps: T, also when fewer have been recorded.
        prompt: text of s_0; None where the model has no tokenizer.
        prompt_tokens: ids of s_0.
        potential: the potential in a line.
        proposal: the proposal in a few words.
        twist: the twist's kind; None without one.
        resampler: resampling scheme.
        rule: when to resample.
        ess_threshold: the rule's fraction of K; None where the rule is not about ESS.
        seed: of the noise; None where it was scripted.
        first_run: address of the first run under that seed; None where it was scripted.
        conditional: whether slot 0 holds an exact sample (conditional SMC).
        eos_token_id: the absorbing EOS, which fills up ended texts; None with fixed T.
        observed: what is observed in each run; None where the target waits for nothing.
        rules: ``Target.rules`` but for EOS: stop and power, where they are given.
    """

    num_steps: int
    prompt: str | None
    prompt_tokens: list[int]
    potential: str
    proposal: str
    twist: str | None
    resampler: str
    rule: str
    ess_threshold: float | None
    seed: int | None
    first_run: int | None
    conditional: bool
    eos_token_id: int | None
    observed: list[list[int]] | None = None
    rules: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, target: Target, config: SMCConfig) -> TraceInfo:
        """Information on a target sampled by a configuration."""
        noise = config.noise if isinstance(config.noise, AddressedNoise) else None
        return cls(
            num_steps=target.num_steps,
            prompt=_prompt_text(target),
            prompt_tokens=target.prompt_tokens.tolist(),
            potential=target.potential.describe(),
            proposal=config.proposal.describe(),
            twist=None if config.twist is None else config.twist.form,
            resampler=config.resampler,
            rule=config.rule.describe(),
            ess_threshold=config.rule.threshold if isinstance(config.rule, ESSBelow) else None,
            seed=None if noise is None else noise.seed,
            first_run=None if noise is None else noise.first_run,
            conditional=config.retained is not None,
            eos_token_id=target.eos_token_id if target.absorbs_eos else None,
            observed=None if config.observed is None else config.observed.tolist(),
            rules={name: value for name, value in target.rules.items() if name != "eos"},
        )


def _prompt_text(target: Target) -> str | None:
    try:
        return target.lm.decode(target.prompt_tokens.unsqueeze(0))[0]
    except NoTokenizerError:
        return None


# What reading a foreign, damaged or truncated file may raise.
_NOT_A_TRACE = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    EOFError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)


def _save(trace: SMCTrace, path: Path) -> Path:
    """Write a trace; the file appears whole or not at all."""
    info = asdict(trace.info)
    if not info["rules"]:
        del info["rules"]  # As it was before there were any.
    header = {
        "format": FORMAT,
        "version": VERSION,
        "info": info,
        "model": trace.model if isinstance(trace.model, Mapping) else fingerprint(trace.model),
        "token_texts": {str(token): text for token, text in trace.token_texts.items()},
        "final_texts": [list(texts) for texts in trace.final_texts],
        "tables": len(trace.tables),
    }
    arrays = _tensors(trace.columns)
    for t, table in enumerate(trace.tables):
        arrays |= {f"table_{t}_{name}": values for name, values in _tensors(table).items()}
    packed: dict[str, Any] = {name: values.cpu().numpy() for name, values in arrays.items()}
    packed["header"] = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)
    with write_atomically(path) as part, part.open("xb") as file:
        np.savez_compressed(file, **packed)
    return path


def _load(path: Path) -> dict[str, Any]:
    """Read what ``_save`` wrote: the arguments of ``SMCTrace``."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}: give the path of a saved trace.")
    try:
        _check_declared(path)
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        header = load_json(arrays.pop("header").tobytes())
        if header["format"] != FORMAT or not isinstance(header["version"], int):
            raise KeyError("format")
    except TraceFormatError:
        raise
    except _NOT_A_TRACE as error:
        raise TraceFormatError(
            f"{str(path)!r} is not a trace saved by this package, or it is damaged or cut short "
            f"({type(error).__name__}). Only files written by SMCTrace.save can be loaded."
        ) from error
    if header["version"] > VERSION:
        raise TraceFormatError(
            f"{str(path)!r} is a trace of format {header['version']}; this version of the package "
            f"reads up to format {VERSION}: update tsmc_widgets."
        )

    def read(kind: type, prefix: str = "") -> Any:
        return kind(**{f.name: torch.from_numpy(arrays[prefix + f.name]) for f in fields(kind)})

    try:
        for t in range(header["tables"] if header["version"] < 2 else 0):
            nothing = np.full(len(arrays[f"table_{t}_tokens"]), np.nan)
            arrays[f"table_{t}_log_value"] = nothing
        parts = {
            "columns": read(TraceColumns),
            "info": TraceInfo(**header["info"]),
            "model": header.get("model"),
            "token_texts": {int(token): text for token, text in header["token_texts"].items()},
            "final_texts": header["final_texts"],
            "tables": [read(NextTokenTable, f"table_{t}_") for t in range(header["tables"])],
        }
        _check_indices(parts["columns"], parts["tables"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise TraceFormatError(
            f"{str(path)!r} lacks a part of a trace ({error}): it was not written whole."
        ) from error
    return parts


def _check_declared(path: Path) -> None:
    """Check the shapes that a file declares before an array is read, which may take any memory."""
    with zipfile.ZipFile(path) as archive:
        sizes = {name.removesuffix(".npy"): _shape(archive, name) for name in archive.namelist()}
    columns = {name: sizes[name] for name in (*_PER_RUN, *_PER_PARTICLE) if name in sizes}
    runs, steps, size = next((s for s in columns.values() if len(s) == 3), (0, 0, 0))
    for name, shape in columns.items():
        if shape != ((runs, steps) if name in _PER_RUN else (runs, steps, size)):
            raise TraceFormatError(
                f"{str(path)!r} has columns of different shapes: {sorted(set(columns.values()))}."
            )
    slots = max(runs * size, 1)
    most = {"header": _HEADER_BYTES * (slots * (steps + 1) + len(sizes)), "distinct": steps}
    for name, shape in sizes.items():
        # A table has a row for each distinct prefix at most, and lists each token of V once.
        entries = most.get(name, slots * _MOST_TOKENS)
        if name not in columns and math.prod(shape) > entries:
            raise TraceFormatError(
                f"{str(path)!r} says that its {name} has shape {shape}, which is too large for "
                f"{runs} runs of {size} particles over {steps} steps."
            )
    tables = {f"table_{t}_{f.name}" for t in range(steps) for f in fields(NextTokenTable)}
    foreign = sizes.keys() - tables - {f.name for f in fields(TraceColumns)} - {"header"}
    if foreign:
        raise TraceFormatError(f"{str(path)!r} holds what no trace has: {quoted(min(foreign))}.")


def _shape(archive: zipfile.ZipFile, name: str) -> tuple[int, ...]:
    with archive.open(name) as member:
        version = np.lib.format.read_magic(member)
        if version != (1, 0):
            raise ValueError(f"{name} is an array of another format")
        shape, _, dtype = np.lib.format.read_array_header_1_0(member)
    if dtype.kind not in "bifu" or dtype.itemsize > 8:
        raise ValueError(f"{name} holds {dtype}")
    return shape


def _check_indices(columns: TraceColumns, tables: Sequence[NextTokenTable]) -> None:
    """Raise ValueError where an index points at nothing."""
    size = columns.ancestors.shape[2]
    limits = [("ancestors", columns.ancestors, size)]
    limits += [("rows", table.rows, len(table.tokens)) for table in tables]
    for name, values, limit in limits:
        if values.numel() and not 0 <= int(values.min()) <= int(values.max()) < limit:
            raise ValueError(f"its {name} must be in 0..{limit - 1}")


def _tensors(record: TraceColumns | NextTokenTable) -> dict[str, Tensor]:
    return {f.name: getattr(record, f.name) for f in fields(record)}


@dataclass(frozen=True, eq=False, repr=False)
class SMCTrace:
    """The record of R runs in one batch, whole or as far as they got.

    Columns keep their run axis; properties drop it where there is one run, so that ``log_z`` is a
    float for one run and has shape (R,) for several.

    Attributes:
        columns: what every step recorded.
        info: how the run came about.
        token_texts: readable text of every token that occurs, in a path or in a table.
        final_texts: generated text of each particle, a list for each run; ids such as ``#12 #7``
            where the model has no tokenizer.
        tables: the likeliest next tokens at each step, where they were recorded.
        model: p0, or its fingerprint where the trace was loaded; None if it was saved without.
    """

    columns: TraceColumns
    info: TraceInfo
    token_texts: Mapping[int, str]
    final_texts: Sequence[Sequence[str]]
    tables: Sequence[NextTokenTable] = ()
    model: Any = None

    @classmethod
    def from_records(
        cls,
        records: Sequence[StepRecord],
        target: Target,
        config: SMCConfig,
        info: TraceInfo | None = None,
    ) -> SMCTrace:
        """Trace of the steps recorded so far; ``info`` is ``TraceInfo.of(target, config)``."""
        columns = _RecordedColumns.of(records, (config.num_runs, config.num_particles))
        tables = [record.table for record in records] if config.top_k else []
        return cls(
            columns=columns,
            info=TraceInfo.of(target, config) if info is None else info,
            token_texts=_TokenTexts(columns, target, tables),
            final_texts=_FinalTexts(columns, target),
            tables=tables,
            model=target.lm,
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
        """Text of s_0; ids such as ``#12 #7`` where the model has no tokenizer."""
        if self.info.prompt is None:
            return " ".join(f"#{token}" for token in self.info.prompt_tokens)
        return self.info.prompt

    @property
    def log_z(self) -> float | Float[Tensor, " runs"]:
        """Log Z_hat after the last step, in nats; at T its exponential is unbiased for Z.

        It takes q and psi_t > 0 on every prefix of every text that sigma allows: other texts are
        never drawn, or lost, and Z_hat is too small on average by their share.
        """
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
        """Generated text of each particle, without the prompt; a list for each of several runs.

        Raises:
            NoTokenizerError: the model has none; ``tokens`` holds what was sampled.
        """
        if self.info.prompt is None:
            raise NoTokenizerError(
                "This trace is of a model without a tokenizer, so it has no texts: take "
                "trace.tokens, or trace.final_texts for labels made of token ids."
            )
        texts = [list(row) for row in self.final_texts]
        return texts[0] if self.num_runs == 1 else texts

    def paths(self, column: str) -> Tensor:
        """A column along each particle's own path through its ancestors: (R, K, steps)."""
        return genealogy.paths(self.columns.ancestors, getattr(self.columns, column))

    def lineage(self, particle: int, *, run: int = 0) -> Int[Tensor, " steps"]:
        """Slots through which a particle of the last step descends, one for each step."""
        slots = self.num_particles
        if not 0 <= particle < slots:
            raise ValueError(f"particle must be in 0..{slots - 1}; got {particle}.")
        self._check_run(run)
        return genealogy.lineages(self.columns.ancestors)[run, :, particle]

    def surviving_ancestors(self) -> Int[Tensor, "*runs steps"]:
        """How many slots of each step have a descendant at the last step."""
        return self._squeeze(genealogy.surviving_ancestors(self.columns.ancestors))

    @property
    def tells_variance(self) -> bool:
        """Whether one run can tell its own ``log_z_variance``: ancestors are independent draws."""
        info = self.info
        never = info.rule == "never" or info.ess_threshold == 0
        return not info.conditional and (info.resampler == "multinomial" or never)

    def log_z_variance(self, *, lag: int | None = None) -> float | Float[Tensor, " runs"]:
        """Variance of log Z_hat as each run alone estimates it (delta method; may be negative).

        It holds where ancestors are independent draws: under multinomial resampling, or none. The
        other schemes spread ancestors more evenly, and a single run does not know by how much.

        Args:
            lag: None follows each family from the first step (Lee and Whiteley 2018): times
                Z_hat**2 it is unbiased for Var(Z_hat), and near 1 it only says that all particles
                share an ancestor. A number of steps (Olsson and Douc 2019) is stable for long
                runs. It leaves out what a step does later than that, which may be much where a
                weak twist leaves the decision to phi at T.

        Raises:
            ValueError: another resampling scheme, or conditional SMC, whose slot 0 is given.
        """
        info = self.info
        if not self.tells_variance:
            what = "conditional SMC" if info.conditional else f"{info.resampler} resampling"
            raise ValueError(
                f"one run cannot tell the variance of log Z_hat under {what}, only under "
                "multinomial resampling or none: run several, num_runs=8 say, and take "
                "trace.log_z.std()."
            )
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
        values = [pareto_k(array_stats, row) for row in self._last("log_weights")]
        return values[0] if self.num_runs == 1 else torch.tensor(values, dtype=torch.float64)

    def to_frame(self) -> pd.DataFrame:
        """Weighted samples: run, particle, weight, text, and in nats log_weight, log_phi, log_p.

        log_p is that of p0, times the target's power where it has one.
        """
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
        """Rows of ``to_frame`` drawn by weight, ``num_samples`` for each run (K if None).

        A run whose weights are all zero has none.
        """
        size = self.num_particles if num_samples is None else num_samples
        check_integer("num_samples", size)
        noise = AddressedNoise(seed, self.num_runs)
        uniforms = noise.uniform(step=self.num_steps + 1, use="resample", num_particles=size)
        weights = numerics.normalise(self._last("log_weights"))
        alive = (weights.sum(1) > 0).nonzero()
        if not alive.numel():
            raise ValueError("all runs' weights are all zero: there is nothing to resample.")
        runs = alive.squeeze(1)
        drawn = invert_cdf(weights[runs], uniforms[runs]) + self.num_particles * alive
        frame = self.to_frame().drop(columns=["weight", "log_weight"])
        return frame.iloc[drawn.reshape(-1).numpy()].reset_index(drop=True)

    def save(self, path: str | Path) -> Path:
        """Write the trace to one file, without pickle; an existing file is replaced whole."""
        return _save(self, Path(path))

    @classmethod
    def load(cls, path: str | Path) -> SMCTrace:
        """Read a saved trace; raises TraceFormatError for any other file."""
        return cls(**_load(Path(path)))

    def run(self, run: int) -> SMCTrace:
        """One run of several."""
        self._check_run(run)
        one = slice(run, run + 1)
        columns = _tensors(self.columns)
        distinct = columns.pop("distinct")
        observed = self.info.observed
        return SMCTrace(
            columns=TraceColumns(**{n: c[one] for n, c in columns.items()}, distinct=distinct),
            info=replace(self.info, observed=None if observed is None else observed[one]),
            token_texts=self.token_texts,
            final_texts=self.final_texts[one],
            tables=[replace(table, rows=table.rows[one]) for table in self.tables],
            model=self.model,
        )

    def check_target(self, target: Target) -> None:
        """Raise ValueError unless the target is the one that was sampled, as far as is known."""
        check_target(target)
        eos = target.eos_token_id if target.absorbs_eos else None
        pairs = {
            "potential": (self.info.potential, target.potential.describe()),
            "number of steps": (self.num_steps, target.num_steps),
            "prompt": (list(self.info.prompt_tokens), target.prompt_tokens.tolist()),
            "absorbing EOS": (self.info.eos_token_id, eos),
        }
        differences = [
            f"{name} {quoted(own)}, and the target has {quoted(other)}"
            for name, (own, other) in pairs.items()
            if own != other
        ]
        if self.model is not None and self.model is not target.lm:
            known = isinstance(self.model, Mapping)
            model = other_model(target.lm, self.model if known else fingerprint(self.model))
            differences += [f"another model: {model}"] if model else []
        if differences:
            raise ValueError(
                f"the trace is of another target: {differences[0]}. Give the target that was "
                "sampled."
            )

    def __repr__(self) -> str:
        """A line with the run's shape and its estimate."""
        return (
            f"SMCTrace(runs={self.num_runs}, particles={self.num_particles}, "
            f"steps={self.steps_done}/{self.num_steps}, potential={self.info.potential!r})"
        )

    def _check_run(self, run: int) -> None:
        if check_integer("run", run, at_least=0) >= self.num_runs:
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
        texts = self._target.labels(distinct.to(self._target.prompt_tokens.device))
        return [[texts[i] for i in row] for row in inverse.reshape(paths.shape[:2]).tolist()]

    def __getitem__(self, run: Any) -> Any:
        return self._texts[run]

    def __len__(self) -> int:
        return self._columns.tokens.shape[0]


EQUAL = 1e-7
"""Log weights that differ by less count as equal."""


def pareto_k(array_stats: Any, log_weights: Float[Tensor, " particles"]) -> float:
    """Pareto k of the tail of weights (PSIS); NaN for fewer than 25 or equal ones."""
    alive = log_weights[torch.isfinite(log_weights)]
    if log_weights.shape[0] < 25 or alive.numel() < 2:
        return math.nan
    # Equal weights differ by what rounding leaves of them, and the tail begins between two weights.
    log_weights = ((log_weights - alive.max()) / EQUAL).round() * EQUAL
    alive = log_weights[torch.isfinite(log_weights)]
    if float(alive.min()) == 0:
        return math.nan
    # A zero weight enters as the smallest positive double would.
    filled = torch.where(torch.isfinite(log_weights), log_weights, alive.max() - 745.0)
    # psislw takes log likelihoods, whose reciprocals are the weights of leave-one-out.
    try:
        with np.errstate(all="ignore"):
            return float(array_stats.psislw(-filled.numpy())[1])
    except ValueError:
        # All weights of the tail are equal.
        return math.nan


def check_trace(trace: Any) -> None:
    """Raise TypeError unless it is an ``SMCTrace``."""
    check_kind("trace", trace, SMCTrace, "an SMCTrace, as run_smc gives")
