"""Codes of observations: numbers for a class, or for tokens that follow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tsmc_widgets.errors import check_integer
from tsmc_widgets.models.protocol import LanguageModel
from tsmc_widgets.twists.trainable import hidden_width

_MOST_CODES = 2**14


@runtime_checkable
class Encoder(Protocol):
    """Makes numbers, ``width`` of them, of an observation."""

    width: int

    def parse(self, observed: Any) -> Tensor:
        """The batch of one observation that a user's words for it mean."""
        ...

    def encode(self, observed: Tensor) -> Float[Tensor, "batch code"]:
        """Codes of each row's observation, in float32."""
        ...


class ClassEncoder:
    """One-hot codes of class indices, as long as the hidden state that stands beside them.

    A one among a hundred numbers that are each about one is hardly heard: a head would need
    several times the updates to tell classes apart.

    Attributes:
        width: the number of classes.
        length: of each code.
    """

    def __init__(self, lm: LanguageModel, num_classes: int) -> None:
        """Take the number of classes."""
        check_integer("num_classes", num_classes, at_least=2)
        self.lm = lm
        self.width = num_classes
        self.length = math.sqrt(hidden_width(lm))

    def parse(self, observed: int | Sequence[int] | Int[Tensor, " ..."]) -> Int[Tensor, "1 1"]:
        """A class index, bare or as a row of one."""
        index = torch.as_tensor(observed, device=self.lm.device)
        if index.numel() != 1 or index.is_floating_point():
            raise ValueError(f"observed must be one class index; got {observed!r}.")
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
        """Take the number of tokens in o."""
        check_integer("observed_length", length)
        self.lm = lm
        self.length = length
        self.width = hidden_width(lm)
        self._known: dict[tuple[int, ...], Tensor] = {}

    def parse(
        self, observed: str | Sequence[int] | Int[Tensor, " ..."]
    ) -> Int[Tensor, "1 observed"]:
        """Token ids, or a text."""
        ids = self.lm.encode(observed) if isinstance(observed, str) else observed
        tokens = torch.as_tensor(ids, device=self.lm.device)
        if tokens.is_floating_point() or tokens.numel() != self.length:
            raise ValueError(
                f"observed must be {self.length} token ids, or a text of as many tokens; got "
                f"{observed!r}."
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
