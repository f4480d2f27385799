"""What the learning notebook can be asked to learn: problems, forms of the twist, and settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tsmc_widgets.errors import check_integer, check_one_of
from tsmc_widgets.learning.rates import DEFAULT_RATE, DEFAULT_RATES, Rate
from tsmc_widgets.learning.recipes import METHODS as ALL_METHODS
from tsmc_widgets.learning.recipes import link_for
from tsmc_widgets.targets.problems import load_problem
from tsmc_widgets.targets.target import Target
from tsmc_widgets.twists.forms import TWIST_FORMS
from tsmc_widgets.twists.trainable import TrainableModule

FIRST = ("ctl", "ctl+dpg")
METHODS = (*FIRST, *(name for name in ALL_METHODS if name not in (*FIRST, "rl_sigma")))
"""Methods of the menu; the first is where a user starts."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A target that a twist can be learned for.

    Attributes:
        name: in the package's ``PROBLEMS``.
        forms: names of the twist forms that fit its model.
    """

    name: str
    forms: tuple[str, ...]

    @property
    def exact(self) -> bool:
        """Whether the target is small enough to compute log psi* and log Z exactly."""
        return load_problem(self.name).exact

    def make(self) -> Target:
        """The target; its model is loaded once."""
        return load_problem(self.name).target()


@dataclass(frozen=True, slots=True)
class Form:
    """A form of twist.

    Attributes:
        make: of (target, link, seed) to a twist at psi = 1.
        rate: the learning rate that suits it.
    """

    make: Callable[[Target, str, int], TrainableModule]
    rate: Rate

    @property
    def learning_rate(self) -> float:
        """Of the first update."""
        return self.rate.at(0)


NEURAL = ("linear head", "MLP head", "own body", "LoRA")
FORMS: dict[str, Form] = {
    name: Form(
        TWIST_FORMS[name].make,
        DEFAULT_RATES.get(TWIST_FORMS[name].kind.__name__, DEFAULT_RATE),
    )
    for name in (*NEURAL, "table")
}

PROBLEMS: dict[str, Problem] = {
    "1-star reviews": Problem("one-star-review", NEURAL),
    "5-star reviews": Problem("five-star-review-beta-8", NEURAL),
    "hostile stories": Problem("hostile-story", NEURAL),
    "two days of rain (toy)": Problem("rainy-week", ("table",)),
    "three storms, a rare event (toy)": Problem("rare-event", ("table",)),
    "two roads, late evidence (toy)": Problem("late-evidence", ("table",)),
    "glitter and mud, deceptive evidence (toy)": Problem("deceptive-evidence", ("table",)),
    "yes before the end, EOS (toy)": Problem("eos", ("table",)),
}


# What the controls can show.
LEAST_RATE, MOST_RATE = 1e-5, 1.0
MOST_SEED = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """One training, in the words of the controls.

    Attributes:
        problem: a name in ``PROBLEMS``.
        method: one of ``METHODS``.
        rivals: methods that race against it.
        form: a name in ``FORMS`` that fits the problem; "" for its usual one.
        learning_rate: of Adam, from ``LEAST_RATE`` to ``MOST_RATE``; 0 for the form's usual one.
        batch_size: texts drawn for each update.
        bound_particles: K of the bounds on log Z.
        num_updates: that one press of Start takes with each method.
        seed: of all noise, at most ``MOST_SEED``.
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
        if not LEAST_RATE <= self.learning_rate <= MOST_RATE:
            raise ValueError(
                f"learning_rate must be from {LEAST_RATE:g} to {MOST_RATE:g}, or 0 for the form's "
                f"usual one; got {self.learning_rate!r}."
            )
        for name in self.methods:
            check_one_of("method", name, METHODS)
        for name, least in (("batch_size", 2), ("bound_particles", 1), ("num_updates", 1)):
            check_integer(name, getattr(self, name), at_least=least)
        check_integer("seed", self.seed, at_least=0)
        if self.seed > MOST_SEED:
            raise ValueError(f"seed must be at most {MOST_SEED}; got {self.seed}.")

    @property
    def methods(self) -> tuple[str, ...]:
        """All that are trained, the chosen one first, the others in the order of the menu."""
        rivals = {name for name in self.rivals if name != self.method}
        others = [name for name in METHODS if name in rivals]
        return (self.method, *others, *sorted(rivals - set(others)))


def make_twist(settings: TrainSettings, target: Target, method: str) -> Any:
    """A fresh twist at a constant psi, with the link that the method wants."""
    return FORMS[settings.form].make(target, link_for(method), settings.seed)
