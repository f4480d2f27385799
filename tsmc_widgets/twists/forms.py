"""Forms of twist by the names that people read, each made at psi = 1 for a target."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tsmc_widgets.errors import check_one_of, quoted
from tsmc_widgets.models.protocol import LanguageModel
from tsmc_widgets.targets.target import Target, check_model
from tsmc_widgets.twists.bodies import (
    BodyTwist,
    ConditionalBodyTwist,
    ConditionalHeadTwist,
    LinearHeadTwist,
    LoRATwist,
    MLPHeadTwist,
)
from tsmc_widgets.twists.lookahead import text_factors
from tsmc_widgets.twists.tied import TiedHeadTwist
from tsmc_widgets.twists.trainable import TableHeadTwist, TrainableModule


@dataclass(frozen=True, slots=True)
class TwistForm:
    """A form of twist.

    Attributes:
        kind: the class that it makes.
        seeded: whether its first values are drawn.
        options: of the target, to keyword arguments of the class.
    """

    kind: type[TrainableModule]
    seeded: bool = True
    options: Callable[[Target], dict[str, Any]] = lambda target: {}

    @property
    def conditional(self) -> bool:
        """Whether it reads an observation o."""
        return self.kind.is_conditional

    def make(self, target: Target, link: str, seed: int) -> TrainableModule:
        """A twist of this form at psi = 1."""
        options = self.options(target) | ({"seed": seed} if self.seeded else {})
        return self.kind(target.lm, link=link, **options)


def observation(target: Target) -> dict[str, Any]:
    """What a conditional twist must know of o: ``num_classes`` or ``observed_length``."""
    if size := target.potential.observed_size:
        return size
    raise ValueError(
        f"{target.potential.describe()} is no potential whose observation is known: make the twist "
        "yourself, with num_classes= or observed_length=."
    )


def _table_sizes(target: Target) -> dict[str, Any]:
    return {"num_steps": target.num_steps, "prompt_length": len(target.prompt_tokens)}


def _scored(target: Target) -> dict[str, Any]:
    return {"scored": target} if text_factors(target) else {}


TWIST_FORMS = {
    "linear head": TwistForm(LinearHeadTwist, seeded=False),
    "MLP head": TwistForm(MLPHeadTwist),
    "tied head": TwistForm(TiedHeadTwist, options=_scored),
    "own body": TwistForm(BodyTwist),
    "LoRA": TwistForm(LoRATwist),
    "table": TwistForm(TableHeadTwist, seeded=False, options=_table_sizes),
    "conditional head": TwistForm(ConditionalHeadTwist, options=observation),
    "conditional body": TwistForm(ConditionalBodyTwist, options=observation),
}


TIED_FROM = 4096
"""Tokens from which on a head of its own for each would learn from too few sequences."""


def default_twist(
    model: LanguageModel | Target, *, link: str = "log", seed: int = 0
) -> TrainableModule:
    """The form for a model's vocabulary at psi = 1: a tied head where it is large, else an MLP.

    Args:
        model: the base model, which must have a hidden state; or a target, and a tied head then
            reads what its factors of whole texts say of the text so far.
        link: "log", or "sigmoid" for psi <= 1, which FUDGE needs.
        seed: of its first values.
    """
    target = model if isinstance(model, Target) else None
    lm: Any = model if target is None else target.lm
    check_model(lm)
    if lm.vocab_size < TIED_FROM:
        return MLPHeadTwist(lm, link=link, seed=seed)
    options = {} if target is None or target.is_conditional else _scored(target)
    return TiedHeadTwist(lm, link=link, seed=seed, **options)


def make_twist(form: str, target: Target, *, link: str = "log", seed: int = 0) -> TrainableModule:
    """A twist at psi = 1, ready to learn.

    Args:
        form: a name in ``TWIST_FORMS``.
        target: what it will be for; a conditional target takes a conditional form and no other.
        link: "log", or "sigmoid" for psi <= 1, which FUDGE needs.
        seed: of its first values.
    """
    check_one_of("form", form, TWIST_FORMS)
    if TWIST_FORMS[form].conditional != target.is_conditional:
        fitting = [name for name, other in TWIST_FORMS.items()
                   if other.conditional == target.is_conditional]  # fmt: skip
        waits = "waits for" if target.is_conditional else "depends on no"
        raise ValueError(
            f"{target.potential.describe()} {waits} observation: form must be one of "
            f"{', '.join(fitting)}; got {quoted(form)}."
        )
    return TWIST_FORMS[form].make(target, link, seed)
