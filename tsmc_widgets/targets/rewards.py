"""Potentials from a reward: a threshold on it, or the reward as a log potential."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from jaxtyping import Float64

from tsmc_widgets.errors import check_one_of
from tsmc_widgets.targets.bound import log_indicator
from tsmc_widgets.targets.checked import FailedOnText, as_numbers, check_bound
from tsmc_widgets.targets.classifier import SupportsLogits, cached_classifier
from tsmc_widgets.targets.functions import call_on_texts, function_name
from tsmc_widgets.targets.text import Scope, TextPotential

RewardLike = str | Path | SupportsLogits | Callable[..., Any]
"""A scalar classifier (its logit) by object, name or folder, or any Python function of text."""

Takes = Literal["text", "texts"]


class Reward:
    """A number for each text; finite or infinite, but never NaN.

    Attributes:
        name: what to call it.
    """

    def __init__(self, source: RewardLike, takes: Takes, name: str | None) -> None:
        check_one_of("takes", takes, ("text", "texts"))
        self.source, self.takes = source, takes
        self.classifier = None
        if callable(source) and not isinstance(source, SupportsLogits):
            self.name = function_name(source) if name is None else name
            return
        self.classifier = cached_classifier(source, argument="reward")
        self.name = self.classifier.name if name is None else name
        if len(self.classifier.labels) != 1:
            raise ValueError(
                f"A reward must be a single number, and the classifier {self.classifier.name} has "
                f"the classes {', '.join(self.classifier.labels)}: use ClassProbability, or a "
                "Python function of text."
            )

    def __call__(self, texts: Sequence[str]) -> Float64[Tensor, " texts"]:
        """Reward of each text."""
        if self.classifier is not None:
            return self.classifier.logits(texts)[:, 0]
        values = as_numbers(call_on_texts(self.source, self.takes, texts)).double().cpu()
        if values.shape != (len(texts),):
            raise ValueError(
                f"the reward of {len(texts)} texts must have shape ({len(texts)},), "
                f"got {tuple(values.shape)}"
            )
        if bool(values.isnan().any()):
            text = texts[int(values.isnan().nonzero()[0])]
            raise FailedOnText(text) from ValueError("the reward is NaN")
        return values

    def key(self) -> tuple:
        """What makes two rewards equal."""
        source = self.source if self.classifier is None else self.classifier.classifier
        return (source, self.takes, self.name)


class RewardThreshold(TextPotential):
    """Phi = 1 where a reward of the text is within a bound, else 0.

    Args:
        reward: a classifier with a scalar logit (object, name or folder), or a function of text.
        at_most: highest reward allowed.
        at_least: lowest reward allowed.
        takes: whether a function takes one "text" or a list of "texts".
        scope: "full" shows it prompt and generated part, "continuation" the generated part.
        name: what to call the reward.
    """

    log_phi_max = 0.0

    def __init__(
        self,
        reward: RewardLike,
        *,
        at_most: float | int | None = None,
        at_least: float | int | None = None,
        takes: Takes = "text",
        scope: Scope = "full",
        name: str | None = None,
    ) -> None:
        super().__init__(scope=scope)
        if at_most is None and at_least is None:
            raise ValueError("Give at_most, at_least or both; got neither.")
        self.at_most = math.inf if at_most is None else float(at_most)
        self.at_least = -math.inf if at_least is None else float(at_least)
        if not self.at_least <= self.at_most:
            raise ValueError(
                f"at_least must not exceed at_most; got at_least={at_least}, at_most={at_most}."
            )
        self.reward = Reward(reward, takes, name)

    def log_phi_of_texts(self, texts: Sequence[str]) -> Float64[Tensor, " texts"]:
        """0 where the reward is within the bounds, -inf elsewhere."""
        values = self.reward(texts)
        return log_indicator((values >= self.at_least) & (values <= self.at_most))

    def describe(self) -> str:
        """``hostility(text) ≤ -5``."""
        low = "" if self.at_least == -math.inf else f"{self.at_least:g} ≤ "
        high = "" if self.at_most == math.inf else f" ≤ {self.at_most:g}"
        if low and not high:
            return f"{self.reward.name}(text) ≥ {self.at_least:g}"
        return f"{low}{self.reward.name}(text){high}"

    def _key(self) -> tuple:
        return (self.reward.key(), self.at_least, self.at_most, self.scope)


class TemperedReward(TextPotential):
    """Phi = exp(beta r(text)).

    Args:
        reward: a classifier with a scalar logit (object, name or folder), or a function of text.
        beta: positive; for a negative one negate the reward.
        reward_max: an upper bound on the reward where one is known; exact samples need it.
        takes: whether a function takes one "text" or a list of "texts".
        scope: "full" shows it prompt and generated part, "continuation" the generated part.
        name: what to call the reward.
    """

    def __init__(
        self,
        reward: RewardLike,
        *,
        beta: float | int,
        reward_max: float | int | None = None,
        takes: Takes = "text",
        scope: Scope = "full",
        name: str | None = None,
    ) -> None:
        super().__init__(scope=scope)
        if not (math.isfinite(beta) and beta > 0):
            raise ValueError(
                f"beta must be a positive finite number; got {beta!r}. To favour low rewards give "
                "a function that returns the negated reward."
            )
        self.beta = float(beta)
        self.reward_max = check_bound("reward_max", reward_max)
        self.reward = Reward(reward, takes, name)

    @property
    def log_phi_max(self) -> float | None:
        """Beta times the reward's bound; None where none is known."""
        return None if self.reward_max is None else self.beta * self.reward_max

    def log_phi_of_texts(self, texts: Sequence[str]) -> Float64[Tensor, " texts"]:
        """Beta times the reward, in nats."""
        return self.beta * self.reward(texts)

    def describe(self) -> str:
        """``exp(2 hostility(text))``."""
        factor = "" if self.beta == 1 else f"{self.beta:g} "
        return f"exp({factor}{self.reward.name}(text))"

    def _key(self) -> tuple:
        return (self.reward.key(), self.beta, self.reward_max, self.scope)
