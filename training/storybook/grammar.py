"""The grammar that writes the storybook's texts, with the labels that only it knows.

Text `i` of a corpus depends on (seed, kind, i) alone, so that a corpus can be written in parts, in
any order, and lengthened without changing what was there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from training.storybook.engine import Dice, join
from training.storybook.reviews import write_review
from training.storybook.stories import write_story

Kind = Literal["story", "review"]
STORY_PROMPT = "Once upon a time there was a"
REVIEW_PROMPT = "I bought this"


@dataclass(frozen=True, slots=True)
class Text:
    """A text with its latent labels."""

    kind: Kind
    words: tuple[str, ...]
    heats: tuple[float, ...]
    """How much hostility each word adds; below zero where it repairs."""
    stars: int | None
    """1 to 5 for a review, None for a story."""
    nats: float
    """Surprise of the grammar's choices: on average an upper bound on the text's entropy."""

    def __str__(self) -> str:
        return join(self.words)

    def hostility(self) -> list[float]:
        """Hostility shown after each word."""
        return shown_hostility(self.heats)


def shown_hostility(heats: Sequence[float]) -> list[float]:
    """Hostility that words of these heats have shown: 0 none, 2.5 hostile, 5 very hostile."""
    shown, level = [], 0.0
    for heat in heats:
        level = max(0.0, level + heat)
        shown.append(level)
    return shown


def hostile_logit(hostility: float) -> float:
    """Log-odds that a reader calls a text of this hostility hostile; smooth, in (-8, 8).

    Of a harmless text they are -6.1: were readers less sure of these, their common doubts would
    outweigh the few texts that are hostile, and sigma of p(hostile | text) would be harmless.
    """
    return 8.0 * math.tanh((hostility - 2.5) / 2.5)


def write(kind: Kind | str, seed: int, index: int) -> Text:
    """Text `index` of the corpus of this kind and seed."""
    if kind not in ("story", "review"):
        raise ValueError(f"kind must be one of story, review; got {kind!r}.")
    dice = Dice(f"{seed}/{kind}/{index}")
    if kind == "story":
        page, stars = write_story(dice), None
    else:
        page, stars = write_review(dice)
    return Text(kind, tuple(page.words), tuple(page.heats), stars, dice.nats)


def corpus(seed: int, size: int, start: int = 0) -> Iterator[Text]:
    """Stories and reviews by turns: texts `start` to `start + size` of a seed's corpus."""
    for i in range(start, start + size):
        yield write("review" if i % 2 else "story", seed, i // 2)
