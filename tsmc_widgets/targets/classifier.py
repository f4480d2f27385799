"""Potentials from text classifiers: the probability of a class, and classes as observations."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Protocol, SupportsIndex, get_args, runtime_checkable
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor
from torch.nn.functional import logsigmoid

from tsmc_widgets.errors import (
    PotentialError,
    check_kind,
    check_number,
    check_one_of,
    quoted,
    whole_number,
)
from tsmc_widgets.targets.checked import (
    FailedOnText,
    as_numbers,
    check_bound,
    show_text,
)
from tsmc_widgets.targets.context import draw
from tsmc_widgets.targets.functions import call_on_texts, function_name
from tsmc_widgets.targets.notation import between, short_name, times
from tsmc_widgets.targets.protocol import ConditionalPotential, log_indicator
from tsmc_widgets.targets.text import Scope, TextCache, TextPotential


@runtime_checkable
class SupportsLogits(Protocol):
    """A text classifier: labels, and their logits for each text. One label is a scalar logit."""

    @property
    def labels(self) -> Sequence[str]:
        """Names of the classes, in the order of the logits."""
        ...

    def logits(self, texts: list[str]) -> Float[Tensor, "texts labels"]:
        """Logits of each text, before softmax (one label: before sigmoid)."""
        ...


ClassifierLike = str | Path | SupportsLogits
"""A classifier, or a name or folder that ``load_classifier`` takes."""


_CACHES: WeakKeyDictionary[Any, TextCache[tuple[float, ...]]] = WeakKeyDictionary()
"""Potentials on the same classifier share what it said; it goes when the classifier goes."""

_SHARE: ContextVar[bool] = ContextVar("share", default=True)


@contextmanager
def own_caches() -> Iterator[None]:
    """Potentials made within share nothing with others.

    What a classifier says of a text depends, in its last bits, on the texts that it reads with it.
    A potential with a cache of its own gives the same bytes whatever was asked before it was made.
    """
    token = _SHARE.set(False)
    try:
        yield
    finally:
        _SHARE.reset(token)


class CachedClassifier:
    """A classifier that reads each distinct text once, whoever asks.

    Attributes:
        name: what to call it: the last part of its path, or its class.
        labels: the classes' names.
        source: the name or folder that it was loaded from; "" for an object.
    """

    def __init__(self, classifier: SupportsLogits, name: str, source: str = "") -> None:
        self.classifier, self.name, self.source = classifier, name, source
        self.labels = [str(label) for label in classifier.labels]
        try:
            own = TextCache()
            self._cache = _CACHES.setdefault(classifier, own) if _SHARE.get() else own
        except TypeError:  # it cannot be hashed or weakly referred to
            self._cache = TextCache()

    def logits(self, texts: Sequence[str]) -> Float64[Tensor, "texts labels"]:
        """Logits of each text, in float64 on the CPU; PotentialError where they are NaN."""
        rows = self._cache.look_up(texts, self._compute)
        return torch.tensor(rows, dtype=torch.float64).reshape(len(rows), len(self.labels))

    def log_probs(self, texts: Sequence[str]) -> Float64[Tensor, "texts classes"]:
        """Log-probabilities; a scalar logit r gives the classes low and high, p(high) = sigmoid."""
        logits = self.logits(texts)
        if len(self.labels) > 1:
            return logits.log_softmax(-1)
        return torch.cat([logsigmoid(-logits), logsigmoid(logits)], dim=-1)

    @property
    def classes(self) -> list[str]:
        """Names of the classes that ``log_probs`` gives."""
        if len(self.labels) > 1:
            return self.labels
        name = self.labels[0]
        return ["low", "high"] if re.fullmatch(r"LABEL_\d+", name) else [f"not {name}", name]

    def _compute(self, texts: list[str]) -> list[tuple[float, ...]]:
        logits = as_numbers(self.classifier.logits(texts)).double().cpu()
        if logits.shape != (len(texts), len(self.labels)):
            raise PotentialError(
                f"The classifier {self.name} must give logits of shape "
                f"{(len(texts), len(self.labels))}; got {tuple(logits.shape)}."
            )
        bad = logits.isnan().any(-1) | (logits == torch.inf).any(-1)
        if bool(bad.any()):
            at = int(bad.nonzero()[0])
            raise PotentialError(
                f"The classifier {self.name} gave the logits {logits[at].tolist()} for "
                f"{show_text(texts[at])}: they must be numbers."
            )
        return [tuple(row) for row in logits.tolist()]


class ClassProbability(TextPotential):
    """Phi = p(class | text), from a classifier on the decoded text.

    Args:
        model: a classifier, or its name or folder ("storybook/stars").
        label: the class. A text is a class's name ("5 stars"). A number is first a name that
            starts with it (5 is "5 stars"), and where no name starts with a number, an index. A
            classifier with a scalar logit r has two classes: 1 or "high", with probability
            sigmoid(r), and 0 or "low", with 1 - sigmoid(r).
        scope: "full" shows it prompt and generated part, "continuation" the generated part.
    """

    log_phi_max = 0.0

    def __init__(
        self, model: ClassifierLike, *, label: str | SupportsIndex, scope: Scope = "full"
    ) -> None:
        super().__init__(scope=scope)
        self.classifier = cached_classifier(model)
        self.index = class_index(label, self.classifier)

    @property
    def label(self) -> str:
        """Name of the class."""
        return self.classifier.classes[self.index]

    @property
    def arguments(self) -> dict[str, Any]:
        """The constructor's, with the class by its name."""
        return {**super().arguments, "label": self.label}

    def log_phi_of_texts(self, texts: Sequence[str]) -> Float64[Tensor, " texts"]:
        """Log p(class | text), in nats."""
        return self.classifier.log_probs(texts)[:, self.index]

    @classmethod
    def formula(cls, part: Mapping[str, Any]) -> str:
        """``log p(5 stars | s)``."""
        return _class_formula(part)

    def describe(self) -> str:
        """``p(5 stars | text)``."""
        return f"p({self.label} | text)"

    def _key(self) -> tuple:
        return (self.classifier.classifier, self.index, self.scope)


class ClassConditional(ConditionalPotential):
    """Phi = p(o | text) where the class o is drawn with the text, or given by ``condition``.

    Args:
        model: a classifier, or its name or folder ("storybook/stars").
        scope: "full" shows it prompt and generated part, "continuation" the generated part.
    """

    def __init__(self, model: ClassifierLike, *, scope: Scope = "full") -> None:
        check_one_of("scope", scope, ("continuation", "full"))
        self.classifier = cached_classifier(model)
        self.scope = scope

    @property
    def classes(self) -> list[str]:
        """Names of the classes; ``observed`` holds their indices."""
        return self.classifier.classes

    @property
    def observed_size(self) -> dict[str, int]:
        """The number of classes."""
        return {"num_classes": len(self.classes)}

    def condition(self, observed: str | SupportsIndex | Sequence[Any] | Tensor) -> ClassProbability:
        """The probability of one class.

        Args:
            observed: the class's name, or its index in ``classes`` as a row of ``observed`` from
                exact samples (``torch.tensor([1])``, ``[1]``). A bare number is an index too; where
                classes are named by numbers ("2 stars") it could mean either and is refused.
        """
        named = isinstance(observed, str)
        label = str(observed) if named else self.classes[self._index(observed)]
        fixed = ClassProbability(self.classifier, label=label, scope=self.scope)
        return fixed if self._context is None else fixed.bind(self._context)

    def log_phi_given(
        self, tokens: Int[Tensor, "batch steps"], observed: Int[Tensor, "batch width"]
    ) -> Float[Tensor, " batch"]:
        """Log p(o | text) of each row with its own class index, in nats."""
        return self._log_probs(tokens).gather(1, observed).squeeze(1)

    def draw_joint(
        self, n: int, generator: torch.Generator
    ) -> tuple[Int[Tensor, "n steps"], Int[Tensor, "n width"]]:
        """Draw texts from p0, and for each its class."""
        tokens = self.context.draw(n, generator)
        return tokens, draw(self._log_probs(tokens).exp(), generator).unsqueeze(1)

    @classmethod
    def formula(cls, part: Mapping[str, Any]) -> str:
        """``log p(o | s)``."""
        return _class_formula({"label": "o", **part})

    def observation(self, observed: Any) -> list[int]:
        """The index of the class."""
        return [self.condition(observed).index]

    def example(self, joint: Callable[[], tuple[Any, Tensor]]) -> str:
        """The last class."""
        return self.classes[-1]

    def describe(self) -> str:
        """``p(class of stars | text)``."""
        return f"p(class of {self.classifier.name} | text)"

    def _index(self, observed: Any) -> int:
        classes = self.classes
        names = ", ".join(repr(name) for name in classes)
        bare = not isinstance(observed, Tensor | Sequence | np.ndarray)
        numbered = any(re.match(r"\s*\d", name) for name in classes)
        if bare and numbered and whole_number(observed) is not None:
            raise ValueError(
                f"observed={quoted(observed)} may mean a class's name or its index, as the "
                "classes of "
                f"{self.classifier.name} are {names}: give one of these names, or an index as "
                "torch.tensor([index]), such as a row of observed from exact_samples."
            )
        if isinstance(observed, Tensor | np.ndarray):
            observed = observed.reshape(-1).tolist()
        row = [observed] if bare else observed
        index = whole_number(row[0]) if len(row) == 1 else None
        if index is None or not 0 <= index < len(classes):
            raise ValueError(
                f"observed must be the name of a class, or one index from 0 to {len(classes) - 1} "
                f"of the classes of {self.classifier.name}, {names}; got {quoted(observed)}."
            )
        return index

    def _log_probs(self, tokens: Int[Tensor, "batch steps"]) -> Float64[Tensor, "batch classes"]:
        context = self.context
        texts = context.full_texts(tokens) if self.scope == "full" else context.texts(tokens)
        return self.classifier.log_probs(texts).to(tokens.device)

    def _key(self) -> tuple:
        return (self.classifier.classifier, self.scope)


def cached_classifier(
    model: ClassifierLike | CachedClassifier,
    *,
    argument: str = "model",
    device: str | torch.device | None = None,
) -> CachedClassifier:
    """A classifier by object, name or folder, as potentials use it; errors name ``argument``."""
    if isinstance(model, CachedClassifier):
        return model
    name, source = type(model).__name__, ""
    if isinstance(model, str | Path):
        _check_shipped(argument, str(model))
        from tsmc_widgets.models.loading import load_classifier

        name, source = Path(model).name, str(model)
        model = load_classifier(model, device=device)
    if not isinstance(model, SupportsLogits):
        raise TypeError(
            "A classifier must have labels and a method logits(texts), or be the name or folder "
            f"of a transformers sequence classifier; got {quoted(model)}."
        )
    return CachedClassifier(model, name, source)


def _check_shipped(argument: str, name: str) -> None:
    from tsmc_widgets.models.storybook import Part

    first, _, part = name.partition("/")
    shipped = [f"storybook/{known}" for known in get_args(Part) if known != "lm"]
    if first == "storybook" and name not in shipped:
        nearest = get_close_matches(name, shipped, n=1) if part else []
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        raise ValueError(
            f"{argument} must be one of {', '.join(shipped)}, or the name or folder of another "
            f"classifier; got {quoted(name)}.{hint}"
        )


def class_index(label: str | SupportsIndex, classifier: CachedClassifier) -> int:
    """Index of a class given by name or number, see ``ClassProbability``."""
    classes = classifier.classes
    number = whole_number(label)
    matches = []
    if number is not None:
        numbered = {i: re.match(r"\s*(\d+)(?![\d.])", name) for i, name in enumerate(classes)}
        matches = [i for i, match in numbered.items() if match and int(match[1]) == number]
        if not any(numbered.values()) and 0 <= number < len(classes):
            matches = [number]
    elif isinstance(label, str):
        if len(classifier.labels) == 1 and label in ("low", "high"):
            return ("low", "high").index(label)
        matches = [i for i, name in enumerate(classes) if name == label]
        matches = matches or [i for i, c in enumerate(classes) if c.lower() == label.lower()]
    if len(matches) != 1:
        names = ", ".join(repr(name) for name in classes)
        problem = "fits several" if matches else "is none"
        raise ValueError(
            f"label {quoted(label)} {problem} of the classes of {classifier.name}: {names}. Give "
            "one of "
            "these names."
        )
    return matches[0]


def _class_formula(part: Mapping[str, Any]) -> str:
    label, name = part.get("observed", part.get("label")), short_name(part.get("model"))
    if isinstance(label, int):
        label = f"{label} star{'s' * (label != 1)}" if name == "stars" else f"{name} {label}"
    return f"log p({label} | s)"


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
        if name is not None:
            check_kind("name", name, str, "a text")
        self.source: Any = source
        self.takes = takes
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
        either = "[-inf, inf]"
        self.at_most = math.inf if at_most is None else check_number("at_most", at_most, either)
        self.at_least = (
            -math.inf if at_least is None else check_number("at_least", at_least, either)
        )
        if not self.at_least <= self.at_most:
            raise ValueError(
                f"at_least must not exceed at_most; got at_least={at_least}, at_most={at_most}."
            )
        self.reward = Reward(reward, takes, name)

    def log_phi_of_texts(self, texts: Sequence[str]) -> Float64[Tensor, " texts"]:
        """0 where the reward is within the bounds, -inf elsewhere."""
        values = self.reward(texts)
        return log_indicator((values >= self.at_least) & (values <= self.at_most))

    @classmethod
    def formula(cls, part: Mapping[str, Any]) -> str:
        """``log 1[hostility(s) ≤ −5]``."""
        reward = short_name(part.get("reward"))
        return f"log 1[{between(f'{reward}(s)', part)}]"

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
        try:
            self.beta = check_number("beta", beta, "(0, inf)")
        except ValueError as error:
            raise ValueError(
                f"{error} To favour low rewards give a function that returns the negated reward."
            ) from error
        self.reward_max = check_bound("reward_max", reward_max)
        self.reward = Reward(reward, takes, name)

    @property
    def log_phi_max(self) -> float | None:
        """Beta times the reward's bound; None where none is known."""
        return None if self.reward_max is None else self.beta * self.reward_max

    def log_phi_of_texts(self, texts: Sequence[str]) -> Float64[Tensor, " texts"]:
        """Beta times the reward, in nats."""
        return self.beta * self.reward(texts)

    @classmethod
    def formula(cls, part: Mapping[str, Any]) -> str:
        """``2 hostility(s)``."""
        return f"{times(part.get('beta', 1))}{short_name(part.get('reward'))}(s)"

    def describe(self) -> str:
        """``exp(2 hostility(text))``."""
        factor = "" if self.beta == 1 else f"{self.beta:g} "
        return f"exp({factor}{self.reward.name}(text))"

    def _key(self) -> tuple:
        return (self.reward.key(), self.beta, self.reward_max, self.scope)
