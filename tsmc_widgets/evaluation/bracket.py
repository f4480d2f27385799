"""A certified bracket on log Z for any language model, by best-first search over prefixes."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from tsmc_widgets.errors import PotentialError, check_callable, check_integer
from tsmc_widgets.evaluation.estimates import Bracket
from tsmc_widgets.targets.automata import TokenAutomaton
from tsmc_widgets.targets.checked import check_bound
from tsmc_widgets.targets.ending import Ending
from tsmc_widgets.targets.protocol import log_indicator
from tsmc_widgets.targets.target import Target, require_unconditional

Bounds = tuple[Float64[Tensor, "n vocab"], Float64[Tensor, "n vocab"]]
PhiBounds = Callable[[Int[Tensor, "n t"]], Bounds]
"""Lower and upper bounds on log phi over all endings of each prefix followed by each token, in
nats, on the CPU."""


def automaton_bounds(
    automaton: TokenAutomaton, num_steps: int, ending: Ending | None = None
) -> PhiBounds:
    """The best and the worst value that an automaton can still reach: tight, and exact at T.

    Args:
        automaton: gives log phi from its last state.
        num_steps: T.
        ending: where texts end before T; None where they do not.
    """
    # A text that has ended goes on with one token alone: it stays one text, whatever its state.
    ended = torch.zeros(len(automaton.transition), dtype=torch.bool)
    if ending is not None:
        automaton, ended = ending.beside(automaton)
    ended, transition, value = (
        part.cpu() for part in (ended, automaton.transition, automaton.log_value.double())
    )
    if ending is not None:
        transition = torch.where(
            ended.unsqueeze(1), transition[:, ending.fill : ending.fill + 1], transition
        )
    here = TokenAutomaton(automaton.initial, transition, value)
    # By t and state: least and largest log phi of any ending.
    lows, highs = [value], [value]
    for _ in range(num_steps):
        lows.insert(0, lows[0][transition].amin(1))
        highs.insert(0, highs[0][transition].amax(1))

    def bounds(prefixes: Int[Tensor, "n t"]) -> Bounds:
        t = prefixes.shape[1] + 1
        states = transition[here.run(prefixes.cpu())]
        return lows[t][states], highs[t][states]

    return bounds


def own_bounds(potential: Any, vocab_size: int) -> PhiBounds:
    """A potential's own ``log_phi_bounds(prefixes) -> (low, high)``, of every longer prefix."""

    def bounds(prefixes: Int[Tensor, "n t"]) -> Bounds:
        vocab = torch.arange(vocab_size, device=prefixes.device).repeat(len(prefixes))
        longer = torch.cat([prefixes.repeat_interleave(vocab_size, 0), vocab.unsqueeze(1)], dim=1)
        low, high = (
            torch.as_tensor(part, dtype=torch.float64).cpu().reshape(len(prefixes), -1)
            for part in potential.log_phi_bounds(longer)
        )
        if not bool((low <= high).all()) or bool((high == math.inf).any()):
            raise PotentialError(
                f"log_phi_bounds of {potential.describe()} must give low <= high < +inf."
            )
        return low, high

    return bounds


def language_bounds(potential: Any, eos: int | None) -> PhiBounds:
    """Phi is 0 where a prefix cannot be completed, at most 1 elsewhere, and known at EOS."""

    def bounds(prefixes: Int[Tensor, "n t"]) -> Bounds:
        high = log_indicator(potential.viable_next(prefixes).cpu())
        low = torch.full_like(high, -math.inf)
        if eos is not None:
            low[:, eos] = high[:, eos]
        return low, high

    return bounds


def weighted_sum(parts: Sequence[tuple[PhiBounds, float | int]]) -> PhiBounds:
    """Bounds of a product of powers: those of each factor times its power, added up."""

    def bounds(prefixes: Int[Tensor, "n t"]) -> Bounds:
        low: Any = 0.0
        high: Any = 0.0
        for part, beta in parts:
            lower, upper = part(prefixes)
            low, high = low + beta * lower, high + beta * upper
        return low, high

    return bounds


def phi_bounds(target: Target) -> PhiBounds:
    """The tightest bounds that a target's potential knows of.

    An automaton first, then the potential's own ``log_phi_bounds`` or ``viable_next``, then those
    of its factors, then ``log_phi_max``.

    Raises:
        PotentialError: some factor has no upper bound at all.
    """
    vocab = target.lm.vocab_size

    def of(potential: Any) -> PhiBounds:
        automaton = potential.automaton()
        if automaton is not None:
            return automaton_bounds(automaton, target.num_steps, target.ending)
        if potential.log_phi_bounds is not None:
            return own_bounds(potential, vocab)
        if potential.viable_next is not None:
            return language_bounds(potential, target.eos_token_id if target.absorbs_eos else None)
        inner = potential.unpowered()
        is_power = inner[0] is not potential
        parts = [inner] if is_power else [(factor, 1.0) for factor in potential.factors()]
        if len(parts) > 1 or is_power:
            return weighted_sum([(of(part), beta) for part, beta in parts])
        bound = check_bound(f"log_phi_max of {potential.describe()}", potential.log_phi_max)
        if bound is None:
            raise PotentialError(
                f"a certified bracket needs an upper bound on log phi, and none is known for "
                f"{potential.describe()}: give log_phi_max (or reward_max) to the part that has "
                "none."
            )
        ends = torch.tensor([-math.inf, bound], dtype=torch.float64).reshape(2, 1, 1)
        return lambda prefixes: tuple(ends.expand(2, len(prefixes), vocab))

    bounds = of(target.potential)
    return bounds if target.power == 1 else _with_power(bounds, target)


def _with_power(bounds: PhiBounds, target: Target) -> PhiBounds:
    """Bounds on log phi plus log of the mass that p0**power has over all endings of a prefix.

    The power of V probabilities sums to something between 1 and V**(1 - power).
    """

    def powered(prefixes: Int[Tensor, "n t"]) -> Bounds:
        low, high = bounds(prefixes)
        left = target.num_steps - prefixes.shape[1] - 1
        spread = torch.full_like(low, (1 - target.power) * left * math.log(target.lm.vocab_size))
        if target.ending is not None:
            spread[target.ending.next(prefixes).cpu()] = 0.0
        return low + spread.clamp(max=0.0), high + spread.clamp(min=0.0)

    return powered


BITS = 1100
CLOSED_BITS = 1 << 17
"""Bits of the unit of waiting prefixes, one number for each, and of the sum of what is closed.

Closed sequences are told from zero down to about 90,000 nats below the bound on phi.
"""
LOG_2 = math.log(2.0)


def units(log_value: float, *, bits: int = BITS, up: bool = False) -> int:
    """exp(log_value) in units of 2**-bits, rounded down, or ``up`` where it is not zero."""
    if log_value == -math.inf:
        return 0
    power = math.floor(log_value / LOG_2)
    digits, shift = int(math.exp(log_value - power * LOG_2) * 2**53), bits + power - 53
    return (digits << shift if shift >= 0 else digits >> -shift) + up


def log_of_units(count: int, bits: int = BITS) -> float:
    """Log of a number of units, to the last digits however small it is."""
    if not count:
        return -math.inf
    length = count.bit_length()
    return math.log(count / (1 << length)) + (length - bits) * LOG_2


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A prefix, less the next tokens that have become nodes of their own.

    ``low``, ``high`` and ``mass`` are what is left of it, in exact units; ``rank`` orders nodes by
    what is uncertain about them. ``seen`` says that it has been read before, and that what is
    certain about its continuations has been summed up.
    """

    tokens: tuple[int, ...] = ()
    log_mass: float = 0.0
    taken: tuple[int, ...] = ()
    low: int
    high: int
    mass: int
    rank: float = 0.0
    seen: bool = False


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over closed sequences and waiting prefixes, in exact units, and counts.

    ``closed`` is rounded down, by less than one of its finer units in each of ``roundings``.
    """

    low: int
    high: int
    mass: int
    closed: int = 0
    roundings: int = 0
    texts: int = 0
    prefixes_read: int = 0
    tokens_spent: int = 0


@dataclass(frozen=True, slots=True)
class Change:
    """Prefixes that were read, what came of them by number, and the totals after."""

    read: tuple[int, ...]
    children: dict[int, Node]
    totals: Totals


@dataclass
class Expansion:
    """The continuations of some prefixes of one length, sorted into closed, split off and rest.

    Attributes:
        group: the prefixes.
        prefixes: their tokens.
        log_mass: log p0 of each continuation that is still part of its prefix.
        low: bounds on log phi of each continuation.
        high: the same from above.
        target: whose Z.
        scale: log phi that counts as 1.
        fanout: continuations of a prefix that become nodes at most.
        cutoff: rank below which a continuation stays in the rest.
    """

    group: list[Node]
    prefixes: Int[Tensor, "n t"]
    log_mass: Float64[Tensor, "n vocab"]
    low: Float64[Tensor, "n vocab"]
    high: Float64[Tensor, "n vocab"]
    target: Target
    scale: float
    fanout: int
    cutoff: float

    def __post_init__(self) -> None:
        """Take out what has been summed up before."""
        self.closed, self.roundings, self.texts = 0, 0, 0
        self.length = self.prefixes.shape[1] + 1
        self.fresh: list[list[int]] = [[] for _ in self.group]
        seen = torch.tensor([node.seen for node in self.group]).unsqueeze(1)
        self.log_mass = torch.where(seen & (self.low == self.high), -math.inf, self.log_mass)

    def close_ended(self) -> None:
        """Compute phi where a sequence ends with its next token."""
        target = self.target
        ends = torch.zeros(self.log_mass.shape, dtype=torch.bool)
        if self.length == target.num_steps:
            if target.log_phi_next is not None:
                values = target.log_phi_next(self.prefixes).cpu()
                self._know(torch.ones_like(ends), values)
                return
            ends[:] = True
        elif target.ending is not None:
            ends = target.ending.next(self.prefixes).cpu()
        open_ends = ends & (self.low < self.high) & (self.log_mass > -math.inf)
        rows, tokens = self._heaviest(open_ends)
        if not len(rows):
            return
        device = self.prefixes.device
        ended = [self.prefixes[rows.to(device)], tokens.unsqueeze(1).to(device)]
        values = torch.full(self.log_mass.shape, math.nan, dtype=torch.float64)
        values[rows, tokens] = target.log_phi(target.whole(torch.cat(ended, dim=1))).cpu()
        self._know(~values.isnan(), values)
        for row, token in zip(rows.tolist(), tokens.tolist(), strict=True):
            self.fresh[row].append(token)

    def close_certain(self) -> None:
        """Sum up the continuations whose phi no ending can change, and forget impossible ones."""
        certain = (self.low == self.high) & (self.log_mass > -math.inf)
        sums = torch.logsumexp(
            torch.where(certain, self.log_mass + self.low, -math.inf), dim=1
        ).tolist()
        found = [value - self.scale for value in sums if value > -math.inf]
        self.closed += sum(units(value, bits=CLOSED_BITS) for value in found)
        self.roundings += len(found)
        self.log_mass = torch.where(certain, -math.inf, self.log_mass)

    def split(self) -> list[Node]:
        """Nodes for the heaviest continuations, and one for the rest of each prefix."""
        nodes = []
        if self.length < self.target.num_steps:
            rows, tokens = self._heaviest(self.log_mass > -math.inf)
            parts = (part[rows, tokens].tolist() for part in self._parts())
            found = zip(rows.tolist(), tokens.tolist(), *parts, strict=True)
            for row, token, low, high, mass in found:
                begun = (*self.group[row].tokens, token)
                nodes.append(self._node(low, high, mass, tokens=begun, log_mass=mass))
                self.fresh[row].append(token)
            self.log_mass[rows, tokens] = -math.inf
        sums = zip(*(part.logsumexp(dim=1).tolist() for part in self._parts()), strict=True)
        for node, fresh, (low, high, mass) in zip(self.group, self.fresh, sums, strict=True):
            if mass > -math.inf:
                taken = (*node.taken, *fresh)
                about = {"tokens": node.tokens, "log_mass": node.log_mass, "taken": taken}
                nodes.append(self._node(low, high, mass, seen=True, **about))
        return nodes

    def _parts(self) -> tuple[Float64[Tensor, "n vocab"], ...]:
        """Bounds on log p0 phi of each continuation, and its log p0."""
        return (self.log_mass + self.low, self.log_mass + self.high, self.log_mass)

    def _node(self, low: float, high: float, mass: float, **about: Any) -> Node:
        low, high = low - self.scale, high - self.scale
        return Node(
            low=units(low),
            high=units(high, up=True),
            mass=units(mass),
            rank=high + math.log1p(-min(1 - 1e-12, math.exp(min(0.0, low - high)))),
            **about,
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

    def _heaviest(
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


ROUNDING = 256
"""Relative error allowed for in one token's probability, in units of the model's rounding.

On the model that ships, batches of other shapes move log p0 by up to 1.5e-5, half of this.
"""

MIN_SHARE = 1e-2
"""A continuation becomes a node if its rank is at least this share of the least prefix read."""


class BracketSearch:
    """Best-first search over prefixes, which can be stopped and resumed anywhere.

    Prefixes are read best first: those whose part of Z is most uncertain, p0's mass times what phi
    may be at most. Sequences that end are summed up; prefixes that wait are bounded above (and
    below, where the potential knows) by ``phi_bounds``. Sums are of integers, so that nothing
    drifts in a long search; the ends allow for what float64 rounds off each summand.
    """

    def __init__(self, target: Target, *, batch_size: int = 64, fanout: int = 64) -> None:
        """Prepare a search; nothing is read yet.

        Args:
            target: whose Z; its potential must have an upper bound (``log_phi_max``, an automaton
                or ``log_phi_bounds``).
            batch_size: prefixes that the model reads at a time.
            fanout: continuations of a prefix that are looked at by themselves at a time.

        Raises:
            PotentialError: no bound is known.
            ValueError: the potential waits for an observation.
        """
        check_integer("batch_size", batch_size)
        check_integer("fanout", fanout)
        require_unconditional(target, "bracket target.condition(observed).")
        self.target, self.batch_size, self.fanout = target, batch_size, fanout
        self._bounds = phi_bounds(target)
        self.margin = 0.0
        self._scale, low, high = self._root_bounds()
        root = Node(low=units(low), high=units(high), mass=units(0.0))
        self._numbers = itertools.count(1)
        self._frontier: dict[int, Node] = {0: root}
        self._heap: list[tuple[float, int]] | None = None
        self._totals = Totals(root.low, root.high, root.mass)
        self._pending: Change | None = None

    @property
    def bracket(self) -> Bracket:
        """What is known so far."""
        self._commit()
        totals, margin = self._totals, self.margin
        finer, closed = CLOSED_BITS - BITS, totals.closed
        lower = log_of_units(closed + (totals.low << finer), CLOSED_BITS) + self._scale
        closed += totals.roundings
        upper = log_of_units(closed + (totals.high << finer), CLOSED_BITS) + self._scale
        return Bracket(
            lower=lower - margin - self._slack(lower),
            upper=upper + margin + self._slack(upper),
            undecided=math.exp(log_of_units(totals.mass)),
            texts=totals.texts,
            prefixes_read=totals.prefixes_read,
            frontier=len(self._frontier),
            tokens_spent=totals.tokens_spent,
            margin=margin,
            done=not self._frontier,
        )

    def step(self, *, most_tokens: int | None = None) -> Bracket:
        """Read one batch of prefixes, of at most so many tokens; the same bracket if none fits."""
        self._commit()
        # The heap is lost where this is cut short, and built again from the frontier.
        heap, self._heap = self._heap, None
        if heap is None:
            heap = [(-node.rank, number) for number, node in self._frontier.items()]
            heapq.heapify(heap)
        numbers = self._pop_best(heap, most_tokens)
        change = self._expand(numbers) if numbers else None
        self._pending, self._heap = change, heap
        return self.bracket

    def run(
        self, max_tokens: int, *, on_step: Callable[[Bracket], object] | None = None
    ) -> Bracket:
        """Go on until ``max_tokens`` in all have been read, or nothing is left.

        An exception of any kind, Ctrl-C included, carries what is known as ``error.bracket``; call
        again to go on.
        """
        check_integer("max_tokens", max_tokens, at_least=0)
        if on_step is not None:
            check_callable("on_step", on_step)
        try:
            while True:
                before = self.bracket
                bracket = self.step(most_tokens=max_tokens - before.tokens_spent)
                if bracket.prefixes_read == before.prefixes_read:
                    return bracket
                if on_step is not None:
                    on_step(bracket)
        except BaseException as error:
            error.bracket = self.bracket  # type: ignore[attr-defined]
            raise

    def __iter__(self) -> Iterator[Bracket]:
        """One bracket after each batch, until nothing is left."""
        while not self.bracket.done:
            yield self.step()

    def _root_bounds(self) -> tuple[float, float, float]:
        """Log phi that counts as 1, and bounds on it for any sequence, in that measure."""
        low, high = self._bounds(self.target.prompt_tokens.new_zeros(1, 0))
        scale = float(high.max())
        if scale == -math.inf:
            return 0.0, -math.inf, -math.inf
        spread = (1 - self.target.power) * math.log(self.target.lm.vocab_size)
        return scale, float(low.min()) - scale + min(0.0, spread), max(0.0, spread)

    def _slack(self, end: float) -> float:
        """What float64 may round off an end: T sums of logs of its size, and a sum over tokens."""
        if end == -math.inf:
            return 0.0
        size = 1 + abs(end) + abs(self._scale)
        return (64 + self.target.num_steps) * torch.finfo(torch.float64).eps * size

    def _cost(self, node: Node) -> int:
        return max(1, len(self.target.prompt_tokens) + len(node.tokens))

    def _pop_best(self, heap: list[tuple[float, int]], most_tokens: int | None) -> list[int]:
        chosen: list[int] = []
        spent = 0
        while heap and len(chosen) < self.batch_size:
            spent += self._cost(self._frontier[heap[0][1]])
            if most_tokens is not None and spent > most_tokens:
                break
            chosen.append(heapq.heappop(heap)[1])
        return chosen

    @torch.no_grad()
    def _expand(self, numbers: list[int]) -> Change:
        """What reading some prefixes will change; changes nothing itself."""
        nodes = [self._frontier[number] for number in numbers]
        least = min(node.rank for node in nodes)
        by_length: dict[int, list[Node]] = {}
        for node in nodes:
            by_length.setdefault(len(node.tokens), []).append(node)
        children: list[Node] = []
        parts: list[Expansion] = []
        for group in by_length.values():
            prefixes = self._tokens(group)
            part = Expansion(
                group,
                prefixes,
                self._read(group, prefixes),
                *self._bounds(prefixes),
                target=self.target,
                scale=self._scale,
                fanout=self.fanout,
                cutoff=least + math.log(MIN_SHARE),
            )
            part.close_ended()
            part.close_certain()
            children += part.split()
            parts.append(part)
        now = self._totals
        totals = Totals(
            closed=now.closed + sum(part.closed for part in parts),
            roundings=now.roundings + sum(part.roundings for part in parts),
            low=now.low + sum(n.low for n in children) - sum(n.low for n in nodes),
            high=now.high + sum(n.high for n in children) - sum(n.high for n in nodes),
            mass=now.mass + sum(n.mass for n in children) - sum(n.mass for n in nodes),
            texts=now.texts + sum(part.texts for part in parts),
            prefixes_read=now.prefixes_read + len(nodes),
            tokens_spent=now.tokens_spent + sum(self._cost(node) for node in nodes),
        )
        return Change(tuple(numbers), dict(zip(self._numbers, children, strict=False)), totals)

    def _tokens(self, group: list[Node]) -> Int[Tensor, "n t"]:
        device = self.target.prompt_tokens.device
        rows = [list(node.tokens) for node in group]
        return torch.tensor(rows, dtype=torch.int64, device=device).reshape(len(group), -1)

    def _read(self, group: list[Node], prefixes: Int[Tensor, "n t"]) -> Float64[Tensor, "n vocab"]:
        """Log p0 of each prefix with each next token that has not become a node of its own."""
        prompt = self.target.prompt_tokens.expand(len(group), -1)
        answer = self.target.lm.prefill(torch.cat([prompt, prefixes], dim=1)).log_probs
        size = self.target.num_steps * max(1, self.target.power)
        self.margin = ROUNDING * torch.finfo(answer.dtype).eps * size
        log_probs = self.target.power * answer.double().cpu().log_softmax(1)
        for row, node in enumerate(group):
            log_probs[row] += node.log_mass
            if node.taken:
                log_probs[row, list(node.taken)] = -math.inf
        return log_probs

    def _commit(self) -> None:
        """Make a change known; an interrupt between any two lines only makes it begin again."""
        change = self._pending
        if change is None:
            return
        heap, self._heap = self._heap, None
        self._frontier.update(change.children)
        for number in change.read:
            self._frontier.pop(number, None)
        self._totals = change.totals
        for number, node in change.children.items() if heap is not None else ():
            heapq.heappush(heap, (-node.rank, number))
        # Last of all, so that what was cut short before is done again.
        self._pending, self._heap = None, heap


def bracket_log_z(
    target: Target,
    *,
    max_tokens: int = 100_000,
    batch_size: int = 64,
    fanout: int = 64,
    on_step: Callable[[Bracket], object] | None = None,
) -> Bracket:
    """Bracket log Z for certain, reading at most ``max_tokens`` tokens.

    It holds for any model and any bounded potential, and is narrow where p0 puts its mass on few
    sequences, or where a prefix decides phi. Elsewhere bounds by SMC are narrower.

    Args:
        target: whose Z.
        max_tokens: tokens the model may read, the prompt counted with every prefix.
        batch_size: as for ``BracketSearch``, which can also be stepped by hand.
        fanout: as for ``BracketSearch``.
        on_step: called with the bracket after each batch.
    """
    search = BracketSearch(target, batch_size=batch_size, fanout=fanout)
    return search.run(max_tokens, on_step=on_step)
