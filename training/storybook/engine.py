"""A small template engine for writing text by chance, with agreement and marked hostility.

A template is words and punctuation separated by spaces, with

* `[a b|3* c|]`   one alternative by chance, weighted by a leading `3*` (else 1), possibly empty;
* `{key}`         the page's value for `key`, itself a template;
* `is/are`        the first word for a singular subject, the second for a plural one;
* `hit^1.8`       a word that adds 1.8 to the hostility shown so far (`sorry^-1` takes away);
                  after a closing bracket, the last word written by the alternative does.

Every draw passes through `Dice`, which adds up the surprise of its choices: on average that is the
entropy of the derivations, an upper bound on the entropy of the text.
"""

from __future__ import annotations

import functools
import math
import random
import re
from collections.abc import Sequence
from typing import Any, TypeVar

Item = TypeVar("Item")

_SYMBOLS = re.compile(r"[\[\]|]|[^\s\[\]|]+")
_WEIGHT = re.compile(r"(\d+(?:\.\d+)?)\*")
_TRIES = 6
_VOWELS = frozenset("aeiou")
SENTENCE_ENDS = frozenset(".!?")

Word = tuple[str, str, float]
"""A word for a singular and for a plural subject, and the hostility it adds."""


class Dice:
    """Seeded choices that remember their total surprise in nats."""

    def __init__(self, seed: str) -> None:
        self._rng = random.Random(seed)
        self.nats = 0.0

    def chance(self, probability: float) -> bool:
        """True with the given probability, in (0, 1)."""
        outcome = self._rng.random() < probability
        self.nats -= math.log(probability if outcome else 1.0 - probability)
        return outcome

    def pick(self, items: Sequence[Item], weights: Sequence[float | int] | None = None) -> Item:
        """One of the items, uniformly or by weight."""
        if weights is None:
            self.nats += math.log(len(items))
            return items[int(self._rng.random() * len(items))]
        total = math.fsum(weights)
        mark = self._rng.random() * total
        chosen = len(items) - 1
        for i, weight in enumerate(weights):
            mark -= weight
            if mark < 0.0:
                chosen = i
                break
        self.nats -= math.log(weights[chosen] / total)
        return items[chosen]


class Choice:
    """Weighted alternatives, each a compiled template."""

    __slots__ = ("options", "weights")

    def __init__(self, options: list[list[object]], weights: list[float]) -> None:
        self.options = options
        self.weights = None if len(set(weights)) == 1 else weights


class Slot(str):
    """The name of a value that the page holds."""

    __slots__ = ()


def lines(text: str) -> Choice:
    """Compile one alternative a line; a line may begin with its weight (`3* ...`)."""
    rows = [row.strip() for row in text.strip().splitlines() if row.strip()]
    compiled = [_weigh(list(parse(row))) for row in rows]
    return Choice([nodes for nodes, _ in compiled], [weight for _, weight in compiled])


@functools.cache
def parse(template: str) -> tuple[object, ...]:
    """Compile a template to words, slots and choices."""
    symbols = _SYMBOLS.findall(template)
    nodes, end = _parse_row(symbols, 0)
    if end != len(symbols):
        raise ValueError(f"Unbalanced brackets in the template {template!r}.")
    return tuple(nodes)


def _parse_row(symbols: list[str], start: int) -> tuple[list[object], int]:
    nodes: list[object] = []
    at = start
    while at < len(symbols) and symbols[at] not in ("|", "]"):
        if symbols[at] == "[":
            node, at = _parse_choice(symbols, at)
            nodes.append(node)
            continue
        nodes.append(_leaf(symbols[at]))
        at += 1
    return nodes, at


def _parse_choice(symbols: list[str], start: int) -> tuple[Choice, int]:
    options, weights, at = [], [], start
    while symbols[at] != "]":
        nodes, at = _parse_row(symbols, at + 1)
        if at == len(symbols):
            raise ValueError(f"Unbalanced brackets in the template {' '.join(symbols)!r}.")
        nodes, weight = _weigh(nodes)
        options.append(nodes)
        weights.append(weight)
    return Choice(options, weights), at + 1


def _weigh(nodes: list[object]) -> tuple[list[object], float]:
    first = nodes[0] if nodes else None
    match = _WEIGHT.fullmatch(first[0]) if isinstance(first, tuple) else None
    return (nodes[1:], float(match[1])) if match else (nodes, 1.0)


def _leaf(symbol: str) -> Slot | Word:
    if symbol.startswith("{") and symbol.endswith("}"):
        return Slot(symbol[1:-1])
    if "{" in symbol or "}" in symbol:
        raise ValueError(f"A slot must stand alone, with spaces about it; got {symbol!r}.")
    word, _, heat = symbol.partition("^")
    singular, slash, plural = word.partition("/")
    return singular, plural if slash else singular, float(heat or 0.0)


class Page:
    """Text being written: its words and heats, values for the slots, the last sentence's slots."""

    def __init__(self, dice: Dice, plural: bool = False) -> None:
        self.dice = dice
        self.plural = plural
        self.values: dict[str, str] = {}
        self.words: list[str] = []
        self.heats: list[float] = []
        self.slots: set[str] = set()
        self._phrases: set[tuple[str, ...]] = set()

    def write(self, sentence: str | Choice) -> None:
        """Add a sentence, a template or alternatives of them, and capitalise it.

        A sentence that repeats four words of the text so far is drawn again, a few times at most.
        The surprise of a draw that was thrown away is not counted: what is counted stays an upper
        bound, since given that it repeats nothing the kept sentence is only likelier.
        """
        start, nats = len(self.words), self.dice.nats
        nodes = parse(sentence) if isinstance(sentence, str) else (sentence,)
        for _ in range(_TRIES):
            del self.words[start:], self.heats[start:]
            self.dice.nats = nats
            self.slots.clear()
            self._render(nodes)
            if not self._repeats(start):
                break
        self._polish(start)

    def _repeats(self, start: int) -> bool:
        fresh: set[tuple[str, ...]] = set()
        words = self.words
        for i in range(start, len(words) - 3):
            phrase = tuple(words[i : i + 4])
            if phrase in self._phrases or phrase in fresh:
                return True
            fresh.add(phrase)
        self._phrases |= fresh
        return False

    def _render(self, nodes: Sequence[Any]) -> None:
        for node in nodes:
            if isinstance(node, tuple):
                word = node[self.plural]
                if word:
                    self.words.append(word)
                    self.heats.append(node[2])
                else:
                    self.heats[-1] += node[2]
            elif isinstance(node, Slot):
                self.slots.add(node)
                self._render(parse(self.values[node]))
            else:
                self._render(self.dice.pick(node.options, node.weights))

    def _polish(self, start: int) -> None:
        capital = True
        for i in range(start, len(self.words)):
            word = self.words[i]
            if word == "a" and self.words[i + 1][0] in _VOWELS:
                word = "an"
            if word == "”":
                capital = False
            elif word in SENTENCE_ENDS or word == "“":
                capital = True
            elif capital:
                word = word[0].upper() + word[1:]
                capital = False
            self.words[i] = word


def join(words: Sequence[str]) -> str:
    """The words as running text: no space before punctuation or after an opening quote."""
    pieces: list[str] = []
    for i, word in enumerate(words):
        tight = word in {".", ",", "!", "?", "”", "'s"} or (i > 0 and words[i - 1] == "“")
        pieces.append(word if tight or i == 0 else " " + word)
    return "".join(pieces)
