"""Copy-on-write KV cache with spare capacity, for transformers models.

transformers copies its caches whole for every new token and once more for a selection of rows.
Here tensors are allocated with room to grow. A carry refers to a rectangle of rows and tokens; the
first ``advance`` of a carry may write the cells beside it, to which no carry refers yet, and any
later one (after a rewind, an interrupt, for another choice of tokens) copies to new tensors.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

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
Mark = tuple[int, int]


class KVStore:
    """Keys and values of each layer, with room for more rows and tokens.

    Attributes:
        windows: of each layer, as ``layer_windows`` gives them.
        room: rows and tokens that fit.
        layers: keys and values (rows, heads, tokens, width), made when first written.
        dropped: tokens before the first one that a layer keeps.
    """

    def __init__(self, windows: tuple[int | None, ...], room: Mark) -> None:
        """Start with nothing written."""
        self.windows = windows
        self.room = room
        self.layers: list[LayerTensors | None] = [None] * len(windows)
        self.dropped = [0] * len(windows)
        self._claims: dict[Mark, object] = {}

    def claim(self, seen: Mark, wanted: Mark) -> bool:
        """Reserve the cells between two marks (rows, tokens): granted once, and if they fit."""
        if wanted[0] > self.room[0] or wanted[1] > self.room[1]:
            return False
        # setdefault is one operation, so that of two threads only one is granted.
        claimant = object()
        return self._claims.setdefault(seen, claimant) is claimant

    def first_needed(self, index: int, length: int) -> int:
        """First of ``length`` tokens that a layer's next one can look at."""
        window = self.windows[index]
        return max(0, length - (window - 1)) if window else 0

    def view(self, index: int, rows: slice, tokens: slice) -> LayerTensors:
        """Keys and values of some rows and tokens of a layer, not copied."""
        kept = slice(tokens.start - self.dropped[index], tokens.stop - self.dropped[index])
        keys, values = self.layers[index]
        return keys[rows, :, kept], values[rows, :, kept]


@dataclass(frozen=True, slots=True)
class KVCarry:
    """Keys and values of a batch of prefixes.

    Attributes:
        store: where they are.
        size: rows of the store that hold the prefixes.
        rows: which of them make the batch, in order; None for all. The next ``advance`` gathers
            them, so that selecting costs nothing by itself.
        length: tokens read, also where a sliding window has dropped some of them.
        batch: number of prefixes.
        expected: rows and tokens that the batch will grow to, where that is known.
    """

    store: KVStore
    size: int
    rows: Int[Tensor, " batch"] | None
    length: int
    batch: int
    expected: Mark | None = None

    def select(self, rows: Int[Tensor, " selected"]) -> KVCarry:
        """Carry of the given rows, in that order and with repeats; this one stays as it is."""
        kept = rows.clone() if self.rows is None else self.rows.index_select(0, rows)
        return replace(self, rows=kept, batch=kept.shape[0])

    def reserve(self, rows: int, tokens: int) -> KVCarry:
        """Carry whose successors make room for that many rows and tokens, and for no more."""
        return replace(self, expected=(rows, tokens))

    def layer(self, index: int) -> LayerTensors | None:
        """Keys and values of a layer before selection; None where it keeps none."""
        if self.store.windows[index] == 0:
            return None
        tokens = slice(self.store.first_needed(index, self.length), self.length)
        return self.store.view(index, slice(0, self.size), tokens)

    @property
    def nbytes(self) -> int:
        """Memory of the store, room to grow included."""
        return sum(part.nbytes for pair in self.store.layers if pair for part in pair)

    def most_bytes(self, rows: int, tokens: int) -> float | int:
        """Memory of a store for as many rows and tokens, of its successor, and of attention.

        Attention repeats keys and values of one layer for the query heads that share them; about
        six times their size was measured.
        """
        layers = [sum(p.nbytes / (p.shape[0] * p.shape[2]) for p in pair)
                  for pair in self.store.layers if pair]  # fmt: skip
        return rows * tokens * (2 * sum(layers) + 6 * max(layers, default=0.0))

    def keeps_rows(self) -> bool:
        """Whether the batch is all the rows in their order, with copies of some behind them."""
        if self.rows is None:
            return True
        own = torch.arange(self.size, device=self.rows.device)
        return self.batch >= self.size and torch.equal(self.rows[: self.size], own)


class Extension:
    """The next carry, while a forward pass in one or more chunks of rows fills it."""

    def __init__(
        self, windows: tuple[int | None, ...], batch: int, added: int, past: KVCarry | None
    ) -> None:
        """Extend ``past``, or nothing, by ``added`` tokens on ``batch`` rows."""
        self.past = past
        self.batch = batch
        self.length = 0 if past is None else past.length
        self.stop = self.length + added
        self._filled = [window == 0 for window in windows]
        grown = (batch, self.stop)
        self.in_place = (
            past is not None
            and past.keeps_rows()
            and past.store.claim((past.size, past.length), grown)
        )
        expected = None if past is None else past.expected
        self.store = past.store if self.in_place else KVStore(windows, _with_room(grown, expected))
        self._expected = expected

    def cache(self, start: int, stop: int) -> DynamicCache:
        """Cache for a forward pass over the rows from ``start`` to ``stop``."""
        return _ChunkCache(self, slice(start, stop))

    def append(self, index: int, rows: slice, new: LayerTensors) -> LayerTensors:
        """Keys and values of a layer and chunk of rows, with the new ones at their end."""
        store, first = self.store, self.store.first_needed(index, self.length)
        if store.layers[index] is None:
            store.dropped[index] = first
            room = (store.room[0], store.room[1] - first)
            keys, values = (
                part.new_empty(room[0], part.shape[1], room[1], part.shape[3]) for part in new
            )
            store.layers[index] = keys, values
        self._filled[index] = True
        self._copy_past(index, rows, slice(first, self.length))
        added = store.view(index, rows, slice(self.length, self.stop))
        for target, part in zip(added, new, strict=True):
            target.copy_(part)
        return store.view(index, rows, slice(first, self.stop))

    def _copy_past(self, index: int, rows: slice, tokens: slice) -> None:
        past = self.past
        if past is None or tokens.start == tokens.stop:
            return
        if self.in_place:
            rows = slice(max(rows.start, past.size), rows.stop)
            if rows.start >= rows.stop:
                return
        sources = past.store.view(index, slice(0, past.size), tokens)
        for source, target in zip(sources, self.store.view(index, rows, tokens), strict=True):
            if past.rows is None:
                target.copy_(source[rows])
            elif self.in_place:
                target.copy_(source.index_select(0, past.rows[rows]))
            else:
                torch.index_select(source, 0, past.rows[rows], out=target)

    def finish(self) -> KVCarry:
        """The carry, once every chunk has gone through the model."""
        if not all(self._filled):
            raise UnsupportedModelError(
                "The model did not fill the KV cache it was given, so it keeps its state in "
                "some other way. Supported are models with full or sliding-window attention."
            )
        return KVCarry(self.store, self.batch, None, self.stop, self.batch, self._expected)


def _with_room(grown: Mark, expected: Mark | None) -> Mark:
    """Room for the rows and tokens at hand and, most often, for the next steps' too."""
    rows, length = grown
    if expected is None:
        return rows + max(8, rows // 8), length + max(8, length // 4)
    # A population may end early or stay together: its rows are not all made room for at once.
    return max(rows, min(expected[0], 2 * rows + 32)), max(
        length, min(expected[1], 2 * length + 16)
    )


def layer_windows(config: PreTrainedConfig) -> tuple[int | None, ...]:
    """Sliding window of each layer's cache: None where it keeps all tokens, 0 where it keeps none.

    Raises:
        UnsupportedModelError: a layer keeps something else than plain keys and values.
    """
    windows: list[int | None] = []
    number = config.get_text_config(decoder=True).num_hidden_layers
    for layer in DynamicCache(config=config).layers or [DynamicLayer()] * number:
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


class _ChunkCache(DynamicCache):
    """The part of an ``Extension`` that a forward pass over some of the rows reads and fills."""

    def __init__(self, extension: Extension, rows: slice) -> None:
        layers: list[Any] = []
        for index, window in enumerate(extension.store.windows):
            if window is None:
                layers.append(_GrowingLayer(extension, index, rows))
            elif window == 0:
                layers.append(DummyLayer())
            else:
                layers.append(_SlidingLayer(extension, index, rows, window))
        Cache.__init__(self, layers=layers)


class _GrowingLayer(DynamicLayer):
    """A layer that keeps every token."""

    def __init__(self, extension: Extension, index: int, rows: slice) -> None:
        self.extension, self.index, self.rows = extension, index, rows
        self.keys = self.values = None
        self.is_initialized = False
        self.cumulative_length = extension.length

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Keys and values of all tokens so far."""
        self.cumulative_length += key_states.shape[-2]
        return self.extension.append(self.index, self.rows, (key_states, value_states))

    def get_seq_length(self) -> int:
        """Tokens read so far."""
        return self.cumulative_length


class _SlidingLayer(_GrowingLayer, DynamicSlidingWindowLayer):
    """A layer that keeps the last ``sliding_window - 1`` tokens; masks come from transformers."""

    def __init__(self, extension: Extension, index: int, rows: slice, sliding_window: int) -> None:
        _GrowingLayer.__init__(self, extension, index, rows)
        self.sliding_window = sliding_window
        self.record_past = False
