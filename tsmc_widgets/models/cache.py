"""The KV cache of a transformers model as a value: read by many, written by none.

transformers extends its caches with one copy for a selection of rows, one for each new token and,
where rows go through the model in chunks, one to put the chunks together. ``Extension`` does all
three with a single copy into tensors that nobody else holds yet.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import (
    Cache,
    DummyLayer,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
)
from transformers.configuration_utils import PreTrainedConfig

from tsmc_widgets.errors import UnsupportedModelError

LayerTensors = tuple[Float[Tensor, "_ _ _ _"], Float[Tensor, "_ _ _ _"]]


@dataclass(frozen=True, slots=True)
class KVCarry:
    """Keys and values of a batch of prefixes.

    Attributes:
        layers: keys and values of each layer, or None for a layer that keeps none.
        rows: the rows of ``layers`` that make the batch, in order; None for all of them. The
            next ``advance`` gathers them, so that selecting costs nothing by itself.
        length: tokens read, also where a sliding window has dropped some of them.
        batch: number of prefixes.
    """

    layers: tuple[LayerTensors | None, ...]
    rows: Int[Tensor, " batch"] | None
    length: int
    batch: int

    def select(self, rows: Int[Tensor, " selected"]) -> KVCarry:
        """Carry of the given rows, in that order and with repeats; this one stays as it is."""
        kept = rows.clone() if self.rows is None else self.rows.index_select(0, rows)
        return KVCarry(self.layers, kept, self.length, kept.shape[0])


class Extension:
    """Tensors of the next carry while a forward pass, in one or more chunks of rows, fills them."""

    def __init__(self, windows: tuple[int | None, ...], batch: int, past: KVCarry | None) -> None:
        """Start from ``past``, or from nothing, with the windows that ``layer_windows`` gives."""
        self.windows = windows
        self.batch = batch
        self.past = past
        self.length = 0 if past is None else past.length
        self._filled: list[LayerTensors | None] = [None] * len(windows)

    def cache(self, start: int, stop: int) -> DynamicCache:
        """Cache for a forward pass over the rows from ``start`` to ``stop``."""
        return _ChunkCache(
            [
                _make_layer(self, index, window, (start, stop))
                for index, window in enumerate(self.windows)
            ]
        )

    def append(
        self, index: int, span: tuple[int, int], new: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer and chunk, with the new ones at their end."""
        past = None if self.past is None else self.past.layers[index]
        rows = None if self.past is None else self.past.rows
        start, stop = span
        if stop - start == self.batch and rows is None and past is not None:
            filled = tuple(torch.cat(pair, dim=-2) for pair in zip(past, new, strict=True))
            self._filled[index] = filled
            return filled
        if self._filled[index] is None:
            old_length = 0 if past is None else past[0].shape[-2]
            self._filled[index] = tuple(
                part.new_empty(self.batch, part.shape[1], old_length + part.shape[2], part.shape[3])
                for part in new
            )
        chunk = tuple(part[start:stop] for part in self._filled[index])
        for which, target in enumerate(chunk):
            added = new[which].shape[-2]
            if past is not None:
                source, head = past[which], target[:, :, :-added]
                if rows is None:
                    head.copy_(source[start:stop])
                else:
                    torch.index_select(source, 0, rows[start:stop], out=head)
            target[:, :, -added:] = new[which]
        return chunk

    def finish(self, added: int) -> KVCarry:
        """The carry, once every chunk has gone through the model."""
        for window, filled in zip(self.windows, self._filled, strict=True):
            if filled is None and window != 0:
                raise UnsupportedModelError(
                    "The model did not fill the KV cache it was given, so it keeps its state in "
                    "some other way. Supported are models with full or sliding-window attention."
                )
        kept: list[LayerTensors | None] = []
        for window, filled in zip(self.windows, self._filled, strict=True):
            if filled is not None and window and filled[0].shape[-2] >= window:
                drop = filled[0].shape[-2] - (window - 1)
                filled = tuple(part[:, :, drop:] for part in filled)
            kept.append(filled)
        return KVCarry(tuple(kept), None, self.length + added, self.batch)


def layer_windows(config: PreTrainedConfig) -> tuple[int | None, ...]:
    """Sliding window of each layer's cache: None where it keeps all tokens, 0 where it keeps none.

    Raises:
        UnsupportedModelError: a layer keeps something else than plain keys and values.
    """
    windows: list[int | None] = []
    for layer in DynamicCache(config=config).layers or [DynamicLayer()] * _num_layers(config):
        if type(layer) is DynamicLayer:
            windows.append(None)
        elif type(layer) is DynamicSlidingWindowLayer:
            windows.append(layer.sliding_window)
        elif type(layer) is DummyLayer:
            windows.append(0)
        else:
            raise UnsupportedModelError(
                f"The cache of {config.model_type!r} models has layers of class "
                f"{type(layer).__name__}, whose state may be written in place. Supported are "
                "DynamicLayer and DynamicSlidingWindowLayer: use a model with full or "
                "sliding-window attention in every layer."
            )
    return tuple(windows)


def _num_layers(config: PreTrainedConfig) -> int:
    return config.get_text_config(decoder=True).num_hidden_layers


class _ChunkCache(DynamicCache):
    """What a forward pass over some of the rows sees of an ``Extension``."""

    def __init__(self, layers: list[DynamicLayer]) -> None:
        Cache.__init__(self, layers=layers)


class _GrowingLayer(DynamicLayer):
    """A layer that keeps every token."""

    def __init__(self, extension: Extension, index: int, span: tuple[int, int]) -> None:
        self.extension, self.index, self.span = extension, index, span
        self.keys = self.values = None
        self.is_initialized = False
        self.cumulative_length = extension.length

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Keys and values of all tokens so far."""
        self.cumulative_length += key_states.shape[-2]
        return self.extension.append(self.index, self.span, (key_states, value_states))

    def get_seq_length(self) -> int:
        """Tokens read so far."""
        return self.cumulative_length


class _SlidingLayer(_GrowingLayer, DynamicSlidingWindowLayer):
    """A layer that keeps the last ``sliding_window - 1`` tokens; masks come from transformers."""

    def __init__(
        self, extension: Extension, index: int, span: tuple[int, int], sliding_window: int
    ) -> None:
        _GrowingLayer.__init__(self, extension, index, span)
        self.sliding_window = sliding_window
        self.record_past = False


def _make_layer(
    extension: Extension, index: int, window: int | None, span: tuple[int, int]
) -> DynamicLayer | DummyLayer:
    if window is None:
        return _GrowingLayer(extension, index, span)
    if window == 0:
        return DummyLayer()
    return _SlidingLayer(extension, index, span, window)
