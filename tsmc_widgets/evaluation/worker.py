"""One spec, from names and numbers to tidy rows: what a worker process does."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tsmc_widgets.evaluation.measure import Row, measure
from tsmc_widgets.evaluation.resources import fresh_target, held_out, twist_of
from tsmc_widgets.evaluation.spec import RunSpec
from tsmc_widgets.evaluation.store import dumps

_THREADS = threading.Lock()
_INSIDE: dict[str, int] = {"count": 0, "before": 1}


def execute(spec: RunSpec, *, shared: str | Path | None = None) -> list[Row]:
    """Run a spec and measure what it asks for.

    Depends on the spec alone: models are loaded once for each process, exact samples and trained
    twists too, and none of it changes a number. PyTorch works on one thread meanwhile, since sums
    split over threads differ in their last bits: use processes to use several cores.

    Args:
        spec: what to do.
        shared: folder in which exact samples and trained twists are kept, for other specs and
            other workers; None keeps them in memory.

    Returns:
        One row for each number measured, with the columns of ``evaluation.measure``.
    """
    folder = None if shared is None else Path(shared)
    with one_thread():
        target = fresh_target(spec)
        held = held_out(spec, spec.num_exact, spec.seed, folder)
        twist = twist_of(spec, target, folder)
        return measure(spec, target, twist, held)


def work(spec_json: str, shared: str | None) -> dict[str, Any]:
    """What a worker of any kind runs: texts in, plain numbers and texts out, errors as texts."""
    start = time.perf_counter()
    answer: dict[str, Any] = {}
    try:
        rows = execute(RunSpec.from_json(spec_json), shared=shared)
        answer["rows"] = dumps(rows)
    except Exception as error:  # noqa: BLE001 - one bad spec must not end the others
        answer["error"] = {
            "type": type(error).__name__,
            "message": str(error),
            "traceback": traceback.format_exc(),
        }
    return answer | {"seconds": time.perf_counter() - start}


@contextmanager
def one_thread() -> Iterator[None]:
    """Let PyTorch use one thread; the last to leave puts back what was."""
    with _THREADS:
        if not _INSIDE["count"]:
            _INSIDE["before"] = torch.get_num_threads()
        _INSIDE["count"] += 1
        torch.set_num_threads(1)
    try:
        yield
    finally:
        with _THREADS:
            _INSIDE["count"] -= 1
            if not _INSIDE["count"]:
                torch.set_num_threads(_INSIDE["before"])
