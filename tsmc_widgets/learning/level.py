"""Where psi starts for losses that say how large it is, and not only what it is in proportion."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from tsmc_widgets import numerics
from tsmc_widgets.learning.recipes import RECIPES
from tsmc_widgets.learning.samples import Samples

LEAST_NO = 0.01
"""Least 1 - psi, about, at which a twist with psi < 1 starts."""


def set_level(
    twist: Any,
    batch: Samples,
    methods: Iterable[str],
    average: Callable[[float], float] = float,
) -> float | None:
    """Start a fresh twist at the mean of phi in its first batch; q stays p0.

    From psi = 1 a regression on phi would first lower psi wherever there are texts, and so raise
    what it has not seen.

    Args:
        twist: one that has learned something stays as it is.
        batch: texts of p0, weighted by phi.
        methods: names of losses; nothing is done where none of them fixes the level.
        average: of a number over processes that share the training.

    Returns:
        The level in nats; None where psi stays as it is, as without a text of phi > 0.
    """
    start_at = getattr(twist, "start_at", None)
    fixed = any(name in RECIPES and RECIPES[name].fixes_level for name in methods)
    if start_at is None or not fixed:
        return None
    levels = numerics.logmeanexp(batch.log_weights_by_group)
    levels = levels[levels.isfinite()]
    share = average(float(len(levels) > 0))
    if share == 0:
        return None
    level = average(float(levels.mean()) if len(levels) else 0.0) / share
    if twist.link == "sigmoid":
        level = min(level, -LEAST_NO)
    return level if start_at(level) else None
