"""One step of the search for a bracket: what becomes of the continuations of some prefixes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from tsmc_widgets.errors import PotentialError
from tsmc_widgets.evaluation.exact_sums import units
from tsmc_widgets.targets.target import Target


@dataclass(frozen=True, slots=True)
class Node:
    """A prefix, less the next tokens that have become nodes of their own.

    ``low``, ``high`` and ``mass`` are what is left of it, in exact units; ``rank`` orders nodes by
    what is uncertain about them. ``seen`` says that it has been read before, and that what is
    certain about its continuations has been summed up.
    """

    tokens: tuple[int, ...]
    log_mass: float
    taken: tuple[int, ...]
    low: int
    high: int
    mass: int
    rank: float
    seen: bool = False


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over closed texts and waiting prefixes, in exact units, and counts."""

    closed: int
    low: int
    high: int
    mass: int
    texts: int = 0
    prefixes_read: int = 0
    tokens_spent: int = 0


@dataclass(frozen=True, slots=True)
class Change:
    """Prefixes that were read, what came of them, and the totals after."""

    read: tuple[int, ...]
    children: tuple[Node, ...]
    first: int
    totals: Totals


class Expansion:
    """The continuations of some prefixes of one length, sorted into closed, split off and rest."""

    def __init__(
        self,
        group: list[Node],
        prefixes: Int[Tensor, "n t"],
        log_mass: Float64[Tensor, "n vocab"],
        low: Float64[Tensor, "n vocab"],
        high: Float64[Tensor, "n vocab"],
        *,
        target: Target,
        scale: float,
        fanout: int,
        cutoff: float,
    ) -> None:
        """Take over what was read.

        Args:
            group: the prefixes.
            prefixes: their tokens.
            log_mass: log p0 of each continuation that is still part of its prefix; changed here.
            low: bounds on log phi of each continuation.
            high: the same from above.
            target: whose Z.
            scale: log phi that counts as 1.
            fanout: continuations of a prefix that become nodes at most.
            cutoff: rank below which a continuation stays in the rest.
        """
        self.group, self.prefixes, self.target = group, prefixes, target
        self.low, self.high, self.cutoff = low, high, cutoff
        self.scale, self.fanout = scale, fanout
        self.eos = target.eos_token_id if target.absorbs_eos else None
        self.closed, self.texts = 0, 0
        self.length = prefixes.shape[1] + 1
        self.fresh: list[list[int]] = [[] for _ in group]
        seen = torch.tensor([node.seen for node in group]).unsqueeze(1)
        self.log_mass = torch.where(seen & (low == high), -math.inf, log_mass)

    def close_texts(self) -> None:
        """Compute phi where a text ends with its next token."""
        target, eos = self.target, self.eos
        ends = torch.zeros(self.log_mass.shape, dtype=torch.bool)
        if self.length == target.num_steps:
            if target.log_phi_next is not None:
                values = target.log_phi_next(self.prefixes).cpu()
                self._know(torch.ones_like(ends), values)
                return
            ends[:] = True
        elif eos is not None:
            ends[:, eos] = True
        open_ends = ends & (self.low < self.high) & (self.log_mass > -math.inf)
        rows, tokens = self._worth_it(open_ends)
        if not len(rows):
            return
        device = self.prefixes.device
        texts = [self.prefixes[rows.to(device)], tokens.unsqueeze(1).to(device)]
        texts = torch.cat(texts, dim=1)
        padding = target.num_steps - self.length
        if padding:
            texts = torch.nn.functional.pad(texts, (0, padding), value=eos)
        values = torch.full(self.log_mass.shape, math.nan, dtype=torch.float64)
        values[rows, tokens] = target.log_phi(texts).cpu()
        self._know(~values.isnan(), values)
        for row, token in zip(rows.tolist(), tokens.tolist(), strict=True):
            self.fresh[row].append(token)

    def close_certain(self) -> None:
        """Sum up the continuations whose phi no ending can change, and forget impossible ones."""
        certain = (self.low == self.high) & (self.log_mass > -math.inf)
        sums = torch.logsumexp(
            torch.where(certain, self.log_mass + self.low, -math.inf), dim=1
        ).tolist()
        self.closed += sum(units(value - self.scale) for value in sums)
        self.log_mass = torch.where(certain, -math.inf, self.log_mass)

    def split(self) -> list[Node]:
        """Nodes for the continuations worth it, and one for the rest of each prefix."""
        nodes = []
        if self.length < self.target.num_steps:
            rows, tokens = self._worth_it(self.log_mass > -math.inf)
            mass = self.log_mass[rows, tokens]
            low, high = mass + self.low[rows, tokens], mass + self.high[rows, tokens]
            found = zip(*(part.tolist() for part in (rows, tokens, mass, low, high)), strict=True)
            for row, token, log_mass, lower, upper in found:
                begun = (*self.group[row].tokens, token)
                nodes.append(self._node(begun, log_mass, (), lower, upper, log_mass))
                self.fresh[row].append(token)
            self.log_mass[rows, tokens] = -math.inf
        parts = (self.log_mass + self.low, self.log_mass + self.high, self.log_mass)
        sums = zip(*(torch.logsumexp(part, dim=1).tolist() for part in parts), strict=True)
        for node, fresh, (low, high, mass) in zip(self.group, self.fresh, sums, strict=True):
            if mass > -math.inf:
                rest = self._node(
                    node.tokens, node.log_mass, (*node.taken, *fresh), low, high, mass
                )
                nodes.append(replace(rest, seen=True))
        return nodes

    def _node(
        self,
        tokens: tuple[int, ...],
        log_mass: float,
        taken: tuple[int, ...],
        low: float,
        high: float,
        mass: float,
    ) -> Node:
        low, high = low - self.scale, high - self.scale
        return Node(
            tokens=tokens,
            log_mass=log_mass,
            taken=taken,
            low=units(low),
            high=units(high, up=True),
            mass=units(mass),
            rank=high + math.log1p(-min(1 - 1e-12, math.exp(min(0.0, low - high)))),
        )

    def _know(self, where: Bool[Tensor, "n vocab"], values: Float64[Tensor, "n vocab"]) -> None:
        """Put phi itself for both bounds; refuse a phi above its bound."""
        alive = where & (self.log_mass > -math.inf)
        over = alive & (values > self.high + 1e-6 * (1 + self.high.abs()))
        if bool(over.any()):
            row, token = over.nonzero()[0].tolist()
            raise PotentialError(
                f"{self.target.potential.describe()} bounds log phi by "
                f"{float(self.high[row, token]):g}, and it is {float(values[row, token]):g} for "
                f"tokens {[*self.group[row].tokens, token]}: raise log_phi_max."
            )
        self.low = torch.where(where, values, self.low)
        self.high = torch.where(where, values, self.high)
        self.texts += int(alive.sum())

    def _worth_it(
        self, where: Bool[Tensor, "n vocab"]
    ) -> tuple[Int[Tensor, " k"], Int[Tensor, " k"]]:
        """The heaviest continuations of each prefix: those above the cutoff, and always one."""
        weight = torch.where(where, self.log_mass + self.high - self.scale, -math.inf)
        best = weight.topk(min(self.fanout, weight.shape[1]), dim=1)
        kept = best.values >= self.cutoff
        kept[:, 0] = True
        kept &= best.values > -math.inf
        rows = kept.nonzero()[:, 0]
        return rows, best.indices[kept]
