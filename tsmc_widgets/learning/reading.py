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
# Training has addresses of its own, so that no run by which a twist is measured has noise that it
# was trained on, whatever the seeds.
TRAINING_RUNS = 2**48


def draw_samples(
    target: Target,
    *,
    num_particles: int,
    proposal: Any,
    seed: int,
    run: int,
    observed: Int[Tensor, "runs width"] | None = None,
    keep_answers: bool = True,
) -> Samples:
    """Independent weighted texts of a sweep without resampling, with what the base model said.

    Args:
        target: what they are weighted for.
        num_particles: texts, or texts for each observation.
        proposal: where they are drawn from.
        seed: of the noise.
        run: address of the sweep among those of training, or of its first run where there are
            several.
        observed: one observation for each run, where the target waits for one; or None.
        keep_answers: whether the samples bring the base model's answers with them, which take
            room for the vocabulary at every token.
    """
    session = start_smc(
        target,
        num_particles=num_particles,
        proposal=proposal,
        rule="never",
        seed=seed,
        first_run=TRAINING_RUNS + run,
        dead_runs="keep",
        **({} if observed is None else {"observed": observed}),
    )
    config = session.config
    state, records, answers = init(target, config), [], []
    while state.t < target.num_steps:
        if keep_answers:
            # Without resampling a particle's row is that of its own beginning.
            rows, said = state.rows.reshape(-1), state.steps.lm
            hidden = None if said.hidden is None else said.hidden[rows]
            answers.append((said.log_probs[rows], hidden))
        state, record = step(state, target, config)
        records.append(record)
    samples = Samples.of_trace(SMCTrace.from_records(tuple(records), target, config))
    samples = samples.to(target.prompt_tokens.device)
    if not keep_answers:
        return samples
    log_probs, hidden = (
        None if parts[0] is None else torch.stack(parts, dim=1)
        for parts in zip(*answers, strict=True)
    )
    return replace(samples, base=TeacherForced(log_probs, hidden))


class PoolReader:
    """What the base model says along the texts of a pool: read once, in chunks of fixed rows.

    What is said depends on the pool alone and not on what was asked for before, so that resumed
    training finds the same bytes.

    Args:
        target: gives model and prompt.
        most_bytes: a pool whose answers would take more is read again each time.
    """

    def __init__(self, target: Target, *, most_bytes: int = MOST_BYTES) -> None:
        self.target, self.most_bytes = target, most_bytes
        self._chunks: dict[int, tuple[Tensor, TeacherForced]] = {}

    def answers(self, samples: Samples, pool: Int[Tensor, "size steps"]) -> Samples:
        """The samples with the base model's answers, where they come from rows of the pool."""
        if samples.base is not None or samples.places is None or not self._fits(pool):
            return samples
        places = samples.places.to(pool.device)
        chunks, chunk = torch.unique(places // CHUNK, return_inverse=True)
        said = [self._chunk(index, pool) for index in chunks.tolist()]

        def gather(parts: list[Tensor]) -> Tensor:
            gathered = parts[0].new_empty(len(places), *parts[0].shape[1:])
            for index, part in enumerate(parts):
                rows = (chunk == index).nonzero().squeeze(1)
                gathered[rows] = part[places[rows] % CHUNK]
            return gathered

        hidden = None if said[0].hidden is None else gather([each.hidden for each in said])
        base = TeacherForced(gather([each.log_probs for each in said]), hidden)
        return replace(samples, base=base)

    def _chunk(self, index: int, pool: Tensor) -> TeacherForced:
        tokens = pool[index * CHUNK : (index + 1) * CHUNK]
        known, said = self._chunks.get(index, (None, None))
        if said is None or not torch.equal(known, tokens):
            said = read(self.target, tokens)
            self._chunks[index] = (tokens, said)
        return said

    def _fits(self, pool: Tensor) -> bool:
        return 4 * pool.numel() * self.target.lm.vocab_size <= self.most_bytes
