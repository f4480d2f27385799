"""Joint draws (s, o) without end, for twists that learn under observations."""

from __future__ import annotations

import torch

from tsmc_widgets.targets.exact_samples import JointSamples
from tsmc_widgets.targets.target import Target

BLOCK = 1024
# Far from the seeds that people choose, so that no held-out draw is ever trained on.
SEEDS = 2**52


class JointStream:
    """Joint draws (s, o) without end, by place: the i-th is the same whoever asks for it.

    They are drawn in blocks, as many small batches would take far longer.
    """

    def __init__(self, target: Target, seed: int) -> None:
        """Take a target whose potential is p(o | s) itself."""
        self.target, self.seed = target, seed
        self._blocks: dict[int, JointSamples] = {}

    def take(self, first: int, n: int) -> JointSamples:
        """Draws ``first`` to ``first + n - 1``."""
        wanted = range(first // BLOCK, (first + n - 1) // BLOCK + 1)
        self._blocks = {index: self._block(index) for index in wanted}
        blocks, start = list(self._blocks.values()), first - wanted[0] * BLOCK
        parts = (
            torch.cat([getattr(block, name) for block in blocks])[start : start + n]
            for name in ("tokens", "observed")
        )
        return JointSamples(*parts)

    def _block(self, index: int) -> JointSamples:
        if index in self._blocks:
            return self._blocks[index]
        seed = SEEDS + (self.seed * 1_000_003 + index) % SEEDS
        return self.target.exact_samples(BLOCK, seed=seed, progress=False)
