"""Heads tied to the base model's output embedding, for vocabularies of tens of thousands.

Log psi(v) = <g(h), e_v> + b(h): a direction in the space in which the model tells tokens apart.
An untied head of 50,000 rows learns each row from the few sequences that have its token; here all
tokens learn together, and what a loss needs of a sum over the vocabulary is one vector, the mean
of e_v under q, so that no table of (sequences, steps, vocabulary) is made.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tsmc_widgets.errors import UnsupportedModelError, check_integer
from tsmc_widgets.models.protocol import LanguageModel
from tsmc_widgets.twists.trainable import BaseStates, NeuralTwist

_EPS = 1e-6


class PerInput(nn.Linear):
    """A linear layer of its inputs divided by their number.

    One step of Adam at rate r moves each output by about r, whatever the width (the rule of muP:
    Yang and Hu 2021), so that one rate serves models of every size.
    """

    def forward(self, states: Tensor) -> Tensor:
        """The layer's outputs."""
        return super().forward(states / self.in_features)


class TiedHead(nn.Module):
    """<g(h), e_v> / width + b(h), with e_v the output embedding, centred and of unit mean square.

    The state h is divided by its root mean square. The embedding is the base model's own tensor,
    frozen, and no part of the parameters.

    Args:
        lm: the base model, which must have an ``output_embedding``.
        inputs: width of the states.
        width: of the layers between.
        depth: number of layers between; 0 makes g linear in h.
        seed: of the first values of the layers between; g and b start at zero.
    """

    def __init__(
        self, lm: LanguageModel, inputs: int, *, width: int, depth: int, seed: int
    ) -> None:
        super().__init__()
        embedding = output_embedding(lm)
        check_integer("depth", depth, at_least=0)
        check_integer("width", width)
        generator = torch.Generator().manual_seed(check_integer("seed", seed, at_least=0))
        layers: list[nn.Module] = []
        for at in range(depth):
            layer = PerInput(width if at else inputs, width, dtype=torch.float32)
            nn.init.normal_(layer.weight, std=layer.in_features**0.5, generator=generator)
            nn.init.zeros_(layer.bias)
            layers += [layer, nn.SiLU()]
        self.body = nn.Sequential(*layers).to(lm.device)
        last = PerInput(width if depth else inputs, embedding.shape[1] + 1, dtype=torch.float32)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.last = last.to(lm.device)
        object.__setattr__(self, "embedding", embedding)
        centre = embedding.mean(0)
        scale = (embedding - centre).square().mean().sqrt() * embedding.shape[1]
        self.register_buffer("centre", centre.float(), persistent=False)
        self.register_buffer("scale", scale.float(), persistent=False)

    def direction(self, states: Float[Tensor, "*rows inputs"]) -> Float[Tensor, "*rows width1"]:
        """G and b as they multiply the raw embedding and 1: (..., width + 1)."""
        states = states.to(self.last.weight.dtype)
        states = states * torch.rsqrt(states.square().mean(-1, keepdim=True) + _EPS)
        answer = self.last(self.body(states))
        g, b = answer[..., :-1] / self.scale, answer[..., -1:]
        return torch.cat([g, b - (g * self.centre).sum(-1, keepdim=True)], dim=-1)

    def forward(self, states: Float[Tensor, "*rows inputs"]) -> Float[Tensor, "*rows vocab"]:
        """Values of every token."""
        direction = self.direction(states)
        return direction[..., :-1].to(self.embedding) @ self.embedding.T + direction[..., -1:]

    def at(
        self, states: Float[Tensor, "*rows inputs"], tokens: Int[Tensor, "*rows"]
    ) -> Float[Tensor, "*rows"]:
        """Values of one token in each row."""
        return self.along(states, nn.functional.pad(self.embedding[tokens], (0, 1), value=1.0))

    def along(
        self, states: Float[Tensor, "*rows inputs"], mean: Float[Tensor, "*rows width1"]
    ) -> Float[Tensor, "*rows"]:
        """The sum over tokens whose weights have this ``mean_embedding``."""
        return (self.direction(states) * mean).sum(-1)

    def mean_embedding(self, weights: Float[Tensor, "rows vocab"]) -> Float[Tensor, "rows width1"]:
        """Sums of weights times (e_v, 1): all that a gradient needs of a sum over tokens."""
        total = weights.sum(-1, keepdim=True)
        return torch.cat([weights.to(self.embedding) @ self.embedding, total], dim=-1)


def output_embedding(lm: LanguageModel) -> Float[Tensor, "vocab width"]:
    """The base model's output embedding; raises UnsupportedModelError where it has none."""
    embedding = getattr(lm, "output_embedding", None)
    if embedding is None:
        raise UnsupportedModelError(
            f"{type(lm).__name__} has no output embedding to tie a head to: use another form, such "
            "as TableHeadTwist for a tiny vocabulary, or a model that load_language_model gives."
        )
    return embedding.float()


class TiedHeadTwist(NeuralTwist):
    """Log psi_t(s_{<t}, .) = <g(h), e_v> + b(h): a head tied to the output embedding.

    For models of real vocabularies: of SmolLM2's 49,152 tokens it has 0.3 million parameters,
    where ``MLPHeadTwist`` has 29 million. Starts at psi = 1, so that the twist-induced proposal is
    p0 exactly.

    Args:
        lm: the base model, of transformers; it stays as it is.
        width: of the layers between; 16, say, makes a head of low rank.
        depth: number of layers between; 0 makes g linear in the hidden state h.
        link: "log", or "sigmoid" for psi <= 1.
        seed: of the first values of the layers between.
    """

    def __init__(
        self,
        lm: LanguageModel,
        *,
        width: int = 256,
        depth: int = 1,
        link: str = "log",
        seed: int = 0,
    ) -> None:
        states = BaseStates(lm)
        head = TiedHead(lm, states.width, width=width, depth=depth, seed=seed)
        super().__init__(lm, states, head, link, {"width": width, "depth": depth})

    is_tied = True

    def log_psi_at(
        self, hidden: Float[Tensor, "*rows width"], tokens: Int[Tensor, "*rows"]
    ) -> Float[Tensor, "*rows"]:
        """Log psi of one token in each row, with gradients."""
        return self._linked(self.head.at(hidden, tokens))

    @torch.no_grad()
    def mean_embedding(
        self, hidden: Float[Tensor, "rows width"], log_q: Float[Tensor, "rows vocab"]
    ) -> Float[Tensor, "rows width1"]:
        """The ``TiedHead.along`` of which has the gradient of log sum_v p0 psi, at this q."""
        weights = log_q.exp()
        if self.link == "sigmoid":  # d log psi / d raw = 1 - psi / bound.
            weights *= -torch.expm1(self.value_given(hidden, None) - self.log_bound)
        return self.head.mean_embedding(weights)

    def _last_layer(self) -> list[Tensor]:
        return [self.head.last.bias, self.head.last.weight]

    def _shared(self) -> list[Any]:
        return [*super()._shared(), self.head.embedding]
