"""Each method as a recipe: what it samples from, and which loss reads the samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float64
from torch import Tensor

from tsmc_widgets.errors import check_one_of
from tsmc_widgets.learning.objectives import (
    cd_loss,
    ctl_loss,
    dpg_loss,
    fudge_loss,
    nvi_loss,
    rl_loss,
    sixo_loss,
)
from tsmc_widgets.learning.samples import Scored

Loss = Callable[[Scored, Scored], Float64[Tensor, ""]]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a method learns.

    Attributes:
        loss: of (positives, batch) to a scalar.
        draws_from: the batch's proposal: "twist" is the twist-induced one, "base" is p0.
        needs_positives: whether samples of sigma are read.
        positives_with_p0: whether p0 along these matters, and not log psi alone.
        fixes_level: whether the loss says how large psi is, and not only in proportion.
    """

    loss: Loss
    draws_from: Literal["twist", "base"]
    needs_positives: bool
    positives_with_p0: bool = False
    fixes_level: bool = False


RECIPES: dict[str, Recipe] = {
    "ctl": Recipe(ctl_loss, "twist", needs_positives=True),
    "rl": Recipe(lambda _, batch: rl_loss(batch), "twist", needs_positives=False, fixes_level=True),
    "rl_sigma": Recipe(
        lambda positives, batch: (rl_loss(positives, at_sigma=True) + rl_loss(batch)) / 2,
        "twist",
        needs_positives=True,
        positives_with_p0=True,
        fixes_level=True,
    ),
    "sixo": Recipe(sixo_loss, "base", needs_positives=True),
    "fudge": Recipe(
        lambda _, batch: fudge_loss(batch), "base", needs_positives=False, fixes_level=True
    ),
    "nvi": Recipe(lambda _, batch: nvi_loss(batch), "twist", needs_positives=False),
    "cd": Recipe(lambda _, batch: cd_loss(batch), "base", needs_positives=False, fixes_level=True),
    "dpg": Recipe(
        lambda positives, batch: dpg_loss(positives, from_q=positives is batch),
        "twist",
        needs_positives=True,
        positives_with_p0=True,
    ),
}
SUMS: dict[str, dict[str, float]] = {"ctl+dpg": {"ctl": 1.0, "dpg": 10.0}}
"""Weighted sums with a name. CTL + 10 DPG: weights as CTL's, with q nearer to sigma where no head
of the form is the optimal twist."""
METHODS = (*sorted([*RECIPES, *SUMS]), "ppo")


def link_for(method: str) -> str:
    """The twist's link that a method wants: FUDGE learns a probability, psi <= 1."""
    return "sigmoid" if method == "fudge" else "log"


def resolve_method(method: str | Mapping[str, float]) -> dict[str, float]:
    """Losses and their weights: one of ``METHODS``, or a mapping of losses to weights.

    Raises:
        ValueError: an unknown name, or losses that cannot share a batch.
    """
    if isinstance(method, str):
        check_one_of("method", method, METHODS)
        weights = SUMS.get(method, {method: 1.0})
    else:
        weights = dict(method)
    for name in weights:
        check_one_of("the loss", name, [*sorted(RECIPES), "ppo"])
    if not weights:
        raise ValueError("method must name at least one loss; got none.")
    if "ppo" in weights and len(weights) > 1:
        raise ValueError(
            "ppo takes several steps on one batch and cannot be summed with other losses; got "
            f"{sorted(weights)}."
        )
    proposals = {RECIPES[name].draws_from for name in weights if name != "ppo"}
    if len(proposals) > 1:
        raise ValueError(
            f"the losses {sorted(weights)} draw from different proposals (p0 and the twist's): "
            "sum losses that share one."
        )
    return dict(weights)


def reads_positives(weights: Mapping[str, float]) -> bool:
    """Whether any of the losses compares with samples of sigma."""
    return any(RECIPES[name].needs_positives for name in weights if name != "ppo")


def draws_from_base(weights: Mapping[str, float]) -> bool:
    """Whether the batches come from p0, whatever the twist."""
    return all(name != "ppo" and RECIPES[name].draws_from == "base" for name in weights)
