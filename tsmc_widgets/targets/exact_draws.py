"""Exact samples by rejection a block at a time, so that something else can be done between."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int
from torch import Tensor

from tsmc_widgets.errors import BudgetError
from tsmc_widgets.targets.exact_samples import ExactSamples


@dataclass(slots=True)
class ExactDraws:
    """Exact samples of sigma found so far, with what all draws from p0 say of log Z.

    Attributes:
        target: a ``Target`` whose phi has a known bound.
        seed: the same seed gives the same blocks.
        block: draws from p0 in each block.
        blocks: what each block found.
    """

    target: Any
    seed: int
    block: int = 512
    blocks: list[ExactSamples] = field(default_factory=list)
    _joined: tuple[int, Tensor, Tensor] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        """Samples found."""
        return sum(len(block.tokens) for block in self.blocks)

    @property
    def proposed(self) -> int:
        """Draws from p0 so far."""
        return sum(block.proposed for block in self.blocks)

    @property
    def tokens(self) -> Int[Tensor, "n steps"]:
        """The samples, in the order in which they were found."""
        return self._all()[1]

    @property
    def log_phi(self) -> Float64[Tensor, " n"]:
        """Log phi of each, in nats."""
        return self._all()[2]

    @property
    def log_z(self) -> tuple[float, float]:
        """Log of the mean of phi over all draws, and its standard error, in nats."""
        means = np.exp([block.log_z for block in self.blocks])
        errors = means * np.nan_to_num([block.log_z_standard_error for block in self.blocks])
        total = means.sum()
        if not total > 0:
            return -math.inf, math.nan
        return math.log(total / len(means)), float(np.sqrt((errors**2).sum()) / total)

    def extend(self) -> None:
        """Look at one more block of texts of p0.

        Raises:
            PotentialError: no bound on phi is known.
        """
        try:
            # More than can be found, so that every draw is looked at and none is cut off.
            self.target.exact_samples(
                self.block + 1,
                seed=self.seed * 10_007 + len(self.blocks),
                budget=self.block,
                progress=False,
            )
        except BudgetError as error:
            self.blocks.append(error.samples)

    def _all(self) -> tuple[int, Tensor, Tensor]:
        count = len(self.blocks)
        if not count:
            raise ValueError("no block has been drawn yet: call extend() first.")
        if self._joined is None or self._joined[0] != count:
            self._joined = (
                count,
                torch.cat([block.tokens for block in self.blocks]),
                torch.cat([block.log_phi for block in self.blocks]),
            )
        return self._joined
