"""Randomness by address: every uniform is a function of (seed, run, step, use, particle).

Philox 4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3",
SC 2011) maps a counter to 128 random bits, so nothing is drawn from a stream: rewinding, resuming
and taking one run out of many give the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tsmc_widgets.errors import check_integer, set_integers

Use = Literal["token", "resample"]

_USES: dict[str, int] = {"token": 0, "resample": 1}
_MULTIPLIERS = np.array([[0xD2511F53], [0xCD9E8D57]], dtype=np.uint64)
_WEYL = np.array([[0x9E3779B9], [0xBB67AE85]], dtype=np.uint64)
_BLOCK_STEPS = 16
_BLOCK_PARTICLES = 2**12
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)


@runtime_checkable
class Noise(Protocol):
    """Where a sampler's uniforms come from; a test may script them."""

    def uniform(
        self, *, step: int, use: Use, num_particles: int
    ) -> Float[Tensor, "runs particles"]:
        """Uniforms in [0, 1), float64, the same at every call with the same arguments."""
        ...


@dataclass(frozen=True, slots=True)
class AddressedNoise:
    """Uniforms of runs ``first_run``, ``first_run + 1``, ... under one seed.

    Attributes:
        seed: integer in [0, 2**64).
        num_runs: R.
        first_run: address of the first run; run r of a batch is run ``first_run + r`` anywhere.
    """

    seed: int
    num_runs: int
    first_run: int = 0

    def __post_init__(self) -> None:
        """Check the address."""
        set_integers(self, num_runs=1, first_run=0)
        object.__setattr__(self, "seed", check_integer("seed", self.seed, at_least=0, below=2**64))

    def uniform(
        self, *, step: int, use: Use, num_particles: int
    ) -> Float[Tensor, "runs particles"]:
        """Uniforms in [0, 1) with 53 bits, one for each run and particle."""
        if self.num_runs * num_particles > _BLOCK_PARTICLES:
            return torch.from_numpy(_uniforms(self, step, 1, use, num_particles)[0])
        block = _block(self, step // _BLOCK_STEPS, use, num_particles)
        return torch.from_numpy(block[step % _BLOCK_STEPS].copy())


@dataclass(frozen=True, slots=True)
class SliceNoise:
    """Noise of particles ``first``, ``first + 1``, ...: a part of a population that is split up.

    Attributes:
        whole: noise of the whole population.
        first: particle of the whole that is this part's particle 0.
    """

    whole: Noise
    first: int

    def uniform(
        self, *, step: int, use: Use, num_particles: int
    ) -> Float[Tensor, "runs particles"]:
        """What the whole would give these particles."""
        last = self.first + num_particles
        return self.whole.uniform(step=step, use=use, num_particles=last)[:, self.first :]


@lru_cache(maxsize=8)
def _block(noise: AddressedNoise, index: int, use: Use, num_particles: int) -> np.ndarray:
    return _uniforms(noise, index * _BLOCK_STEPS, _BLOCK_STEPS, use, num_particles)


def _uniforms(
    noise: AddressedNoise, first_step: int, num_steps: int, use: Use, num_particles: int
) -> np.ndarray:
    """Uniforms of some steps in a row: (steps, runs, particles).

    One call costs the same for a few numbers as for thousands, so small populations get theirs
    for several steps at once.
    """
    pairs = (num_particles + 1) // 2
    first = np.uint64(noise.first_run)
    runs = first + np.arange(noise.num_runs, dtype=np.uint64)
    steps = np.arange(first_step, first_step + num_steps, dtype=np.uint64)
    counter = np.empty((4, num_steps, noise.num_runs, pairs), dtype=np.uint64)
    counter[0] = np.arange(pairs, dtype=np.uint64)
    counter[1] = (np.uint64(2) * steps + np.uint64(_USES[use]))[:, None, None]
    counter[2] = (runs & _LOW)[:, None]
    counter[3] = (runs >> _SHIFT)[:, None]
    words = philox(counter.reshape(4, -1), noise.seed)
    high, low = words[0::2] >> np.uint64(5), words[1::2] >> np.uint64(6)
    uniforms = (high * np.float64(2**26) + low) * np.float64(2**-53)
    table = uniforms.T.reshape(num_steps, noise.num_runs, 2 * pairs)
    return np.ascontiguousarray(table[:, :, :num_particles])


def philox(counter: np.ndarray, seed: int) -> np.ndarray:
    """Ten rounds of Philox 4x32: counter (4, n) of 32-bit words -> random words (4, n), uint64."""
    key = np.array([[seed & 0xFFFFFFFF], [seed >> 32]], dtype=np.uint64)
    even, odd = counter[0::2], counter[1::2]
    for _ in range(10):
        product = even * _MULTIPLIERS
        even, odd = (product[::-1] >> _SHIFT) ^ odd ^ key, product[::-1] & _LOW
        key = (key + _WEYL) & _LOW
    words = np.empty_like(counter)
    words[0::2], words[1::2] = even, odd
    return words
