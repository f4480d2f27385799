"""What the browser gets of a run for its panels: columns, all runs' log Z_hat, final samples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tsmc_widgets import numerics
from tsmc_widgets.evaluation.estimates import PooledOverRuns
from tsmc_widgets.evaluation.factors import FactorShare, factor_breakdown
from tsmc_widgets.smc.genealogy import paths
from tsmc_widgets.widgets.pages import Pages, array, pack, pad
from tsmc_widgets.widgets.record import Encoded, Recorder, number


@dataclass(frozen=True, slots=True)
class PanelEncoded(Encoded):
    """A record in the form of the panels' traits; ``samples`` is empty before T."""

    samples: bytes

    @property
    def traits(self) -> dict[str, Any]:
        """By the names of the traits, the header first."""
        return {**super(PanelEncoded, self).traits, "samples": self.samples}


class PanelPages(Pages):
    """Pages without tokens, but with log Z_hat of every run and what they say together."""

    def __init__(self, run: int, size: int, number: int) -> None:
        super().__init__(run, size, number)
        self._pooled: list[tuple[float, float, float]] = []

    def _encode(self, trace: Any, steps: slice, known: int) -> bytes:
        every = torch.from_numpy(np.asarray(array(trace.columns.log_z), dtype=np.float64))
        while len(self._pooled) < steps.stop:
            self._pooled.append(_pool(trace, every[:, len(self._pooled)]))
        pooled, low, high = np.array(self._pooled[steps]).T
        columns = self._population(trace, steps)
        columns["every_log_z"] = every[:, steps].T.reshape(-1).numpy()
        columns |= {"pooled": pooled, "pooled_low": low, "pooled_high": high}
        facts = {"id": self.number, "first": steps.start, "steps": steps.stop - steps.start}
        return pack(facts, columns)


class PanelRecorder(Recorder):
    """Encodes runs for the panels; of one that has grown since the last call, only what is new."""

    pages_type = PanelPages

    def __init__(self) -> None:
        super().__init__()
        self._factors: tuple[Any, list[dict[str, Any]]] = (None, [])

    def encode(
        self,
        trace: Any,
        *,
        exact_log_z: float | int | None = None,
        bracket: Any = None,
        run: int = 0,
        target: Any = None,
        run_id: int | None = None,
    ) -> PanelEncoded:
        """One run of a trace, and log Z_hat of all, as header, samples and pages.

        Args:
            trace: an ``SMCTrace``, finished or not.
            exact_log_z: log Z in nats where it is known.
            bracket: a certified bracket of log Z: anything with ``lower`` and ``upper``, or a pair
                of numbers, in nats.
            run: which of the trace's runs.
            target: the ``Target`` that was sampled; with it the factors of phi are looked at once
                the run is finished.
            run_id: equal numbers say that this is the run of the last call, grown; None is
                another run.
        """
        ends = None if bracket is None else bracket_ends(bracket)
        header, pages = self._begin(trace, exact_log_z, run, "", run_id)
        done = trace.steps_done == trace.num_steps
        header |= {
            "bracket": None if ends is None else [number(end) for end in ends],
            "ends": trace.info.eos_token_id is not None,
            "conditional": bool(trace.info.conditional),
            "one_target": _one_target(trace),
            "factors": self._breakdown(trace, target, run) if done and target is not None else [],
        }
        samples = final_samples(trace, run, self._count) if done else b""
        return PanelEncoded(header, pad(pages.pages), samples)

    def _breakdown(self, trace: Any, target: Any, run: int) -> list[dict[str, Any]]:
        key = (trace, target, run)
        if self._factors[0] is None or any(
            a is not b for a, b in zip(self._factors[0], key, strict=True)
        ):
            shares = factor_breakdown(trace, target, run=run)
            self._factors = (key, [_portable(share) for share in shares])
        return self._factors[1]


def bracket_ends(bracket: Any) -> tuple[float, float]:
    """Lower and upper end of a bracket, in nats; ValueError for anything that is none."""
    try:
        if hasattr(bracket, "lower"):
            ends = (float(bracket.lower), float(bracket.upper))
        else:
            ends = tuple(map(float, bracket))
    except (TypeError, ValueError, AttributeError):
        ends = ()
    if len(ends) != 2 or not ends[0] <= ends[1]:
        raise ValueError(
            "bracket must have a lower and an upper end in nats, the lower one first: a result of "
            f"bracket_log_z, or a pair of numbers; got {bracket!r}."
        )
    return ends


def final_samples(trace: Any, run: int, identity: int) -> bytes:
    """The distinct final texts of one run, heaviest first, with their numbers in float64.

    Particles with equal tokens stand together: their weights add up.
    """
    ancestors = torch.as_tensor(array(trace.columns.ancestors)[run : run + 1])
    ancestors = ancestors.to(torch.int64)

    def along(name: str) -> np.ndarray:
        values = torch.as_tensor(array(getattr(trace.columns, name))[run : run + 1])
        return paths(ancestors, values)[0].numpy()

    tokens = along("tokens")
    _, first, group = np.unique(tokens, axis=0, return_index=True, return_inverse=True)
    last = np.array(array(trace.columns.log_weights)[run, -1], dtype=np.float64)
    weights = numerics.normalise(torch.from_numpy(last)).numpy()
    weight = np.bincount(group.reshape(-1), weights, minlength=len(first))
    order = np.lexsort((first, -weight))
    slots = first[order]
    texts = trace.final_texts[run]
    # At T the column of log psi holds log phi.
    log_phi = array(trace.columns.log_psi)[run, -1]
    columns = {
        "weight": weight[order],
        "log_phi": np.asarray(log_phi, dtype=np.float64)[slots],
        "log_p0": along("log_p").astype(np.float64).sum(1)[slots],
        "copies": np.bincount(group.reshape(-1))[order].astype(np.uint32),
        "slot": slots.astype(np.uint32),
        "ended": _ended(tokens, trace.info.eos_token_id)[slots].astype(np.uint32),
    }
    return pack({"id": identity, "texts": [texts[slot] for slot in slots]}, columns)


def _ended(tokens: np.ndarray, eos: int | None) -> np.ndarray:
    """Step at which each text ended by EOS; 0 where it did not."""
    if eos is None:
        return np.zeros(len(tokens), dtype=np.int64)
    ends = tokens == eos
    return np.where(ends.any(1), ends.argmax(1) + 1, 0)


def _pool(trace: Any, log_z: torch.Tensor) -> tuple[float, float, float]:
    """Pooled estimate over runs with its 95 % interval; NaN where runs have no common target."""
    if not _one_target(trace):
        return (math.nan, math.nan, math.nan)
    pooled = PooledOverRuns.of(log_z, reciprocal=bool(trace.info.conditional))
    low, high = pooled.interval()
    known = math.isfinite(low) and math.isfinite(high)
    return (pooled.value, low, high) if known else (pooled.value, math.nan, math.nan)


def _one_target(trace: Any) -> bool:
    """Whether all runs estimate one log Z: not where each has an observation of its own."""
    observed = getattr(trace.info, "observed", None)
    return observed is None or all(each == observed[0] for each in observed)


def _portable(share: FactorShare) -> dict[str, Any]:
    return {
        "name": share.name,
        "mean_log_phi": number(share.mean_log_phi),
        "killed": number(share.killed),
        "killed_alone": number(share.killed_alone),
    }
