"""Product reviews of one to five stars, some mixed, some ironic."""

from __future__ import annotations

from training.storybook import review_lines as say
from training.storybook.engine import Choice, Dice, Page
from training.storybook.products import PRODUCTS

STAR_WEIGHTS = (5, 4, 4, 5, 6)
_TONES = (
    (0.02, 0.10, 0.88),
    (0.12, 0.28, 0.60),
    (0.27, 0.46, 0.27),
    (0.60, 0.28, 0.12),
    (0.90, 0.08, 0.02),
)
"""For each number of stars, how likely a sentence is good, middling or bad."""


class Review:
    """One review being written; it says something of each topic once at most."""

    def __init__(self, dice: Dice) -> None:
        self.dice = dice
        self.stars: int = dice.pick((1, 2, 3, 4, 5), STAR_WEIGHTS)
        self.product = product = dice.pick(PRODUCTS, [product.weight for product in PRODUCTS])
        self.page = Page(dice, product.plural)
        self.topics = list(product.topics)
        self.page.values |= {
            "product": product.name,
            "purpose": product.purposes,
            "when": say.WHEN,
            "part": product.parts,
            "use": product.use,
        }
        self.page.values |= say.MACHINE if product.machine else say.WORN

    def write(self, good_or_bad: Choice) -> None:
        """Write a sentence that may use up one topic or two."""
        fresh = self.topics if len(self.topics) > 1 else list(self.product.topics)
        first = self.dice.pick(fresh)
        second = self.dice.pick([topic for topic in fresh if topic is not first])
        self.page.values |= {"good": first[0], "bad": second[1]}
        self.page.values |= {"good2": second[0], "bad2": first[1]}
        self.page.write(good_or_bad)
        slots = self.page.slots
        used = [first] if slots & {"good", "bad2"} else []
        used += [second] if slots & {"bad", "good2"} else []
        self.topics = [topic for topic in fresh if topic not in used]

    def open(self) -> None:
        """The first sentence: what was bought, for whom, and often already how it is."""
        quick = self.dice.chance(0.45)
        self.write(say.QUICK_OPENINGS[self.stars - 1] if quick else say.PLAIN_OPENINGS)
        if self.dice.chance(0.3):
            self.page.write(say.ARRIVALS[self.stars - 1])

    def judge(self) -> None:
        """Good, middling and bad things, as the stars have it."""
        dice = self.dice
        for _ in range(dice.pick((1, 2, 3, 4), (3, 5, 3, 1))):
            tones = (say.GOOD, say.MIDDLING, say.BAD)
            self.write(dice.pick(tones, _TONES[self.stars - 1]))
        if self.stars <= 2 and dice.chance(0.35):
            self.page.write(say.IRONIC)
        if self.stars >= 4 and dice.chance(0.2):
            self.page.write(say.SURPRISED)

    def close(self) -> None:
        """A verdict and an ending that mostly agree with the stars."""
        dice, shown = self.dice, self.stars
        if dice.chance(0.06):
            shown = min(5, max(1, shown + dice.pick((-1, 1))))
        if dice.chance(0.6):
            self.page.write(say.VERDICTS[shown - 1])
        if dice.chance(0.75):
            self.page.write(say.ENDINGS[shown - 1])


def write_review(dice: Dice) -> tuple[Page, int]:
    """Write one review; returns its page and its stars, 1 to 5."""
    review = Review(dice)
    review.open()
    review.judge()
    review.close()
    return review.page, review.stars
