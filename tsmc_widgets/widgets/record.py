"""What the browser gets of a run: a small header, and all columns in one buffer of bytes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tsmc_widgets import numerics
from tsmc_widgets.smc.genealogy import relative_variance

MAX_SAMPLES = 60
"""Different final texts that are sent; the heaviest come first."""

_TINY = np.finfo(np.float32).smallest_subnormal


@dataclass(frozen=True, slots=True)
class Encoded:
    """A record in the form of the view's two traits."""

    header: dict[str, Any]
    data: bytes


def encode(
    trace: Any, *, exact_log_z: float | None = None, run: int = 0, target: str = "", run_id: int = 0
) -> Encoded:
    """One run of a trace as header and bytes.

    Args:
        trace: an ``SMCTrace``, finished or not.
        exact_log_z: log Z in nats where it is known.
        run: which of the trace's runs.
        target: what stands beside the prompt; phi in words where it is empty.
        run_id: tells the view whether this is the run it shows, grown, or another one.
    """
    count = int(trace.num_runs)
    if not 0 <= run < count:
        raise ValueError(f"run must be one of 0..{count - 1}; got {run!r}.")
    columns = _columns(trace, run)
    texts, columns["tokens"], eos = _intern(trace, columns["tokens"])
    if exact_log_z is not None:
        columns["exact_log_z"] = np.array([exact_log_z], dtype=np.float64)
    samples, num_texts = _samples(trace, run, columns)
    entries, data = _pack(columns)
    header = {
        "run_id": run_id,
        "num_particles": int(trace.num_particles),
        "num_steps": int(trace.num_steps),
        "steps_done": int(trace.steps_done),
        "num_runs": count,
        "run": run,
        "prompt": str(trace.prompt),
        "target": target or f"φ = {trace.info.potential}",
        "facts": list(_facts(trace.info)),
        "ess_threshold": trace.info.ess_threshold,
        "token_texts": texts,
        "eos": eos,
        "samples": samples,
        "num_texts": num_texts,
        "columns": entries,
        "num_bytes": len(data),
    }
    return Encoded(header, data)


def _array(column: Any, run: int) -> np.ndarray:
    """A column of one run as numpy; it may be a tensor on any device."""
    one = column[run]
    return one.detach().cpu().numpy() if isinstance(one, torch.Tensor) else np.asarray(one)


def _columns(trace: Any, run: int) -> dict[str, np.ndarray]:
    """The columns of one run, step-major, in the smallest types that show them truly."""
    recorded = trace.columns
    slots = np.uint16 if trace.num_particles <= 2**16 else np.uint32
    log_weights = _array(recorded.log_weights, run)
    weights = numerics.normalise(torch.from_numpy(np.array(log_weights))).numpy()
    # A weight too small for float32 must not look dead.
    weights = np.where(np.isneginf(log_weights), 0.0, np.maximum(weights, _TINY))
    return {
        "tokens": _array(recorded.tokens, run),
        "ancestors": _array(recorded.ancestors, run).astype(slots),
        "weights": weights.astype(np.float32),
        "log_increment": _array(recorded.log_increment, run).astype(np.float32),
        "log_psi": _array(recorded.log_psi, run).astype(np.float32),
        "log_p": _array(recorded.log_p, run).astype(np.float32),
        "resampled": _array(recorded.resampled, run).astype(np.uint8),
        "ess": _array(recorded.ess, run).astype(np.float64),
        "log_z": _array(recorded.log_z, run).astype(np.float64),
        "log_z_error": _standard_errors(trace, run, weights),
    }


def _standard_errors(trace: Any, run: int, weights: np.ndarray) -> np.ndarray:
    """Standard error of the running log Z_hat after each step, from this run's genealogy alone.

    NaN where it says nothing: all particles share one ancestor, or slot 0 was given.
    """
    ancestors = torch.as_tensor(trace.columns.ancestors[run : run + 1])
    resampled = torch.as_tensor(trace.columns.resampled[run : run + 1])
    shares = torch.from_numpy(weights).unsqueeze(0)
    errors = np.full(trace.steps_done, np.nan)
    if trace.info.conditional:
        return errors
    for t in range(1, trace.steps_done + 1):
        past = (ancestors[:, :t], resampled[:, :t], shares[:, t - 1])
        variance = float(relative_variance(*past, since=1))
        # Zero variance may come out a rounding error below zero.
        if -1e-9 < variance < 1.0:
            errors[t - 1] = max(variance, 0.0) ** 0.5
    return errors


def _intern(trace: Any, tokens: np.ndarray) -> tuple[list[str], np.ndarray, int]:
    """Texts of the tokens that occur, the tokens as places in that list, and an absorbing EOS's."""
    token_texts = trace.token_texts
    ids = sorted(token_texts)
    table = np.zeros(max(ids, default=0) + 1, dtype=np.uint32)
    table[ids] = np.arange(len(ids))
    places = table[tokens] if tokens.size else np.zeros(tokens.shape, dtype=np.uint32)
    smallest = np.uint16 if len(ids) <= 2**16 else np.uint32
    ends = trace.info.eos_token_id
    eos = ids.index(ends) if ends in ids else -1
    return [token_texts[i] for i in ids], places.astype(smallest), eos


def _samples(
    trace: Any, run: int, columns: dict[str, np.ndarray]
) -> tuple[list[dict[str, Any]], int]:
    """The heaviest final texts, equal ones together; adds their numbers to ``columns``."""
    found: dict[str, list[int]] = {}
    if trace.steps_done == trace.num_steps:
        for slot, text in enumerate(trace.final_texts[run]):
            found.setdefault(text, []).append(slot)
    final = columns["weights"][-1] if found else np.zeros(0)
    share = {text: float(final[slots].sum()) for text, slots in found.items()}
    heaviest = sorted(found, key=lambda text: (-share[text], found[text][0]))[:MAX_SAMPLES]
    # At T the column of log psi holds log phi.
    log_phi = _array(trace.columns.log_psi, run)[-1] if found else np.zeros(0)
    columns["sample_weights"] = np.array([share[text] for text in heaviest], dtype=np.float32)
    columns["sample_log_phi"] = np.array(
        [log_phi[found[text][0]] for text in heaviest], dtype=np.float32
    )
    samples = [
        {"text": text, "copies": len(found[text]), "slot": found[text][0]} for text in heaviest
    ]
    return samples, len(found)


def _pack(columns: dict[str, np.ndarray]) -> tuple[list[dict[str, Any]], bytes]:
    """All columns in one buffer, each at a multiple of 8, and where each one lies."""
    entries, chunks, offset = [], [], 0
    for name, column in columns.items():
        chunk = np.ascontiguousarray(column).astype(column.dtype.newbyteorder("<")).tobytes()
        entries.append(
            {"name": name, "dtype": column.dtype.name, "offset": offset, "length": column.size}
        )
        padding = -len(chunk) % 8
        chunks.append(chunk + bytes(padding))
        offset += len(chunk) + padding
    return entries, b"".join(chunks)


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
