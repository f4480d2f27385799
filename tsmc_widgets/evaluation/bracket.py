"""A certified bracket on log Z for any language model, by best-first search over prefixes."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from tsmc_widgets.errors import check_integer
from tsmc_widgets.evaluation.bounds_table import LogZBounds
from tsmc_widgets.evaluation.exact_sums import log_of_units, units
from tsmc_widgets.evaluation.expansion import Change, Expansion, Node, Totals
from tsmc_widgets.evaluation.phi_bounds import phi_bounds
from tsmc_widgets.targets.target import Target

ROUNDING = 256
"""Relative error allowed for in one token's probability, in units of the model's rounding.

On the model that ships, batches of other shapes move log p0 by up to 1.5e-5, half of this.
"""

WORTH = 1e-2
"""A child is looked at by itself if it is worth this share of the least prefix just read."""


@dataclass(frozen=True, slots=True)
class Bracket:
    """Log Z lies between ``lower`` and ``upper``, for certain and not on average.

    Certain for the model as it was computed: ``margin`` allows for the rounding of its
    log-probabilities, not for a device that computes something else each time.

    Attributes:
        lower: log of the mass that all texts looked at must have, in nats; -inf at first.
        upper: log of that and of what all others may have at most.
        undecided: p0's mass of the texts that nothing is known of yet.
        texts: whole texts whose phi was computed one by one.
        prefixes_read: prefixes that the model was asked about.
        frontier: prefixes that wait.
        tokens_spent: tokens that the model has read, prompts included.
        margin: nats by which both ends were moved apart for rounding.
        done: whether nothing is left to look at.
    """

    lower: float
    upper: float
    undecided: float
    texts: int
    prefixes_read: int
    frontier: int
    tokens_spent: int
    margin: float
    done: bool

    @property
    def width(self) -> float:
        """Upper minus lower, in nats."""
        return self.upper - self.lower

    def contains(self, log_z: float | int) -> bool:
        """Whether a value of log Z is possible."""
        return self.lower <= log_z <= self.upper

    def contradiction(self, bounds: LogZBounds, *, confidence: float = 0.9999) -> str:
        """What in bounds by SMC can not be true beside this bracket; "" where all can."""
        if bounds.lower.interval(confidence)[0] > self.upper:
            return (
                f"the lower bound {bounds.lower.mean:.4g} lies above the bracket's upper end "
                f"{self.upper:.4g}: sampler, proposal or log_phi_max must be wrong."
            )
        if bounds.upper is not None and bounds.upper.interval(confidence)[1] < self.lower:
            return (
                f"the upper bound {bounds.upper.mean:.4g} lies below the bracket's lower end "
                f"{self.lower:.4g}: the samples it is made with can not be exact."
            )
        return ""


class BracketSearch:
    """The search itself: stop it anywhere, go on later, nothing is lost.

    Prefixes are read best first: those whose part of Z is most uncertain, p0's mass times what phi
    may be at most. Texts that end are summed up; whatever waits is bounded above (and below, where
    the potential knows) by ``phi_bounds``. Sums are exact, so that nothing drifts however long
    the search.
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
        if target.is_conditional:
            raise ValueError(
                f"{target.potential.describe()} waits for an observation: bracket "
                "target.condition(observed)."
            )
        self.target, self.batch_size, self.fanout = target, batch_size, fanout
        self._bounds = phi_bounds(target)
        self.margin = 0.0
        self._scale, low, high = self._root_bounds()
        root = Node((), 0.0, (), units(low), units(high), units(0.0), 0.0)
        self._frontier: dict[int, Node] = {0: root}
        self._heap: list[tuple[float, int]] = [(0.0, 0)]
        self._numbers = 1
        self._totals = Totals(0, root.low, root.high, root.mass)
        self._pending: Change | None = None
        self._heap_is_whole = True

    @property
    def bracket(self) -> Bracket:
        """What is known so far."""
        self._commit()
        totals, margin = self._totals, self.margin
        return Bracket(
            lower=log_of_units(totals.closed + totals.low) + self._scale - margin,
            upper=log_of_units(totals.closed + totals.high) + self._scale + margin,
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
        numbers = self._best(most_tokens)
        if numbers:
            self._pending = self._expand(numbers)
        return self.bracket

    def run(
        self, max_tokens: int, *, on_step: Callable[[Bracket], object] | None = None
    ) -> Bracket:
        """Go on until ``max_tokens`` in all have been read, or nothing is left.

        An exception of any kind, Ctrl-C included, carries what is known as ``error.bracket``; call
        again to go on.
        """
        check_integer("max_tokens", max_tokens, at_least=0)
        try:
            while True:
                before = self.bracket
                bracket = self.step(most_tokens=max_tokens - before.tokens_spent)
                if bracket.prefixes_read == before.prefixes_read:
                    return bracket
                if on_step is not None:
                    on_step(bracket)
        except BaseException as error:
            error.bracket = self.bracket
            raise

    def __iter__(self) -> Iterator[Bracket]:
        """One bracket after each batch, until nothing is left."""
        while not self.bracket.done:
            yield self.step()

    def _root_bounds(self) -> tuple[float, float, float]:
        """Log phi that counts as 1, and bounds on it for any text, in that measure."""
        low, high = self._bounds.children(self.target.prompt_tokens.new_zeros(1, 0))
        scale = float(high.max())
        if scale == -math.inf:
            return 0.0, -math.inf, -math.inf
        return scale, float(low.min()) - scale, 0.0

    def _cost(self, node: Node) -> int:
        return max(1, len(self.target.prompt_tokens) + len(node.tokens))

    def _best(self, most_tokens: int | None) -> list[int]:
        if not self._heap_is_whole:
            self._heap = [(-node.rank, number) for number, node in self._frontier.items()]
            heapq.heapify(self._heap)
        self._heap_is_whole = False
        chosen: list[int] = []
        spent = 0
        while self._heap and len(chosen) < self.batch_size:
            _, number = self._heap[0]
            # After an interrupt a number may stand in the heap twice.
            if number in self._frontier and number not in chosen:
                spent += self._cost(self._frontier[number])
                if most_tokens is not None and spent > most_tokens:
                    break
                chosen.append(number)
            heapq.heappop(self._heap)
        if not chosen:
            self._heap_is_whole = True
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
        closed, texts = 0, 0
        for group in by_length.values():
            prefixes = self._tokens(group)
            part = Expansion(
                group,
                prefixes,
                self._read(group, prefixes),
                *self._bounds.children(prefixes),
                target=self.target,
                scale=self._scale,
                fanout=self.fanout,
                cutoff=least + math.log(WORTH),
            )
            part.close_texts()
            part.close_certain()
            closed += part.closed
            texts += part.texts
            children += part.split()
        now = self._totals
        totals = Totals(
            closed=now.closed + closed,
            low=now.low + sum(n.low for n in children) - sum(n.low for n in nodes),
            high=now.high + sum(n.high for n in children) - sum(n.high for n in nodes),
            mass=now.mass + sum(n.mass for n in children) - sum(n.mass for n in nodes),
            texts=now.texts + texts,
            prefixes_read=now.prefixes_read + len(nodes),
            tokens_spent=now.tokens_spent + sum(self._cost(node) for node in nodes),
        )
        return Change(tuple(numbers), tuple(children), self._numbers, totals)

    def _tokens(self, group: list[Node]) -> Int[Tensor, "n t"]:
        device = self.target.prompt_tokens.device
        rows = [list(node.tokens) for node in group]
        return torch.tensor(rows, dtype=torch.int64, device=device).reshape(len(group), -1)

    def _read(self, group: list[Node], prefixes: Int[Tensor, "n t"]) -> Float64[Tensor, "n vocab"]:
        """Log p0 of each prefix with each next token that has not become a node of its own."""
        prompt = self.target.prompt_tokens.expand(len(group), -1)
        answer = self.target.lm.prefill(torch.cat([prompt, prefixes], dim=1)).log_probs
        self.margin = ROUNDING * torch.finfo(answer.dtype).eps * self.target.num_steps
        log_probs = answer.double().cpu().log_softmax(1)
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
        self._heap_is_whole = False
        for offset, node in enumerate(change.children):
            self._frontier[change.first + offset] = node
        for number in change.read:
            self._frontier.pop(number, None)
        self._numbers = change.first + len(change.children)
        self._totals = change.totals
        for offset, node in enumerate(change.children):
            heapq.heappush(self._heap, (-node.rank, change.first + offset))
        # Last of all, so that what was cut short before is done again and a heap cut short is
        # built anew.
        self._pending = None
        self._heap_is_whole = True


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
    texts, or where a prefix decides phi. Elsewhere bounds by SMC are narrower.

    Args:
        target: whose Z.
        max_tokens: tokens the model may read, the prompt counted with every prefix.
        batch_size: as for ``BracketSearch``, which can also be stepped by hand.
        fanout: as for ``BracketSearch``.
        on_step: called with the bracket after each batch.
    """
    search = BracketSearch(target, batch_size=batch_size, fanout=fanout)
    return search.run(max_tokens, on_step=on_step)
