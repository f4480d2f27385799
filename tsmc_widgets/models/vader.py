"""VADER's sentiment of English texts as a classifier with a scalar logit (Hutto, Gilbert 2014)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from tsmc_widgets.errors import check_one_of, import_extra

SENTIMENTS = ("positive", "negative")
PREFIX = "vader/"


class VaderSentiment:
    """The compound score of a text in (-1, 1), from a lexicon of rated words and a few rules.

    Its logit is the score itself, so that ``TemperedReward("vader/positive", beta=5,
    reward_max=1)`` is phi = exp(5 compound); "vader/negative" gives minus the score.

    Args:
        sentiment: "positive" or "negative".

    Attributes:
        labels: the sentiment alone: a scalar logit.
    """

    def __init__(self, sentiment: str = "positive") -> None:
        check_one_of("sentiment", sentiment, SENTIMENTS)
        module = import_extra("vaderSentiment.vaderSentiment", "sentiment", "VADER's sentiment")
        self.labels = [sentiment]
        self._sign = 1.0 if sentiment == "positive" else -1.0
        self._analyser = module.SentimentIntensityAnalyzer()

    def logits(self, texts: Sequence[str]) -> Float[Tensor, "texts one"]:
        """The score of each text, or minus it."""
        scores = [self._sign * self._analyser.polarity_scores(text)["compound"] for text in texts]
        return torch.tensor(scores, dtype=torch.float64).unsqueeze(1)
