"""Where a loss takes its samples of sigma from: an exact pool, or the batch itself by weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from tsmc_widgets.errors import check_integer
from tsmc_widgets.learning.samples import Samples
from tsmc_widgets.targets.exact_draws import ExactDraws
from tsmc_widgets.targets.target import Target

POOL_SIZE = 6000


@runtime_checkable
class Positives(Protocol):
    """A source of samples of sigma, one batch for each update."""

    def draw(self, update: int, num_samples: int, batch: Samples) -> Samples:
        """Samples for an update, the same at every call with the same arguments.

        Args:
            update: number of the update, from 0.
            num_samples: how many are wanted.
            batch: what the update drew from its proposal.
        """
        ...

    def describe(self) -> str:
        """The source in a few words."""
        ...


@dataclass(frozen=True, slots=True)
class WeightedPositives:
    """The batch itself, weighted for sigma: always at hand, with self-normalised bias."""

    def draw(self, update: int, num_samples: int, batch: Samples) -> Samples:
        """Pass on the batch."""
        return batch

    def describe(self) -> str:
        """The source in a few words."""
        return "weighted batch"


@dataclass(frozen=True, slots=True)
class ExactPool:
    """A pool of exact samples, drawn once and dealt out in a new order in each round.

    Attributes:
        tokens: the samples.
        log_phi: log phi of each, in nats.
        seed: of the orders.
    """

    tokens: Int[Tensor, "n steps"]
    log_phi: Float64[Tensor, " n"]
    seed: int = 0

    @classmethod
    def by_rejection(
        cls,
        target: Target,
        size: int,
        *,
        seed: int,
        budget: int | None = None,
        progress: bool = False,
    ) -> ExactPool:
        """Draw the pool from p0 by rejection.

        Raises:
            BudgetError: the budget ended first; ``.samples`` holds what was found.
            PotentialError: no bound on phi is known.
        """
        check_integer("size", size)
        options = {} if budget is None else {"budget": budget}
        found = target.exact_samples(size, seed=seed, progress=progress, **options)
        return cls(found.tokens, found.log_phi, seed)

    def __len__(self) -> int:
        """Samples in the pool."""
        return self.tokens.shape[0]

    def draw(self, update: int, num_samples: int, batch: Samples) -> Samples:
        """The next samples of the round, and of the rounds after it as far as needed."""
        first = update * num_samples
        places = torch.arange(first, first + num_samples)
        rounds = {int(r) for r in (places // len(self)).unique()}
        order = torch.cat([self._order(r) for r in sorted(rounds)])
        rows = order[places - min(rounds) * len(self)].to(self.tokens.device)
        tokens = self.tokens[rows]
        zeros = torch.zeros(tokens.shape, dtype=torch.float64, device=tokens.device)
        group = torch.zeros_like(tokens[:, 0])
        return Samples(tokens, zeros, zeros[:, 0], self.log_phi[rows], group, places=rows)

    def describe(self) -> str:
        """The source in a few words."""
        return f"{len(self)} exact samples"

    def _order(self, round_: int) -> Int[Tensor, " n"]:
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + round_) % 2**63)
        return torch.randperm(len(self), generator=generator)


@dataclass(slots=True)
class GrowingPool:
    """Exact samples by rejection; some more are drawn before each update until there are enough.

    Training starts at once, and does not learn a small pool by heart. How far the pool has grown
    depends on the number of the update alone.

    Attributes:
        draws: where the samples come from.
        seed: of the orders in which they are dealt.
        held_out: first samples, which are never dealt.
        size: samples after which the pool grows no more.
        every: updates between two blocks of draws.
        first: blocks that the first update finds; None takes those that are there.
    """

    draws: ExactDraws
    seed: int = 0
    held_out: int = 0
    size: int = POOL_SIZE
    every: int = 2
    first: int | None = None

    def __post_init__(self) -> None:
        """Note how many blocks the first update finds.

        Raises:
            ValueError: there is nothing to deal yet.
        """
        if len(self.draws) <= self.held_out:
            raise ValueError(
                f"a pool needs samples to start with: draws has {len(self.draws)}, of which "
                f"{self.held_out} are held out. Call draws.extend() first."
            )
        if self.first is None:
            self.first = len(self.draws.blocks)

    def __len__(self) -> int:
        """Samples to learn from."""
        return len(self.draws) - self.held_out

    @property
    def tokens(self) -> Int[Tensor, "n steps"]:
        """The samples."""
        return self.draws.tokens[self.held_out :]

    @property
    def log_phi(self) -> Float64[Tensor, " n"]:
        """Log phi of each, in nats."""
        return self.draws.log_phi[self.held_out :]

    def draw(self, update: int, num_samples: int, batch: Samples) -> Samples:
        """Samples for an update, from what the pool holds at that update."""
        size = self._size_at(update)
        pool = ExactPool(self.tokens[:size], self.log_phi[:size], self.seed)
        return pool.draw(update, num_samples, batch)

    def describe(self) -> str:
        """The source in a few words."""
        return f"{len(self)} exact samples"

    def _size_at(self, update: int) -> int:
        """Samples that the pool holds at an update; draws them where that is still to be done."""
        ends, full, blocks = self.draws.ends, self.held_out + self.size, self.first
        for _ in range(update // self.every):
            if ends[blocks - 1] >= full:
                break
            if blocks == len(ends):
                self.draws.extend()
                ends = self.draws.ends
            blocks += 1
        return ends[blocks - 1] - self.held_out
