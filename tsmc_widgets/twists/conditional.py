"""Twists psi_t(s_{1:t}, o) that depend on an observation o: a class, or the tokens that follow."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tsmc_widgets.errors import check_integer, quoted
from tsmc_widgets.models.protocol import Carry, LanguageModel, LMStep, TeacherForced
from tsmc_widgets.twists.bodies import OwnBodyTwist, OwnStates, bare_copy
from tsmc_widgets.twists.protocol import OnePassTwist, TwistStep, of_other
from tsmc_widgets.twists.trainable import (
    BaseStates,
    NeuralTwist,
    hidden_width,
    mlp_head,
)

_MOST_CODES = 2**14


class ClassEncoder:
    """One-hot codes of class indices, scaled to the norm of the hidden state.

    Unscaled, one entry among a hundred of unit size changes a head's inputs too little: learning
    to tell classes apart takes several times the updates.

    Attributes:
        width: the number of classes.
        length: of each code.
    """

    def __init__(self, lm: LanguageModel, num_classes: int) -> None:
        check_integer("num_classes", num_classes, at_least=2)
        self.lm = lm
        self.width = num_classes
        self.length = math.sqrt(hidden_width(lm))

    def parse(self, observed: int | Sequence[int] | Int[Tensor, " ..."]) -> Int[Tensor, "1 1"]:
        """A user's class index, bare or as a row of one, as a batch of one row."""
        index = torch.as_tensor(observed, device=self.lm.device)
        if index.numel() != 1 or index.is_floating_point():
            raise ValueError(f"observed must be one class index; got {quoted(observed)}.")
        return index.reshape(1, 1)

    def encode(self, observed: Int[Tensor, "batch ..."]) -> Float[Tensor, "batch code"]:
        """A row with one number for each; ``observed`` has shape (batch,) or (batch, 1)."""
        if observed.ndim > 2 or observed.numel() != observed.shape[0]:
            raise ValueError(
                "observed must hold one class index for each row, of shape (batch,) or "
                f"(batch, 1); got {tuple(observed.shape)}."
            )
        classes = observed.reshape(-1)
        if bool(((classes < 0) | (classes >= self.width)).any()):
            raise ValueError(
                f"observed must hold class indices from 0 to {self.width - 1}; got "
                f"{int(classes.min())} to {int(classes.max())}."
            )
        return self.length * nn.functional.one_hot(classes, self.width).float()


class TokenEncoder:
    """The base model's last hidden state after reading o by itself, once for each distinct o."""

    def __init__(self, lm: LanguageModel, length: int) -> None:
        check_integer("observed_length", length)
        self.lm = lm
        self.length = length
        self.width = hidden_width(lm)
        self._known: dict[tuple[int, ...], Tensor] = {}

    def parse(
        self, observed: str | Sequence[int] | Int[Tensor, " ..."]
    ) -> Int[Tensor, "1 observed"]:
        """A user's token ids, or a text of as many tokens, as a batch of one row."""
        ids = self.lm.encode(observed) if isinstance(observed, str) else observed
        tokens = torch.as_tensor(ids, device=self.lm.device)
        if tokens.is_floating_point() or tokens.numel() != self.length:
            raise ValueError(
                f"observed must be {self.length} token ids, or a text of as many tokens; got "
                f"{quoted(observed)}."
            )
        return tokens.reshape(1, -1)

    @torch.no_grad()
    def encode(self, observed: Int[Tensor, "batch ..."]) -> Float[Tensor, "batch code"]:
        """Codes of rows of ``length`` token ids."""
        if observed.ndim != 2 or observed.shape[1] != self.length:
            raise ValueError(
                f"observed must hold {self.length} token ids for each row; got shape "
                f"{tuple(observed.shape)}."
            )
        distinct, rows = torch.unique(observed, dim=0, return_inverse=True)
        keys = [tuple(row) for row in distinct.tolist()]
        codes = [self._known.get(key) for key in keys]
        unread = [at for at, code in enumerate(codes) if code is None]
        if unread:
            if len(self._known) + len(unread) > _MOST_CODES:
                self._known = {}
            # A copy, so that no code keeps the states of its whole batch alive.
            for at, state in zip(unread, self.lm.prefill(distinct[unread]).hidden, strict=True):
                codes[at] = self._known[keys[at]] = state.float().clone()
        return torch.stack(codes)[rows]


class ConditionedTwist(OnePassTwist):
    """A conditional twist under one observation: steps like any twist, learns with its owner.

    Attributes:
        twist: the conditional twist, whose parameters it reads.
        observed: o, a class index or token ids.
        lm: the base model.
    """

    lm, link, method, proposal_only = of_other("twist", "lm", "link", "method", "proposal_only")

    def __init__(self, twist: ConditionalTwist, observed: Int[Tensor, "1 observed"]) -> None:
        """Take what ``twist.condition`` parsed; refuses an observation that cannot be."""
        self.twist, self.observed = twist, observed[0]
        twist.encoder.encode(observed)

    def parameters(self) -> Iterator[nn.Parameter]:
        """The conditional twist's parameters."""
        return self.twist.parameters()

    def prefill(self, tokens: Int[Tensor, "batch length"], lm_step: LMStep) -> TwistStep:
        """Read the prompts and whatever has been generated after them."""
        return self.twist.prefill(tokens, lm_step, self._rows(tokens))

    def advance(
        self, tokens: Int[Tensor, " batch"], carry: Carry | None, lm_step: LMStep
    ) -> TwistStep:
        """Read one more token for each row; ``carry`` stays valid and unchanged."""
        return self.twist.advance(tokens, carry, lm_step)

    def log_psi_next(
        self,
        tokens: Int[Tensor, "batch length"],
        prompt_length: int,
        base: TeacherForced | None = None,
        observed: Int[Tensor, "batch ..."] | None = None,
    ) -> Float[Tensor, "batch steps vocab"]:
        """Log psi_t(s_{<t}, ., o) for t = 1..T, with gradients to the conditional twist alone."""
        if observed is not None:
            raise ValueError(
                "this twist stands under one observation already: leave observed out, or give it "
                "to the conditional twist itself."
            )
        return self.twist.log_psi_next(tokens, prompt_length, base, self._rows(tokens))

    def _rows(self, tokens: Tensor) -> Int[Tensor, "batch observed"]:
        return self.observed.expand(len(tokens), -1)


class ConditionalTwist(NeuralTwist):
    """Log psi_t(s_{<t}, ., o) = MLP([state, code of o]); starts at psi = 1 for every o.

    Give each row's ``observed``, or take ``condition(observed)`` for a twist of one observation.
    The code of a class is one-hot, times the square root of the state's width; that of tokens is
    the base model's last state after them, read by themselves and once for each distinct o.

    Args:
        lm: the base model, which stays as it is.
        num_classes: number of classes, where o is a class index.
        observed_length: c, where o is c tokens; give this or ``num_classes``.
        width: of the layers between; None is the hidden state's.
        depth: number of layers of ReLU before the last one.
        link: "log", or "sigmoid" for psi <= 1.
        seed: of the first values of the layers between.

    Attributes:
        encoder: makes the code of o.
    """

    is_conditional = True

    def __init__(
        self,
        lm: LanguageModel,
        *,
        num_classes: int | None = None,
        observed_length: int | None = None,
        width: int | None = None,
        depth: int = 2,
        link: str = "log",
        seed: int = 0,
    ) -> None:
        if (num_classes is None) == (observed_length is None):
            raise ValueError(
                "give num_classes for an observed class, or observed_length for observed tokens, "
                f"and not both; got num_classes={quoted(num_classes)} and "
                f"observed_length={quoted(observed_length)}."
            )
        encoder: Any = TokenEncoder if num_classes is None else ClassEncoder
        encoder = encoder(lm, observed_length if num_classes is None else num_classes)
        states = self._new_states(lm)
        options = {"width": width, "depth": depth}
        options |= {"num_classes": num_classes, "observed_length": observed_length}
        # The width of a layer between is the state's, as without an observation.
        inner = states.width if width is None else width
        head = mlp_head(lm, states.width + encoder.width, width=inner, depth=depth, seed=seed)
        super().__init__(lm, states, head, link, options)
        self.encoder = encoder

    def _new_states(self, lm: LanguageModel) -> BaseStates:
        """Where hidden states come from."""
        raise NotImplementedError

    def condition(
        self, observed: int | str | Sequence[int] | Int[Tensor, " ..."]
    ) -> ConditionedTwist:
        """The twist of one observation: a class index, or token ids (or a text of as many)."""
        return ConditionedTwist(self, self.encoder.parse(observed))

    def _shared(self) -> Iterable[Any]:
        return [*super()._shared(), self.encoder]


class ConditionalHeadTwist(ConditionalTwist):
    """Log psi_t(s_{<t}, ., o) = MLP([h, code of o]), with h the base model's hidden state.

    Takes what ``ConditionalTwist`` takes; the base model must have a hidden state.
    """

    def _new_states(self, lm: LanguageModel) -> BaseStates:
        return BaseStates(lm)


class ConditionalBodyTwist(ConditionalTwist, OwnBodyTwist):
    """Log psi_t(s_{<t}, ., o) = MLP([h, code of o]), with h from a body of the twist's own.

    The paper's twist for infilling. Takes what ``ConditionalTwist`` takes; the base
    model must be one of transformers. The body starts as a copy of the base model's and learns
    whole; o is read by the base model, as in ``ConditionalHeadTwist``.
    """

    def _new_states(self, lm: LanguageModel) -> OwnStates:
        return OwnStates(lm, bare_copy(lm, share=False))
