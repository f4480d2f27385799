"""Forms of twist by the names that people read, each made at psi = 1 for a target."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tsmc_widgets.errors import check_one_of
from tsmc_widgets.targets.classifier import ClassConditional
from tsmc_widgets.targets.continuation import Infilling
from tsmc_widgets.targets.protocol import Mixture, Potential, Power, Product
from tsmc_widgets.targets.target import Target
from tsmc_widgets.twists.bodies import BodyTwist, LinearHeadTwist, LoRATwist, MLPHeadTwist
from tsmc_widgets.twists.conditional import ConditionalBodyTwist, ConditionalHeadTwist
from tsmc_widgets.twists.table import TableHeadTwist
from tsmc_widgets.twists.trainable import TrainableModule


@dataclass(frozen=True, slots=True)
class TwistForm:
    """A form of twist.

    Attributes:
        make: of (target, link, seed) to a twist at psi = 1.
        conditional: whether it reads an observation o.
        kind: the class that it makes.
    """

    make: Callable[[Target, str, int], TrainableModule]
    kind: type[TrainableModule]
    conditional: bool = False


def _table(target: Target, link: str, seed: int) -> TrainableModule:
    length = len(target.prompt_tokens)
    return TableHeadTwist(target.lm, num_steps=target.num_steps, prompt_length=length, link=link)


TWIST_FORMS: dict[str, TwistForm] = {
    "linear head": TwistForm(
        lambda target, link, seed: LinearHeadTwist(target.lm, link=link), LinearHeadTwist
    ),
    "MLP head": TwistForm(
        lambda target, link, seed: MLPHeadTwist(target.lm, link=link, seed=seed), MLPHeadTwist
    ),
    "own body": TwistForm(
        lambda target, link, seed: BodyTwist(target.lm, link=link, seed=seed), BodyTwist
    ),
    "LoRA": TwistForm(
        lambda target, link, seed: LoRATwist(target.lm, link=link, seed=seed), LoRATwist
    ),
    "table": TwistForm(_table, TableHeadTwist),
    "conditional head": TwistForm(
        lambda target, link, seed: ConditionalHeadTwist(
            target.lm, link=link, seed=seed, **observation(target)
        ),
        ConditionalHeadTwist,
        conditional=True,
    ),
    "conditional body": TwistForm(
        lambda target, link, seed: ConditionalBodyTwist(
            target.lm, link=link, seed=seed, **observation(target)
        ),
        ConditionalBodyTwist,
        conditional=True,
    ),
}


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
            f"{', '.join(fitting)}; got {form!r}."
        )
    return TWIST_FORMS[form].make(target, link, seed)


def observation(target: Target) -> dict[str, Any]:
    """What a conditional twist must know of o: ``num_classes`` or ``observed_length``."""
    for part in _parts(target.potential):
        if isinstance(part, ClassConditional):
            return {"num_classes": len(part.classes)}
        if isinstance(part, Infilling):
            return {"observed_length": part.num_tokens}
    raise ValueError(
        f"{target.potential.describe()} is no potential whose observation is known: make the twist "
        "yourself, with num_classes= or observed_length=."
    )


def _parts(potential: Potential) -> list[Potential]:
    if isinstance(potential, Power):
        return _parts(potential.part)
    if isinstance(potential, Product | Mixture):
        return [inner for part in potential.parts for inner in _parts(part)]
    return [potential]
