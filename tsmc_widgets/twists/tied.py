"""Heads tied to the base model's output embedding, for vocabularies of tens of thousands.

Log psi(v) = <g(h), e_v> + a(h) u_v + b(h): a direction in the space in which the model tells tokens
apart, and how much of what phi says of a token alone, u_v, counts here.
An untied head of 50,000 rows learns each row from the few sequences that have its token; here all
tokens learn together, and what a loss needs of a sum over the vocabulary is one vector, the mean
of e_v under q, so that no table of (sequences, steps, vocabulary) is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn

from tsmc_widgets.errors import UnsupportedModelError, check_integer, quoted
from tsmc_widgets.models.protocol import LanguageModel, LMStep, TeacherForced
from tsmc_widgets.targets.description import describe_potential, parse_potential
from tsmc_widgets.targets.target import Target, check_target
from tsmc_widgets.twists.lookahead import LookAheadCarry, so_far, text_factors
from tsmc_widgets.twists.trainable import BaseStates, NeuralTwist

_EPS = 1e-6
BODY_GAIN, LAST_GAIN, TILT_GAIN, LEVEL_GAIN = 16.0, 8.0, 3.0, 10.0
"""How far one step moves layers, g and b, log psi by g, and the level of b, relative to the rate:
by search on sentiment of SmolLM2, see docs/learning_on_real_models.md."""
SCORES = 2
"""Inputs that ``ScoredStates`` adds."""
_LEVEL_TEXTS = 64
_MOST_SCORE = 4.0


class PerInput(nn.Linear):
    """A linear layer of its inputs times gain / number of inputs.

    One step of Adam at rate r moves an output by about r times the gain, whatever the width (the
    rule of muP: Yang and Hu 2021), so that one rate serves models of every size.
    """

    def __init__(self, inputs: int, outputs: int, gain: float) -> None:
        super().__init__(inputs, outputs, dtype=torch.float32)
        self.gain = gain

    def forward(self, states: Tensor) -> Tensor:
        """The layer's outputs."""
        return super().forward(states * (self.gain / self.in_features))


class TiedHead(nn.Module):
    """<g(h), e_v> / width + a(h) u_v + b(h), with e_v the output embedding of unit mean square.

    The state h is divided by its root mean square; inputs after it come as they are. The embedding
    is the base model's own tensor, frozen, and no part of the parameters.

    Args:
        lm: the base model, which must have an ``output_embedding``.
        inputs: width of the states.
        extra: how many of the inputs are none of the hidden state's: those that ``ScoredStates``
            adds at the end.
        width: of the layers between.
        depth: number of layers between; 0 makes g linear in h.
        seed: of the first values of the layers between; g, a and b start at zero.
        scores: u of each token, in [-1, 1]; None leaves a(h) u out.
    """

    embedding: Tensor
    scale: Tensor
    scores: Tensor | None

    def __init__(
        self, lm: LanguageModel, inputs: int, *, extra: int = 0, width: int, depth: int, seed: int,
        scores: Float[Tensor, " vocab"] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.hidden = inputs - extra
        embedding = output_embedding(lm)
        check_integer("depth", depth, at_least=0)
        check_integer("width", width)
        generator = torch.Generator().manual_seed(check_integer("seed", seed, at_least=0))
        layers: list[nn.Module] = []
        for at in range(depth):
            layer = PerInput(width if at else inputs, width, BODY_GAIN)
            std = layer.in_features**0.5 / BODY_GAIN
            nn.init.normal_(layer.weight, std=std, generator=generator)
            nn.init.zeros_(layer.bias)
            layers += [layer, nn.SiLU()]
        self.body = nn.Sequential(*layers).to(lm.device)
        outputs = embedding.shape[1] + (1 if scores is None else 2)
        last = PerInput(width if depth else inputs, outputs, LAST_GAIN)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.last = last.to(lm.device)
        # No buffer, as no state_dict is to hold it.
        object.__setattr__(self, "embedding", embedding)
        # Of b: 1, and what ``ScoredStates`` adds, so that its level is found in a few steps.
        self.by_score = nn.Parameter(torch.zeros(1 + 2 * extra, device=lm.device))
        scale = embedding.square().mean().sqrt() * embedding.shape[1] / TILT_GAIN
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("scores", None if scores is None else scores.float().to(lm.device))

    def direction(self, states: Float[Tensor, "*rows inputs"]) -> Float[Tensor, "*rows width1"]:
        """The vector (g, a, b), which multiplies the raw embedding, u and 1; without u, (g, b)."""
        states = states.to(self.last.weight.dtype)
        hidden = states[..., : self.hidden]
        scale = torch.rsqrt(hidden.square().mean(-1, keepdim=True) + _EPS)
        states = torch.cat([hidden * scale, states[..., self.hidden :]], dim=-1)
        answer = self.last(self.body(states))
        b = answer[..., -1:] + LEVEL_GAIN * self._basis(states) @ self.by_score.unsqueeze(1)
        width = self.embedding.shape[1]
        parts = [answer[..., :width] / self.scale, TILT_GAIN * answer[..., width:-1], b]
        return torch.cat(parts, dim=-1)

    def _basis(self, states: Float[Tensor, "*rows inputs"]) -> Float[Tensor, "*rows basis"]:
        """1, the extra inputs, and these times the last of them, which is time."""
        extra = states[..., self.hidden :] / self.hidden**0.5
        one = torch.ones_like(states[..., :1])
        return torch.cat([one, extra, extra * extra[..., -1:]], dim=-1)

    def forward(self, states: Float[Tensor, "*rows inputs"]) -> Float[Tensor, "*rows vocab"]:
        """Values of every token."""
        direction, width = self.direction(states), self.embedding.shape[1]
        values = direction[..., :width].to(self.embedding) @ self.embedding.T + direction[..., -1:]
        return values if self.scores is None else values + direction[..., -2:-1] * self.scores

    def values(
        self, direction: Float[Tensor, "*#rows width1"], tokens: Int[Tensor, "*#rows"]
    ) -> Float[Tensor, "*rows"]:
        """Values of one token in each row."""
        width = self.embedding.shape[1]
        values = (direction[..., :width] * self.embedding[tokens]).sum(-1) + direction[..., -1]
        return values if self.scores is None else values + direction[..., -2] * self.scores[tokens]

    def mean_embedding(self, weights: Float[Tensor, "rows vocab"]) -> Float[Tensor, "rows width1"]:
        """Sums of weights times (e_v, u_v, 1): all that a gradient needs of a sum over tokens."""
        weights = weights.to(self.embedding)
        parts = [weights @ self.embedding, weights.sum(-1, keepdim=True)]
        if self.scores is not None:
            parts.insert(1, weights @ self.scores.unsqueeze(1))
        return torch.cat(parts, dim=-1)


def output_embedding(lm: LanguageModel) -> Float[Tensor, "vocab width"]:
    """The base model's output embedding; raises UnsupportedModelError where it has none."""
    embedding = getattr(lm, "output_embedding", None)
    if embedding is None:
        raise UnsupportedModelError(
            f"{type(lm).__name__} has no output embedding to tie a head to: use another form, such "
            "as TableHeadTwist for a tiny vocabulary, or a model that load_language_model gives."
        )
    return embedding.float()


class ScoredStates(BaseStates):
    """Hidden states with two more inputs: log phi of the text so far, standardised, and t / T.

    A hidden state knows what will be said, and phi what has been: what a text has earned so far is
    exact here, and a head learns what is still to come.

    Args:
        target: whose factors of whole texts are read.

    Attributes:
        level: mean and standard deviation of log phi over texts of p0, which standardise it.
    """

    def __init__(self, target: Target) -> None:
        super().__init__(target.lm)
        self.target, self.parts = target, text_factors(target)
        self.prompt_length = len(target.prompt_tokens)
        self._strength = self.width**0.5
        self.level = torch.tensor([0.0, 1.0], dtype=torch.float64, device=target.lm.device)
        self.width += SCORES

    def measure(self, seed: int) -> Float64[Tensor, " two"]:
        """The level, from texts drawn from p0."""
        generator = torch.Generator(self.lm.device).manual_seed(seed)
        drawn = self._log_phi(self.target.context.draw(_LEVEL_TEXTS, generator))
        finite = drawn[drawn.isfinite()]
        if len(finite) < 2 or float(finite.std()) == 0:
            return self.level
        return torch.stack([finite.mean(), finite.std()])

    @torch.no_grad()
    def token_scores(self) -> Float[Tensor, " vocab"]:
        """What the factors say of each token alone, from -1 to 1 about their median.

        A state of the model knows little of which tokens phi likes, and a direction in its
        embedding has to learn that from sequences; phi itself is asked here, once about each token.
        Tokens that it rules out count as the worst of the others.
        """
        log_phi = self._log_phi(torch.arange(self.lm.vocab_size, device=self.lm.device)[:, None])
        finite = log_phi[log_phi.isfinite()]
        if not len(finite):
            return torch.zeros_like(log_phi).float()
        scores = torch.where(log_phi.isfinite(), log_phi, finite.min()) - finite.median()
        return (scores / scores.abs().max().clamp(min=1e-12)).float()

    def prefill(self, tokens: Tensor, lm_step: LMStep) -> tuple[Tensor, LookAheadCarry]:
        """The inputs after whole prefixes."""
        carry = LookAheadCarry(tokens[:, self.prompt_length :])
        return self._beside(lm_step.hidden, carry.tokens), carry

    def advance(self, tokens: Tensor, carry: Any, lm_step: LMStep) -> tuple[Tensor, LookAheadCarry]:
        """The inputs after one more token."""
        carry = LookAheadCarry(torch.cat([carry.tokens, tokens.unsqueeze(1)], dim=1))
        return self._beside(lm_step.hidden, carry.tokens), carry

    @torch.no_grad()
    def teacher_force(
        self, tokens: Tensor, prompt_length: int, base: TeacherForced | None
    ) -> Float[Tensor, "batch steps width"]:
        """The inputs before each token after the prompt."""
        hidden = super().teacher_force(tokens, prompt_length, base)
        own = tokens[:, prompt_length:]
        steps = range(hidden.shape[1])
        return torch.stack([self._beside(hidden[:, t], own[:, :t]) for t in steps], dim=1)

    def _beside(
        self, hidden: Float[Tensor, "batch hidden"], tokens: Int[Tensor, "batch steps"]
    ) -> Float[Tensor, "batch width"]:
        score = (self._log_phi(tokens) - self.level[0]) / self.level[1]
        score = score.clamp(-_MOST_SCORE, _MOST_SCORE) / 2
        time = torch.full_like(score, tokens.shape[1] / self.target.num_steps)
        extra = self._strength * torch.stack([score, time], dim=1)
        return torch.cat([hidden, extra.to(hidden)], dim=1)

    def _log_phi(self, tokens: Int[Tensor, "batch steps"]) -> Float64[Tensor, " batch"]:
        total = torch.zeros(len(tokens), dtype=torch.float64, device=tokens.device)
        for part, beta in self.parts:
            total += beta * so_far(part, tokens)
        return total


class TiedHeadTwist(NeuralTwist):
    """Log psi_t(s_{<t}, .) = <g(h), e_v> + a(h) u_v + b(h): a head tied to the output embedding.

    For models of real vocabularies: of SmolLM2's 49,152 tokens it has 0.15 million parameters,
    where ``MLPHeadTwist`` has 29 million. Starts at psi = 1, so that the twist-induced proposal is
    p0 exactly.

    Args:
        lm: the base model, of transformers; it stays as it is.
        width: of the layers between; 16, say, makes a head of low rank.
        depth: number of layers between; 0 makes g linear in the hidden state h.
        scored: a target whose factors of whole texts the head reads beside h, at the text so far:
            see ``ScoredStates``. They are also asked about each token alone, which makes u. None
            reads h alone, and has no u.
        link: "log", or "sigmoid" for psi <= 1.
        seed: of the first values of the layers between.
    """

    is_tied = True
    head: TiedHead
    _states: BaseStates
    scored: Target | None

    def __init__(
        self,
        lm: LanguageModel,
        *,
        width: int = 128,
        depth: int = 1,
        scored: Target | Mapping[str, Any] | None = None,
        link: str = "log",
        seed: int = 0,
    ) -> None:
        is_read = isinstance(scored, Mapping)  # From a file, which brings what was measured.
        scored = _target_of(scored, lm)
        states: Any = BaseStates(lm) if scored is None else ScoredStates(scored)
        extra, scores = 0 if scored is None else SCORES, None
        if scored is not None:
            scores = torch.zeros(lm.vocab_size) if is_read else states.token_scores()
        head = TiedHead(
            lm, states.width, extra=extra, width=width, depth=depth, seed=seed, scores=scores
        )
        options = {"width": width, "depth": depth, "scored": scored is not None}
        super().__init__(lm, states, head, link, options)
        self.scored = scored
        if scored is not None:
            # One tensor, so that a file that is read into the buffer reaches the states.
            states.level = states.level if is_read else states.measure(seed)
            self.register_buffer("phi_level", states.level)

    def inputs(
        self,
        tokens: Int[Tensor, "batch length"],
        prompt_length: int,
        hidden: Float[Tensor, "batch steps hidden"],
    ) -> Float[Tensor, "batch steps width"]:
        """What the head reads before each token after the prompt, given the hidden states."""
        base = TeacherForced(hidden, hidden)  # No form with a tied head reads log-probs.
        return self._states.teacher_force(tokens, prompt_length, base)

    def log_psi_of(
        self, direction: Float[Tensor, "*#rows width1"], tokens: Int[Tensor, "*#rows"]
    ) -> Float[Tensor, "*rows"]:
        """Log psi of one token in each row, with gradients, of the head's directions."""
        return self._linked(self.head.values(direction, tokens))

    def card_options(self) -> dict[str, Any]:
        """The options, with what describes the scored target."""
        if self.scored is None:
            return self.options | {"scored": None}
        described = {
            "potential": describe_potential(self.scored.potential),
            "prompt": self.scored.prompt_tokens.tolist(),
            "num_steps": self.scored.num_steps,
        }
        return self.options | {"scored": described}

    def _last_layer(self) -> list[Tensor]:
        return [self.head.last.bias, self.head.last.weight, self.head.by_score]

    def _shared(self) -> list[Any]:
        parts = [part for part, _ in text_factors(self.scored)] if self.scored else []
        return [*super()._shared(), self.head.embedding, self.scored, *parts]


def _target_of(scored: Target | Mapping[str, Any] | None, lm: LanguageModel) -> Target | None:
    """A target, or the one of which ``card_options`` made these; None where phi is not read."""
    if isinstance(scored, Mapping):
        if scored.keys() != {"potential", "prompt", "num_steps"}:
            raise ValueError(
                "scored must be a Target, or what a twist's card says of one; got "
                f"{quoted(scored)}."
            )
        phi = parse_potential(scored["potential"])
        scored = Target(lm, phi, prompt=scored["prompt"], num_steps=scored["num_steps"])
    if scored is not None:
        check_target(scored)
    return scored
