"""Potentials p(o | s) that wait for an observation o; joint draws make samples of sigma exact."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tsmc_widgets.errors import PotentialError
from tsmc_widgets.targets.bound import BoundOnly
from tsmc_widgets.targets.protocol import Potential


class ConditionalPotential(BoundOnly):
    """Phi = p(o | s) for an observation o that is drawn with s, or given by ``condition``.

    Where s ~ p0 and o ~ p(. | s), s is an exact sample of the target for its own o, at beta = 1.
    """

    log_phi_max = 0.0
    is_conditional = True

    def log_phi(self, tokens: Int[Tensor, "batch steps"]) -> Float[Tensor, " batch"]:
        """Refused: there is no phi before there is an observation."""
        raise PotentialError(
            f"{self.describe()} depends on an observation o that is not given: use "
            "condition(observed) of the potential or target, or log_phi_given(tokens, observed)."
        )

    def log_phi_given(
        self, tokens: Int[Tensor, "batch steps"], observed: Int[Tensor, "batch width"]
    ) -> Float[Tensor, " batch"]:
        """Log p(o | s) of each row under its own observation, in nats."""
        raise NotImplementedError

    def condition(self, observed: Any) -> Potential:
        """The potential p(o | .) for one observation."""
        raise NotImplementedError

    def draw_joint(
        self, n: int, generator: torch.Generator
    ) -> tuple[Int[Tensor, "n steps"], Int[Tensor, "n width"]]:
        """Draw s ~ p0 and o ~ p(. | s)."""
        raise NotImplementedError
