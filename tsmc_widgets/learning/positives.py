"""Batches, and where a loss takes its samples of sigma from: an exact pool, or past batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from tsmc_widgets import numerics
from tsmc_widgets.errors import check_integer, check_number
from tsmc_widgets.learning.samples import PoolReader, Samples, draw_samples
from tsmc_widgets.smc.proposals import Base, TwistInduced
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
        return Samples.equal(self.tokens[rows], self.log_phi[rows], places=rows)

    def describe(self) -> str:
        """The source in a few words."""
        return f"{len(self)} exact samples"

    def tensors(self) -> dict[str, Tensor]:
        """Settings and contents, for a file."""
        seed = torch.tensor([self.seed])
        return {"tokens": self.tokens, "log_phi": self.log_phi, "exact": seed}

    @classmethod
    def from_tensors(cls, target: Target, tensors: Mapping[str, Tensor]) -> ExactPool:
        """The pool whose ``tensors`` these are."""
        device = target.prompt_tokens.device
        tokens, log_phi = tensors["tokens"].to(device), tensors["log_phi"].to(device)
        return cls(tokens, log_phi, int(tensors["exact"][0]))

    def _order(self, round_: int) -> Int[Tensor, " n"]:
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + round_) % 2**63)
        return torch.randperm(len(self), generator=generator)


START = 2**14
TARGET_ESS = 100.0
MIN_BASE_SHARE = 0.05
ON_POLICY_ESS = 0.3
REPLAY_EVERY = 8
# Fewer effective texts than this are too biased, whatever their share.
_FEW = 10
_BLOCK = 1024
_START_RUN = 2**40
_FIRST = -1
_COUNTS = ("seed", "keep", "start", "replay_every")
_SHARES = ("target_ess", "min_base_share", "on_policy_ess")
_FIELDS = ("tokens", "log_q", "log_weights", "log_phi")


@dataclass(slots=True)
class ReplayedPositives:
    """Replay buffer of recent batches, each text weighted for sigma by sigma~ / q of its own q.

    As the twist learns, its batches become samples of sigma, fresh ones at every update, where
    rejection would draw thousands of texts for one. Each batch counts by its effective sample
    size; the base samples, texts of p0 from before the first update, count for at least a fixed
    share, so that regions that the twist has given up can be learned again.

    A batch whose effective sample size is a large enough share of its texts is used alone: losses
    that compare it with sigma then have one batch for both expectations, whose noise cancels the
    more the nearer q is to sigma. Every few updates the buffer is used all the same.

    Where batches and base samples are few or poor there is the bias of self-normalised weights:
    measure KL(sigma || q) on exact samples, which shows it.

    A buffer serves one training; ``afresh`` gives one to another.

    Attributes:
        target: what the samples are of.
        seed: of all noise.
        keep: batches in the buffer.
        start: most base samples, which are weighted before the first batch and never dropped.
        target_ess: effective sample size of the base samples at which no more are drawn.
        min_base_share: least share of the base samples, whatever the ESS of the batches.
        on_policy_ess: effective share of its texts from which on a batch is used alone; above 1
            none is.
        replay_every: updates from one use of the buffer to the next where batches are used alone.
        stride: addresses from one update to the next: the number of processes that train together,
            each of which has a buffer of its own batches.
    """

    target: Target
    seed: int = 0
    keep: int = 40
    start: int = START
    target_ess: float = TARGET_ESS
    min_base_share: float = MIN_BASE_SHARE
    on_policy_ess: float = ON_POLICY_ESS
    replay_every: int = REPLAY_EVERY
    stride: int = 1
    _parts: dict[int, Samples] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_integer("keep", self.keep)
        check_integer("start", self.start)
        check_number("target_ess", self.target_ess, "[0, inf]")
        check_integer("replay_every", self.replay_every)
        check_integer("stride", self.stride)
        check_number("min_base_share", self.min_base_share, "[0, 1)")
        check_number("on_policy_ess", self.on_policy_ess, "(0, inf]")

    def afresh(self) -> ReplayedPositives:
        """The same settings and base samples, and no batch."""
        self._begin()
        return replace(self, _parts={_FIRST: self._parts[_FIRST]})

    def draw(self, update: int, num_samples: int, batch: Samples) -> Samples:
        """Samples for an update: its own batch, or texts by weight from that and those before it.

        A text that was drawn several times is there once and weighs as much.
        """
        self._remember(update, batch)
        if (update // self.stride + 1) % self.replay_every and self._is_on_policy(batch):
            return batch
        alive = [(u, part) for u, part in sorted(self._parts.items()) if part.has_hits]
        if not alive:
            return batch
        rows = self._pick(torch.cat(self._shares(alive)), num_samples, update)
        rows, counts = torch.unique(rows, return_counts=True)
        parts = _concatenate([part for _, part in alive])
        drawn = Samples.equal(parts.tokens[rows], parts.log_phi[rows])
        return replace(drawn, log_weights=(counts.double() / counts.max()).log())

    def _is_on_policy(self, batch: Samples) -> bool:
        """Whether a batch is near enough to a sample of sigma to be used alone."""
        return batch.has_hits and float(numerics.ess(batch.log_weights)) >= max(
            self.on_policy_ess * len(batch), _FEW
        )

    def _remember(self, update: int, batch: Samples) -> None:
        """Add the batch of an update; what is older than ``keep`` updates or later is dropped."""
        self._begin()
        # Without the base model's answers, which take room for the vocabulary at every token.
        self._parts[update] = replace(batch, base=None, sums=None)
        oldest = update - self.keep * self.stride
        for old in [u for u in self._parts if 0 <= u <= oldest or u > update]:
            del self._parts[old]

    def _begin(self) -> None:
        """Draw base samples and weight them by phi, unless it has been done."""
        found = self._parts.get(_FIRST)
        while found is None or (
            len(found) < self.start and numerics.ess(found.log_weights) < self.target_ess
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
            found = more if found is None else _concatenate([found, more])
            # Kept at once, so that an interrupt loses one block and not all.
            self._parts[_FIRST] = found

    def _shares(self, alive: list[tuple[int, Samples]]) -> list[Float64[Tensor, " n"]]:
        """Normalised weights of each part, times what the part counts."""
        counts = [float(numerics.ess(part.log_weights)) for _, part in alive]
        if alive[0][0] == _FIRST:
            counts[0] = max(
                counts[0], self.min_base_share / (1 - self.min_base_share) * sum(counts[1:])
            )
        weights = [torch.softmax(part.log_weights, 0) for _, part in alive]
        return [count * weight for count, weight in zip(counts, weights, strict=True)]

    def _pick(self, weights: Tensor, num_samples: int, update: int) -> Tensor:
        """Rows by weight, systematically."""
        generator = torch.Generator().manual_seed((self.seed * 10_007 + update) % 2**63)
        offset = torch.rand(1, dtype=torch.float64, generator=generator)
        places = (torch.arange(num_samples, dtype=torch.float64) + offset) / num_samples
        cdf = weights.cumsum(0).unsqueeze(0)
        return search_cdf(cdf, places.to(cdf.device).unsqueeze(0)).squeeze(0)

    def batches(self) -> dict[int, Samples]:
        """The batches in the buffer, by update; they are never written to."""
        return {update: part for update, part in self._parts.items() if update != _FIRST}

    def restore(self, batches: Mapping[int, Samples]) -> None:
        """Go back to these batches; the base samples stay, which are always the same."""
        start = {update: part for update, part in self._parts.items() if update == _FIRST}
        self._parts = start | dict(batches)

    def describe(self) -> str:
        """The source in a few words."""
        return f"{len(self._parts)} weighted batches"

    def tensors(self) -> dict[str, Tensor]:
        """Settings and contents, for a file."""
        parts = sorted(self._parts.items())
        whole = _concatenate([part for _, part in parts]) if parts else None
        return {
            "replay": torch.tensor([getattr(self, name) for name in _COUNTS]),
            "shares": torch.tensor([getattr(self, name) for name in _SHARES], dtype=torch.float64),
            "updates": torch.tensor([[u, len(part)] for u, part in parts]).reshape(-1, 2),
            **{name: getattr(whole, name) for name in (_FIELDS if parts else ())},
        }

    @classmethod
    def from_tensors(cls, target: Target, tensors: Mapping[str, Tensor]) -> ReplayedPositives:
        """The buffer whose ``tensors`` these are."""
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


@dataclass(kw_only=True)
class PlainBatches:
    """What an update learns from: texts weighted for sigma, and samples of sigma.

    Attributes:
        target: what the twist is for.
        twist: proposes the texts.
        num_texts: of an update.
        positives: where samples of sigma come from; None where the method reads none.
        from_base: whether the texts are of p0, whatever the twist.
        seed: of all noise.
        stride: addresses from one update to the next, for sources that count updates.
        observations: how many o share the texts of an update; None where nothing is observed.
        others: tokens of q at each prefix for later steps on the same batch.
    """

    target: Target
    twist: Any
    num_texts: int
    positives: Any
    from_base: bool
    seed: int
    stride: int = 1
    observations: int | None = None
    others: int = 0

    def __post_init__(self) -> None:
        """Read no pool yet."""
        self._reader = PoolReader(self.target)

    def draw(self, address: int) -> tuple[Samples, Samples | None]:
        """The batch and the samples of sigma of the update with this address."""
        batch = draw_samples(
            self.target,
            num_particles=self.num_texts,
            proposal=Base() if self.from_base else TwistInduced(self.twist),
            seed=self.seed,
            run=address,
            twist=self.twist,
            others=self.others,
        )
        source = self.positives
        if source is None:
            return batch, None
        if isinstance(source, ReplayedPositives):
            source.stride = self.stride
        at_sigma = source.draw(address, self.num_texts, batch)
        if at_sigma.places is not None:
            at_sigma = self._reader.answers(at_sigma, source.tokens)
        return batch, at_sigma


def _concatenate(parts: list[Samples]) -> Samples:
    """Several batches as one, each text with its own log q and weight."""
    columns = {name: [getattr(part, name) for part in parts] for name in (*_FIELDS, "group")}
    return Samples(**{name: torch.cat(column) for name, column in columns.items()})
