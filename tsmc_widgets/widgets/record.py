"""What the browser gets of a run: a small header, and pages of bytes that only grow."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tsmc_widgets.widgets.pages import NUM_PAGES, Pages, array, pad, unpack

MAX_SAMPLES = 60
"""Different final texts that are sent; the heaviest come first."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A record in the form of the view's traits."""

    header: dict[str, Any]
    pages: tuple[bytes, ...]

    @property
    def traits(self) -> dict[str, Any]:
        """By the names of the traits, the header first."""
        return {"header": self.header, **{f"page{i}": page for i, page in enumerate(self.pages)}}


class Recorder:
    """Encodes runs; of one that has grown since the last call, only what is new."""

    pages_type = Pages
    """What encodes the columns."""

    def __init__(self) -> None:
        self._key: tuple | None = None
        self._pages: Pages | None = None
        self._count = 0

    def encode(
        self,
        trace: Any,
        *,
        exact_log_z: float | int | None = None,
        run: int = 0,
        target: str = "",
        run_id: int | None = None,
    ) -> Encoded:
        """One run of a trace as header and pages.

        Args:
            trace: an ``SMCTrace``, finished or not.
            exact_log_z: log Z in nats where it is known.
            run: which of the trace's runs.
            target: what stands beside the prompt; phi in words where it is empty.
            run_id: equal numbers say that this is the run of the last call, grown; None is
                another run.
        """
        header, pages = self._begin(trace, exact_log_z, run, target, run_id)
        header |= {
            "facts": list(_facts(trace.info)),
            "has_twist": trace.info.twist is not None,
            "eos": pages.words.find(trace.info.eos_token_id),
        }
        return Encoded(header | _samples(trace, run, pages), pad(pages.pages))

    def _begin(
        self, trace: Any, exact_log_z: float | int | None, run: int, target: str, run_id: int | None
    ) -> tuple[dict[str, Any], Pages]:
        """What the header of every view of a run holds, and the pages, grown."""
        count = int(trace.num_runs)
        if not 0 <= run < count:
            raise ValueError(f"run must be one of 0..{count - 1}; got {run!r}.")
        pages = self._pages_of(trace, run, run_id)
        pages.extend(trace)
        header = {
            "id": self._count,
            "num_particles": int(trace.num_particles),
            "num_steps": int(trace.num_steps),
            "steps_done": int(trace.steps_done),
            "page_steps": pages.size,
            "run": run,
            "runs": _runs(trace),
            "prompt": str(trace.prompt),
            "target": target or f"φ = {trace.info.potential}",
            "ess_threshold": trace.info.ess_threshold,
            "exact_log_z": None if exact_log_z is None else number(exact_log_z),
        }
        return header, pages

    def _pages_of(self, trace: Any, run: int, run_id: int | None) -> Pages:
        key = (run_id, run, trace.num_particles, trace.num_steps)
        grown = self._pages is not None and self._pages.steps <= trace.steps_done
        if run_id is None or self._key != key or not grown:
            self._count += 1
            self._key = key
            size = max(1, math.ceil(trace.num_steps / NUM_PAGES))
            self._pages = self.pages_type(run, size, self._count)
        return self._pages


def encode(trace: Any, **options: Any) -> Encoded:
    """One run of a trace, as ``Recorder.encode`` gives it."""
    return Recorder().encode(trace, **options)


def number(value: Any) -> float | str:
    """A number that JSON can hold; JavaScript's ``Number`` reads it back."""
    value = float(value)
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _runs(trace: Any) -> list[float | str]:
    """Log Z_hat of every run so far."""
    if not trace.steps_done:
        return [0.0] * int(trace.num_runs)
    return [number(value) for value in array(trace.columns.log_z)[:, -1]]


def _samples(trace: Any, run: int, pages: Pages) -> dict[str, Any]:
    """The heaviest final texts of a finished run, equal ones together."""
    found: dict[str, list[int]] = {}
    if trace.steps_done == trace.num_steps:
        for slot, text in enumerate(trace.final_texts[run]):
            found.setdefault(text, []).append(slot)
    weights = (
        unpack(pages.pages[-1])[1]["weights"].reshape(-1, trace.num_particles)[-1]
        if (found)
        else np.zeros(0)
    )
    share = {text: float(weights[slots].sum(dtype=np.float64)) for text, slots in found.items()}
    heaviest = sorted(found, key=lambda text: (-share[text], found[text][0]))[:MAX_SAMPLES]
    # At T the column of log psi holds log phi.
    log_phi = array(trace.columns.log_psi[run])[-1] if found else np.zeros(0)
    samples = [
        {
            "text": text,
            "copies": len(found[text]),
            "slot": found[text][0],
            "weight": number(share[text]),
            "log_phi": number(log_phi[found[text][0]]),
        }
        for text in heaviest
    ]
    return {"samples": samples, "num_texts": len(found)}


def _facts(info: Any) -> Iterable[str]:
    """How the run was made, a fact a string."""
    yield f"proposal: {info.proposal}"
    yield "no twist (ψ = 1)" if info.twist is None else f"twist: {_spaced(info.twist)}"
    if info.rule == "never" or info.ess_threshold == 0:
        yield "no resampling"
    else:
        yield f"{info.resampler} resampling {'when ' if 'ESS' in info.rule else ''}{info.rule}"
    if info.conditional:
        yield "slot 0 holds an exact sample"
    if info.seed is not None:
        yield f"seed {info.seed}"


def _spaced(name: str) -> str:
    """The name of a class of twists in plain letters: LookAheadTwist is look-ahead."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", name.removesuffix("Twist")).lower() or name
