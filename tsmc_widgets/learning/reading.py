"""The base model reads each text once: sweeps keep what it said, pools are read for good."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from tsmc_widgets.learning.samples import Samples, read
from tsmc_widgets.models.protocol import TeacherForced
from tsmc_widgets.smc.api import start_smc
from tsmc_widgets.smc.sampler import init, step
from tsmc_widgets.smc.trace import SMCTrace
from tsmc_widgets.targets.target import Target

CHUNK = 100
MOST_BYTES = 2**28


def draw_samples(
    target: Target, *, num_particles: int, proposal: Any, seed: int, run: int
) -> Samples:
    """Independent weighted texts of a sweep without resampling, with what the base model said."""
    session = start_smc(
        target,
        num_particles=num_particles,
        proposal=proposal,
        rule="never",
        seed=seed,
        first_run=run,
        dead_runs="keep",
    )
    config = session.config
    state, records, answers = init(target, config), [], []
    while state.t < target.num_steps:
        # Without resampling a particle's row is that of its own beginning.
        rows, said = state.rows[0], state.steps.lm
        answers.append((said.log_probs[rows], None if said.hidden is None else said.hidden[rows]))
        state, record = step(state, target, config)
        records.append(record)
    samples = Samples.of_trace(SMCTrace.from_records(tuple(records), target, config))
    log_probs, hidden = (
        None if parts[0] is None else torch.stack(parts, dim=1)
        for parts in zip(*answers, strict=True)
    )
    return replace(samples.to(log_probs.device), base=TeacherForced(log_probs, hidden))


class PoolReader:
    """What the base model says along the texts of a pool: read once, in chunks of fixed rows.

    The chunks do not depend on what is asked for, so that resumed training finds the same bytes.

    Args:
        target: gives model and prompt.
        most_bytes: a pool whose answers would take more is read again each time.
    """

    def __init__(self, target: Target, *, most_bytes: int = MOST_BYTES) -> None:
        self.target, self.most_bytes = target, most_bytes
        self._pool: Tensor | None = None
        self._said: TeacherForced | None = None
        self._read: set[int] = set()

    def answers(self, samples: Samples, pool: Int[Tensor, "size steps"]) -> Samples:
        """The samples with the base model's answers, where they come from rows of the pool."""
        if samples.base is not None or samples.places is None or not self._fits(pool):
            return samples
        if self._pool is None or not torch.equal(self._pool, pool):
            self._pool, self._said, self._read = pool, None, set()
        places = samples.places.to(pool.device)
        for chunk in torch.unique(places // CHUNK).tolist():
            if chunk not in self._read:
                self._keep(chunk, read(self.target, pool[chunk * CHUNK : (chunk + 1) * CHUNK]))
        log_probs, hidden = self._said.log_probs, self._said.hidden
        base = TeacherForced(log_probs[places], None if hidden is None else hidden[places])
        return replace(samples, base=base)

    def _keep(self, chunk: int, said: TeacherForced) -> None:
        if self._said is None:
            size, parts = len(self._pool), (said.log_probs, said.hidden)
            self._said = TeacherForced(
                *(None if part is None else part.new_empty(size, *part.shape[1:]) for part in parts)
            )
        rows = slice(chunk * CHUNK, (chunk + 1) * CHUNK)
        self._said.log_probs[rows] = said.log_probs
        if said.hidden is not None:
            self._said.hidden[rows] = said.hidden
        self._read.add(chunk)

    def _fits(self, pool: Tensor) -> bool:
        return 4 * pool.numel() * self.target.lm.vocab_size <= self.most_bytes
