"""Where a loss takes its samples of sigma from: an exact pool, or the batch itself by weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from tsmc_widgets import numerics
from tsmc_widgets.errors import check_integer
from tsmc_widgets.learning.samples import Samples, draw_samples
from tsmc_widgets.smc.proposals import Base
from tsmc_widgets.smc.resampling import search_cdf
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


START = 2**14
WORTH = 100.0
LEAST = 0.05
FAIR = 0.3
REMIND = 8
# Fewer effective texts than this are too biased, whatever their share.
_FEW = 10
_BLOCK = 1024
_START_RUN = 2**40
_FIRST = -1
_COUNTS = ("seed", "keep", "start", "remind")
_SHARES = ("worth", "least", "fair")
_FIELDS = ("tokens", "log_q", "log_weights", "log_phi")


@dataclass(slots=True)
class ReplayedPositives:
    """All recent batches, each text weighed for sigma by sigma~ / q of the q that drew it.

    As the twist learns, its batches become samples of sigma, fresh ones at every update, where
    rejection would look at thousands of texts for one. Each batch counts by its effective sample
    size; the texts of p0 with which all begins count for at least a part, so that what the twist
    has given up can be learned again.

    As soon as a batch is a fair sample of sigma it stands for itself: losses that compare it with
    sigma have then one batch for both, whose noise cancels the more the nearer q is to sigma. Now
    and then what is remembered is dealt all the same, as a reminder.

    Where batches and start are few or poor there is the bias of self-normalised weights: measure
    KL(sigma || q) on exact samples, which shows it.

    One source serves one training; ``afresh`` gives one to another.

    Attributes:
        target: what the samples are of.
        seed: of everything.
        keep: batches that are remembered.
        start: most texts of p0 that are weighed before the first batch, and remembered to the end.
        worth: effective sample size at which there are enough of these.
        least: their part, whatever the batches are worth.
        fair: effective share of its texts from which on a batch stands for itself; above 1 none
            does.
        remind: updates from one reminder to the next.
        apart: addresses from one update to the next: the number of processes that train together,
            each of which remembers its own batches.
    """

    target: Target
    seed: int = 0
    keep: int = 40
    start: int = START
    worth: float = WORTH
    least: float = LEAST
    fair: float = FAIR
    remind: int = REMIND
    apart: int = 1
    _parts: dict[int, Samples] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        """Refuse numbers that cannot be."""
        check_integer("keep", self.keep)
        check_integer("start", self.start)
        check_integer("remind", self.remind)
        check_integer("apart", self.apart)
        if not 0 <= self.least < 1:
            raise ValueError(f"least must be in [0, 1); got {self.least!r}.")
        if not self.fair > 0:
            raise ValueError(f"fair must be positive; got {self.fair!r}.")

    def afresh(self) -> ReplayedPositives:
        """The same, with the start in common and no batch remembered."""
        self._begin()
        return replace(self, _parts={_FIRST: self._parts[_FIRST]})

    def draw(self, update: int, num_samples: int, batch: Samples) -> Samples:
        """Samples for an update: its own batch, or texts by weight from that and those before it.

        A text that was drawn several times is there once and weighs as much.
        """
        self._remember(update, batch)
        if (update // self.apart + 1) % self.remind and self._is_fair(batch):
            return batch
        alive = [(u, part) for u, part in sorted(self._parts.items()) if part.has_hits]
        if not alive:
            return batch
        rows = self._pick(torch.cat(self._shares(alive)), num_samples, update)
        rows, counts = torch.unique(rows, return_counts=True)
        tokens = torch.cat([part.tokens for _, part in alive])[rows]
        log_phi = torch.cat([part.log_phi for _, part in alive])[rows]
        log_q = torch.zeros(tokens.shape, dtype=torch.float64, device=tokens.device)
        weights = counts.double() / counts.max()
        return Samples(tokens, log_q, weights.log(), log_phi, log_q[:, 0].long())

    def _is_fair(self, batch: Samples) -> bool:
        """Whether a batch is a sample of sigma that is good enough to be learned from alone."""
        return batch.has_hits and float(numerics.ess(batch.log_weights)) >= max(
            self.fair * len(batch), _FEW
        )

    def _remember(self, update: int, batch: Samples) -> None:
        """Take in the batch of an update; what is older than ``keep`` or comes later is dropped."""
        self._begin()
        self._parts[update] = _short(batch)
        oldest = update - self.keep * self.apart
        for old in [u for u in self._parts if 0 <= u <= oldest or u > update]:
            del self._parts[old]

    def _begin(self) -> None:
        """Weigh texts of p0 by phi, as far as it has not been done."""
        found = self._parts.get(_FIRST)
        while found is None or (
            len(found) < self.start and numerics.ess(found.log_weights) < self.worth
        ):
            have = 0 if found is None else len(found)
            more = draw_samples(
                self.target,
                num_particles=min(_BLOCK, self.start - have),
                proposal=Base(),
                seed=self.seed,
                run=_START_RUN + have // _BLOCK,
                keep_answers=False,
            )
            found = more if found is None else _joined(found, more)
            # Kept at once, so that an interrupt loses one block and not all.
            self._parts[_FIRST] = found

    def _shares(self, alive: list[tuple[int, Samples]]) -> list[Float64[Tensor, " n"]]:
        """Normalised weights of each part, times what the part counts."""
        counts = [float(numerics.ess(part.log_weights)) for _, part in alive]
        if alive[0][0] == _FIRST:
            counts[0] = max(counts[0], self.least / (1 - self.least) * sum(counts[1:]))
        weights = [torch.softmax(part.log_weights, 0) for _, part in alive]
        return [count * weight for count, weight in zip(counts, weights, strict=True)]

    def _pick(self, weights: Tensor, num_samples: int, update: int) -> Tensor:
        """Rows by weight, systematically."""
        generator = torch.Generator().manual_seed((self.seed * 10_007 + update) % 2**63)
        offset = torch.rand(1, dtype=torch.float64, generator=generator)
        places = (torch.arange(num_samples, dtype=torch.float64) + offset) / num_samples
        cdf = weights.cumsum(0).unsqueeze(0)
        return search_cdf(cdf, places.to(cdf.device).unsqueeze(0)).squeeze(0)

    def remembered(self) -> dict[int, Samples]:
        """The batches that are remembered, by update; they are never written to."""
        return {update: part for update, part in self._parts.items() if update != _FIRST}

    def remember_again(self, batches: Mapping[int, Samples]) -> None:
        """Go back to what was remembered; the start stays, which is always the same."""
        start = {update: part for update, part in self._parts.items() if update == _FIRST}
        self._parts = start | dict(batches)

    def describe(self) -> str:
        """The source in a few words."""
        return f"{len(self._parts)} weighted batches"

    def tensors(self) -> dict[str, Tensor]:
        """All that is remembered, for a file."""
        parts = sorted(self._parts.items())
        return {
            "replay": torch.tensor([getattr(self, name) for name in _COUNTS]),
            "shares": torch.tensor([getattr(self, name) for name in _SHARES], dtype=torch.float64),
            "updates": torch.tensor([[u, len(part)] for u, part in parts]).reshape(-1, 2),
            **{
                name: torch.cat([getattr(part, name) for _, part in parts])
                for name in (_FIELDS if parts else ())
            },
        }

    @classmethod
    def from_tensors(cls, target: Target, tensors: Mapping[str, Tensor]) -> ReplayedPositives:
        """What ``tensors`` wrote down, to be gone on with."""
        numbers = dict(zip(_COUNTS, tensors["replay"].tolist(), strict=True))
        shares = dict(zip(_SHARES, tensors["shares"].tolist(), strict=True))
        positives = cls(target, **numbers, **shares)
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


def _joined(one: Samples, two: Samples) -> Samples:
    """Both, drawn in the same way, as one."""
    pairs = {name: (getattr(one, name), getattr(two, name)) for name in (*_FIELDS, "group")}
    return Samples(**{name: torch.cat(pair) for name, pair in pairs.items()})
