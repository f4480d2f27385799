"""What one update of a training did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Update:
    """What one update did.

    Attributes:
        number: of the update, from 1.
        losses: each loss by name, in nats; empty where the update was skipped.
        ess: effective sample size of the batch's final weights, in [0, batch size]; the mean over
            observations where there are several, each in [0, its texts].
        log_z: log mean weight of the batch, an estimate of log Z in nats, and the mean over
            observations; -inf without a hit.
        hits: texts of the batch with phi > 0, among those whose phi was computed.
        gradient_norm: before clipping; NaN where skipped.
        positives: where samples of sigma came from; None where the method reads none.
        skipped: whether there was no signal (no text with phi > 0), so that nothing changed.
        kl: estimate of KL(q || p0) before it, in nats, and ``kl_coefficient``, what a nat of it
            cost: both for ppo alone, else None.
        seconds: that the update took.
        evaluation: what the evaluation hook returned after it; None where it was not asked.
    """

    number: int
    losses: dict[str, float]
    ess: float
    log_z: float
    hits: int
    gradient_norm: float
    positives: str | None
    skipped: bool
    seconds: float
    evaluation: Any = None
    kl: float | None = None
    kl_coefficient: float | None = None
