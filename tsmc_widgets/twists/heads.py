"""Twists that read the base model's hidden state: cheap, since the body runs anyway."""

from __future__ import annotations

from tsmc_widgets.models.protocol import LanguageModel
from tsmc_widgets.twists.trainable import BaseStates, NeuralTwist, linear_head, mlp_head


class LinearHeadTwist(NeuralTwist):
    """Log psi_t(s_{<t}, .) = W h + b, with h the hidden state that predicts token t.

    Starts at zero: psi = 1, so that the twist-induced proposal is p0 exactly.

    Args:
        lm: the base model, which must have a hidden state; it stays as it is.
        link: "log", or "sigmoid" for psi <= 1.
    """

    def __init__(self, lm: LanguageModel, *, link: str = "log") -> None:
        states = BaseStates(lm)
        super().__init__(lm, states, linear_head(lm, states.width), link)


class MLPHeadTwist(NeuralTwist):
    """Log psi_t(s_{<t}, .) = MLP(h), with h the hidden state that predicts token t.

    The last layer starts at zero: psi = 1, so that the twist-induced proposal is p0 exactly.

    Args:
        lm: the base model, which must have a hidden state; it stays as it is.
        width: of the layers between; None is the hidden state's, as in the paper.
        depth: number of layers of ReLU before the last one.
        link: "log", or "sigmoid" for psi <= 1.
        seed: of the first values of the layers between.
    """

    def __init__(
        self,
        lm: LanguageModel,
        *,
        width: int | None = None,
        depth: int = 2,
        link: str = "log",
        seed: int = 0,
    ) -> None:
        states = BaseStates(lm)
        head = mlp_head(lm, states.width, width=width, depth=depth, seed=seed)
        super().__init__(lm, states, head, link, {"width": width, "depth": depth})
