"""What the learning notebook can be asked to learn: problems, forms of the twist, and settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from tsmc_widgets.errors import check_integer, check_one_of
from tsmc_widgets.learning.recipes import METHODS as ALL_METHODS
from tsmc_widgets.learning.trainer import DEFAULT_LEARNING_RATE, LEARNING_RATES
from tsmc_widgets.models.loading import load_language_model
from tsmc_widgets.models.protocol import LanguageModel
from tsmc_widgets.models.tabular import TabularLM
from tsmc_widgets.targets.bound import BoundOnly
from tsmc_widgets.targets.classifier import ClassProbability
from tsmc_widgets.targets.target import Target
from tsmc_widgets.twists.bodies import BodyTwist
from tsmc_widgets.twists.heads import LinearHeadTwist, MLPHeadTwist
from tsmc_widgets.twists.lora import LoRATwist
from tsmc_widgets.twists.table import TableHeadTwist
from tsmc_widgets.twists.trainable import TrainableModule

METHODS = ("ctl", *(name for name in ALL_METHODS if name not in ("ctl", "rl_sigma")))
"""Methods of the menu; the first is where a user starts."""


WEATHER = ("sun", "cloud", "rain")
RAIN = WEATHER.index("rain")


@dataclass(frozen=True, slots=True)
class Problem:
    """A target that a twist can be learned for.

    Attributes:
        make: the target, made when it is first wanted.
        forms: names of the twist forms that fit its model.
        exact: whether the target is small enough to compute log psi* and log Z exactly.
    """

    make: Callable[[], Target]
    forms: tuple[str, ...]
    exact: bool = False


@dataclass(frozen=True, slots=True)
class Form:
    """A form of twist.

    Attributes:
        make: of (target, link, seed) to a twist at psi = 1.
        learning_rate: that suits it.
    """

    make: Callable[[Target, str, int], TrainableModule]
    learning_rate: float


NEURAL = ("linear head", "MLP head", "own body", "LoRA")
FORMS: dict[str, Form] = {
    "linear head": Form(
        lambda target, link, seed: LinearHeadTwist(target.lm, link=link),
        LEARNING_RATES["LinearHeadTwist"],
    ),
    "MLP head": Form(
        lambda target, link, seed: MLPHeadTwist(target.lm, link=link, seed=seed),
        LEARNING_RATES["MLPHeadTwist"],
    ),
    "own body": Form(
        lambda target, link, seed: BodyTwist(target.lm, link=link, seed=seed),
        LEARNING_RATES["BodyTwist"],
    ),
    "LoRA": Form(
        lambda target, link, seed: LoRATwist(target.lm, link=link, seed=seed),
        LEARNING_RATES.get("LoRATwist", DEFAULT_LEARNING_RATE),
    ),
    "table": Form(
        lambda target, link, seed: TableHeadTwist(
            target.lm,
            num_steps=target.num_steps,
            prompt_length=len(target.prompt_tokens),
            link=link,
        ),
        0.05,
    ),
}

_MODELS: dict[str, LanguageModel] = {}


def storybook() -> LanguageModel:
    """The model that ships, loaded once."""
    if "storybook" not in _MODELS:
        _MODELS["storybook"] = load_language_model("storybook")
    return _MODELS["storybook"]


def reviews(stars: int, beta: int, num_steps: int) -> Callable[[], Target]:
    """Makes the target of reviews that a classifier gives so many stars."""

    def make() -> Target:
        phi = ClassProbability("storybook/stars", label=stars)
        phi = phi if beta == 1 else phi**beta
        return Target(storybook(), phi, prompt="I bought this", num_steps=num_steps)

    return make


def hostile_stories() -> Target:
    """Stories that a classifier finds hostile."""
    phi = ClassProbability("storybook/hostility", label=1)
    return Target(storybook(), phi, prompt="Once upon a time there was a", num_steps=20)


class DaysOfRain(BoundOnly):
    """Phi = exp(-2 |days of rain - 2|): soft, so that every week is possible."""

    log_phi_max = 0.0

    def log_phi(self, tokens: Int[Tensor, "batch steps"]) -> Float64[Tensor, " batch"]:
        """Two nats less for each day of rain more or fewer than two."""
        return -2.0 * ((tokens == RAIN).sum(1) - 2).abs().double()

    def describe(self) -> str:
        """``exp(−2 |days of rain − 2|)``."""
        return "exp(−2 |days of rain − 2|)"

    def _key(self) -> tuple:
        return ()


def rainy_week() -> Target:
    """Five days of a three-state chain, small enough to know everything about it."""
    lm = TabularLM.markov(
        torch.tensor([0.6, 0.3, 0.1]),
        torch.tensor([[0.7, 0.2, 0.1], [0.4, 0.4, 0.2], [0.2, 0.4, 0.4]]),
        symbols=WEATHER,
        separator=" ",
    )
    return Target(lm, DaysOfRain(), prompt="sun", num_steps=5)


PROBLEMS: dict[str, Problem] = {
    "1-star reviews": Problem(reviews(1, 1, 10), NEURAL),
    "5-star reviews": Problem(reviews(5, 8, 20), NEURAL),
    "hostile stories": Problem(hostile_stories, NEURAL),
    "two days of rain (toy)": Problem(rainy_week, ("table",), exact=True),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """One training, in the words of the controls.

    Attributes:
        problem: a name in ``PROBLEMS``.
        method: one of ``METHODS``.
        rivals: methods that race against it.
        form: a name in ``FORMS`` that fits the problem; "" for its usual one.
        learning_rate: of Adam; 0 for the form's usual one.
        batch_size: texts drawn for each update.
        bound_particles: K of the bounds on log Z.
        num_updates: that one press of Start takes with each method.
        seed: of all noise.
    """

    problem: str = "1-star reviews"
    method: str = METHODS[0]
    rivals: tuple[str, ...] = ()
    form: str = ""
    learning_rate: float | int = 0.0
    batch_size: int = 100
    bound_particles: int = 1
    num_updates: int = 120
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the choices, and fill in the usual form and rate."""
        check_one_of("problem", self.problem, PROBLEMS)
        forms = PROBLEMS[self.problem].forms
        if not self.form:
            object.__setattr__(self, "form", "MLP head" if "MLP head" in forms else forms[0])
        check_one_of("form", self.form, forms)
        if not self.learning_rate:
            object.__setattr__(self, "learning_rate", FORMS[self.form].learning_rate)
        for name in self.methods:
            check_one_of("method", name, METHODS)
        for name, least in (("batch_size", 2), ("bound_particles", 1), ("num_updates", 1)):
            check_integer(name, getattr(self, name), at_least=least)
        check_integer("seed", self.seed, at_least=0)

    @property
    def methods(self) -> tuple[str, ...]:
        """All that are trained, the chosen one first, the others in the order of the menu."""
        rivals = {name for name in self.rivals if name != self.method}
        others = [name for name in METHODS if name in rivals]
        return (self.method, *others, *sorted(rivals - set(others)))


def make_twist(settings: TrainSettings, target: Target, method: str) -> Any:
    """A fresh twist at a constant psi; FUDGE learns a probability and needs the sigmoid link."""
    link = "sigmoid" if method == "fudge" else "log"
    return FORMS[settings.form].make(target, link, settings.seed)
