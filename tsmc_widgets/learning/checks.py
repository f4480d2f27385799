"""What of a training's arguments does not fit together, said before it begins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from tsmc_widgets.targets.target import Target


def check_gradient_norm(norm: Any) -> None:
    """Refuse lengths that no gradient could be shortened to."""
    if isinstance(norm, bool) or not isinstance(norm, float | int) or not norm > 0:
        raise ValueError(f"max_gradient_norm must be a number above 0; got {norm!r}.")


def check_fits(target: Target, twist: Any, weights: Mapping[str, float]) -> None:
    """Refuse twists that cannot learn, or not by these losses."""
    if not isinstance(twist, nn.Module) or not hasattr(twist, "log_psi_next"):
        raise TypeError(
            f"twist must be a trainable form such as LinearHeadTwist(lm); got "
            f"{type(twist).__name__}."
        )
    if not any(parameter.requires_grad for parameter in twist.parameters()):
        raise ValueError(f"{type(twist).__name__} has no parameter that learns.")
    if "fudge" in weights and getattr(twist, "link", "log") != "sigmoid":
        raise ValueError(
            "fudge learns a probability: make the twist with link='sigmoid', for example "
            "LinearHeadTwist(lm, link='sigmoid')."
        )
