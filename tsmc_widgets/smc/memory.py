"""A bound on the memory that a run may take, known before it begins; and what is free.

Everything of size K, T and V is counted at its largest: as many distinct prefixes as particles,
and the answers of one step, which are still held, beside those of the next.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import psutil
import torch

from tsmc_widgets.errors import MemoryLimitError, check_integer, check_number
from tsmc_widgets.models.protocol import ReservingCarry
from tsmc_widgets.smc.prefixes import PrefixSteps
from tsmc_widgets.targets.target import Target
from tsmc_widgets.twists.protocol import as_twist
from tsmc_widgets.twists.trainable import NeuralTwist

Need = Mapping[str, float | int]
"""Bytes, by what they are for."""

SMALL = 2**26
"""Runs below this are not held against what is free, which takes longer to find out."""
PASS = 2**29
"""Logits of one forward pass and what is made of them, whose rows are bounded; as much for psi."""
TRAINING_TABLES = 8
"""Answers for a batch, (texts, T, V), while they are stacked, scored and differentiated."""
_RECORD = 150
"""Of a particle at a step: seven numbers recorded, stacked to columns, and its paths."""
_STATE = 400
"""Of a particle: its noise, weights and places while a step is taken."""
_TABLE_CELL = 32
"""Of a next token that is recorded: itself and three numbers."""

_ALLOWED: ContextVar[tuple[float | int | None, int]] = ContextVar("allowed", default=(None, 1))


@contextmanager
def allow_memory(limit: float | int | None = None, *, workers: int = 1) -> Iterator[None]:
    """Let every run in the block take so many bytes, by estimate.

    Args:
        limit: None is half of what is free.
        workers: processes that share this.
    """
    if limit is not None:
        check_number("limit", limit, "(0, inf]")
    check_integer("workers", workers)
    token = _ALLOWED.set((limit, workers))
    try:
        yield
    finally:
        _ALLOWED.reset(token)


def row_bytes(target: Target, config: Any, steps: PrefixSteps) -> tuple[int, float | int]:
    """Of a distinct prefix: its tables over the vocabulary at the peak, and its KV cache.

    Tables of the step before are still there while those of the next are made. Where the model
    answers by rows, only that of a twist which does not is held.

    Args:
        target: says V and T.
        config: says which tables there are: log p0, log psi, log q.
        steps: the first answers, whose tensors say how large the others will be.
    """
    twist = config.twist if config.twist is not None else config.proposal.twist
    tables = 0 if steps.lm.by_rows else 3 if twist is None else 5
    if twist is not None and not (steps.lm.by_rows and isinstance(twist, NeuralTwist)):
        tables += 2
    width = steps.lm.log_probs.element_size()
    length = len(target.prompt_tokens) + target.num_steps - 1
    parts = [part for part in (steps.lm, steps.twist, steps.proposal) if part is not None]
    carries = {id(part.carry): part.carry for part in parts}.values()
    kept = [each.most_bytes(1, length) for each in carries if isinstance(each, ReservingCarry)]
    return tables * width * target.lm.vocab_size, sum(kept)


def of_run(target: Target, config: Any, steps: PrefixSteps | None = None) -> Need:
    """What the runs of a batch may take; of the models' answers once the first are there."""
    size, num_steps = config.num_runs * config.num_particles, target.num_steps
    groups, vocab = 1 if config.observed is None else config.num_runs, target.lm.vocab_size
    rows = min(size, groups * vocab ** (num_steps - 1))
    tables, carried = (0, 0) if steps is None else row_bytes(target, config, steps)
    passing = PASS if config.twist is None and config.proposal.twist is None else 2 * PASS
    top_k = min(config.top_k, vocab)
    return {
        "log-probabilities": rows * tables + min(passing, 32 * rows * vocab),
        "KV caches": rows * carried,
        "records": size * (_RECORD * num_steps + _STATE) + rows * num_steps * top_k * _TABLE_CELL,
    }


def of_training(target: Target, twist: Any, batch_size: int) -> Need:
    """What an update may take beside the twist's own activations."""
    if as_twist(twist).is_tied:  # States, mean embeddings and their gradients.
        width = twist.head.embedding.shape[1]
        tables = min(PASS, 32 * batch_size * target.lm.vocab_size)
        states = TRAINING_TABLES * 4 * batch_size * target.num_steps * width
        return {"log-probabilities of a step": tables, "states of a batch": states}
    cells = batch_size * target.num_steps * target.lm.vocab_size
    return {"log-probabilities of a batch": TRAINING_TABLES * 4 * cells}


def check(need: Need, device: torch.device, advice: str, limit: float | int | None = None) -> None:
    """Raise MemoryLimitError where the need exceeds ``limit``, or else half of what is free."""
    total = sum(need.values())
    if total <= SMALL and limit is None:
        return
    given, workers = _ALLOWED.get()
    most, why = given if limit is None else limit, "the limit that was given"
    if most is None:
        free = free_bytes(device)
        most, why = free / 2, f"half of the {_shown(free)} that are free"
    if workers > 1:
        most, why = most / workers, f"{why}, shared by {workers} workers"
    if total <= most:
        return
    parts = ", ".join(f"{name} {_shown(size)}" for name, size in need.items() if size)
    raise MemoryLimitError(
        f"This may take {_shown(total)} of memory ({parts}), and may take {_shown(most)}, {why}. "
        f"Lower {advice} by a factor of {math.ceil(10 * total / most) / 10:,g} in all, or allow "
        "more: memory_limit=BYTES of run_smc or RunSpec, tw.allow_memory(BYTES) around any call."
    )


def check_run(target: Target, config: Any, steps: PrefixSteps | None = None) -> None:
    """Raise MemoryLimitError where the runs of a batch may take more than they are allowed."""
    advice = (
        f"num_particles ({config.num_particles:,}), num_runs ({config.num_runs:,})"
        + (f", top_k ({config.top_k})" if config.top_k else "")
        + f" or num_steps ({target.num_steps:,})"
    )
    need = of_run(target, config, steps)
    check(need, target.prompt_tokens.device, advice, config.memory_limit)


def check_training(target: Target, twist: Any, batch_size: int) -> None:
    """Raise MemoryLimitError where an update may take more than it is allowed."""
    advice = f"batch_size ({batch_size:,}) or num_steps ({target.num_steps:,})"
    check(of_training(target, twist, batch_size), target.prompt_tokens.device, advice)


def free_bytes(device: torch.device) -> int:
    """Memory that a process may still take there; less where its control group sets a limit."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    return int(min(psutil.virtual_memory().available, cgroup_free()))


def cgroup_free(
    root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> float | int:
    """Memory left to this process's control group, of version 1 or 2; infinite without a limit."""
    free = math.inf
    try:
        paths = [line.split(":", 2)[1:] for line in own.read_text().splitlines()]
    except OSError:
        return free
    for kinds, path in paths:
        if kinds == "":
            base, most, used, cache = root, "memory.max", "memory.current", "inactive_file "
        elif "memory" in kinds.split(","):
            base, most, used = root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            cache = "total_inactive_file "
        else:
            continue
        inside = base / path.lstrip("/")
        for folder in (base, *(each for each in (inside, *inside.parents) if base in each.parents)):
            try:
                left = int((folder / most).read_text()) - int((folder / used).read_text())
                lines = (folder / "memory.stat").read_text().splitlines()
                left += sum(int(line.split()[1]) for line in lines if line.startswith(cache))
            except (OSError, ValueError):  # No such group here, or "max".
                continue
            free = min(free, left)
    return free


def _shown(size: float | int) -> str:
    """Bytes for people."""
    return f"{size / 2**30:,.1f} GB" if size >= 2**30 else f"{size / 2**20:,.1f} MB"
