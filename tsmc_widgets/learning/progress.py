"""A bar that shows how training goes."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any


def weighted_sum(losses: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """What a training goes down: its losses, each times its weight, which is 1 if none is given."""
    return math.fsum(weights.get(name, 1.0) * loss for name, loss in losses.items())


@contextlib.contextmanager
def progress_bar(
    total: int, *, shown: bool, weights: Mapping[str, float] = MappingProxyType({})
) -> Iterator[Callable[[Any], None]]:
    """Yield a function that takes each update; the bar closes however the loop ends.

    It shows the weighted sum of the losses, the effective sample size, and the bound gap of the
    last evaluation that had one, all in nats but for the ESS.

    Args:
        total: updates to come.
        shown: whether there is a bar at all.
        weights: of losses by name; 1 where none is given.
    """
    if not shown:
        yield lambda update: None
        return
    from tqdm.auto import tqdm

    gap = math.nan

    def show(update: Any) -> None:
        nonlocal gap
        gap = getattr(update.evaluation, "gap", gap)
        words = {"loss": "no signal", "ESS": f"{update.ess:.1f}"}
        if update.losses:
            words["loss"] = f"{weighted_sum(update.losses, weights):.3f}"
        if not math.isnan(gap):
            words["gap"] = f"{gap:.3f}"
        bar.set_postfix(words, refresh=False)
        bar.update()

    with tqdm(total=total, desc="learning", unit="update") as bar:
        yield show
