"""Samples of sigma from what the training itself has drawn: weighed once, and used again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float64
from torch import Tensor

from tsmc_widgets import numerics
from tsmc_widgets.errors import check_integer
from tsmc_widgets.learning.reading import draw_samples
from tsmc_widgets.learning.samples import Samples
from tsmc_widgets.smc.proposals import Base
from tsmc_widgets.smc.resampling import search_cdf
from tsmc_widgets.targets.target import Target

START = 2048
_START_RUN = 2**40
_FIELDS = ("tokens", "log_q", "log_weights", "log_phi")


@dataclass(slots=True)
class ReplayedPositives:
    """All recent batches, each text weighed for sigma by sigma~ / q of the q that drew it.

    As the twist learns, its batches become samples of sigma, fresh ones at every update, where
    rejection would look at thousands of texts for one. Each batch counts by its effective sample
    size. Where the batches are few or poor there is the bias of self-normalised weights, and a kind
    of text that the twist has given up and the start does not hold is not learned again: measure
    KL(sigma || q) on exact samples, which shows it.

    Attributes:
        target: what the samples are of.
        seed: of everything.
        keep: batches that are remembered.
        start: texts of p0 that are weighed before the first batch, and remembered to the end.
    """

    target: Target
    seed: int = 0
    keep: int = 40
    start: int = START
    _parts: dict[int, Samples] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        """Refuse numbers that cannot be."""
        check_integer("keep", self.keep)
        check_integer("start", self.start)

    def draw(self, update: int, num_samples: int, batch: Samples) -> Samples:
        """Samples for an update, drawn by weight from its own batch and those before it."""
        if -1 not in self._parts:
            first = draw_samples(
                self.target,
                num_particles=self.start,
                proposal=Base(),
                seed=self.seed,
                run=_START_RUN,
            )
            self._parts[-1] = _short(first)
        self._parts[update] = _short(batch)
        for old in [u for u in self._parts if 0 <= u <= update - self.keep or u > update]:
            del self._parts[old]
        alive = [part for _, part in sorted(self._parts.items()) if part.has_hits]
        if not alive:
            return batch
        rows = self._pick(torch.cat([_share(part) for part in alive]), num_samples, update)
        tokens = torch.cat([part.tokens for part in alive])[rows]
        log_phi = torch.cat([part.log_phi for part in alive])[rows]
        zeros = torch.zeros(tokens.shape, dtype=torch.float64, device=tokens.device)
        return Samples(tokens, zeros, zeros[:, 0], log_phi, torch.zeros_like(tokens[:, 0]))

    def _pick(self, weights: Tensor, num_samples: int, update: int) -> Tensor:
        """Rows by weight, systematically."""
        generator = torch.Generator().manual_seed(self.seed * 10_007 + update)
        offset = torch.rand(1, dtype=torch.float64, generator=generator)
        places = (torch.arange(num_samples, dtype=torch.float64) + offset) / num_samples
        cdf = weights.cumsum(0).unsqueeze(0)
        return search_cdf(cdf, places.to(cdf.device).unsqueeze(0)).squeeze(0)

    def describe(self) -> str:
        """The source in a few words."""
        return f"{len(self._parts)} weighted batches"

    def tensors(self) -> dict[str, Tensor]:
        """All that is remembered, for a file."""
        parts = sorted(self._parts.items())
        return {
            "replay": torch.tensor([self.seed, self.keep, self.start]),
            "updates": torch.tensor([[u, len(part)] for u, part in parts]).reshape(-1, 2),
            **{
                name: torch.cat([getattr(part, name) for _, part in parts])
                for name in (_FIELDS if parts else ())
            },
        }

    @classmethod
    def from_tensors(cls, target: Target, tensors: Mapping[str, Tensor]) -> ReplayedPositives:
        """What ``tensors`` wrote down, to be gone on with."""
        positives = cls(target, *tensors["replay"].tolist())
        device, start = target.prompt_tokens.device, 0
        for update, count in tensors["updates"].tolist():
            rows = slice(start, start + count)
            fields = {name: tensors[name][rows].to(device) for name in _FIELDS}
            positives._parts[update] = Samples(
                **fields, group=torch.zeros_like(fields["tokens"][:, 0])
            )
            start += count
        return positives


def _short(samples: Samples) -> Samples:
    """The samples without what the base model said of them."""
    return replace(samples, base=None)


def _share(part: Samples) -> Float64[Tensor, " n"]:
    """Normalised weights times the effective sample size."""
    return torch.softmax(part.log_weights, 0) * numerics.ess(part.log_weights)
