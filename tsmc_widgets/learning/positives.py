"""Where a loss takes its samples of sigma from: an exact pool, or the batch itself by weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from tsmc_widgets.errors import check_integer
from tsmc_widgets.learning.samples import Samples
from tsmc_widgets.targets.target import Target


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
