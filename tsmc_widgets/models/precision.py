"""Arithmetic of models of half precision, in which a text has one log p0 however it is read.

Kernels of half precision round what they sum in an order that depends on how many tokens and rows
are read together: by up to 1 nat over 20 tokens of a model of 135 million parameters in bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

_HALF = (torch.float16, torch.bfloat16)
# They pick rows of a table, which need not be converted whole.
_LOOKUPS = (torch.nn.functional.embedding, torch.embedding)
_SCORES = 2**23
# For products of fewer terms, and for those of one row, torch has kernels that sum otherwise.
_LEAST_TERMS = 16**3
_TRIED_ROWS = (*range(1, 10), 16, 17, 31, 32, 33, 64, 100, 128)


def has_bfloat16() -> bool:
    """Whether this CPU has instructions for matrix products in bfloat16."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def is_bfloat16(model: PreTrainedModel) -> bool:
    """Whether a model is bfloat16 as a whole, and this CPU multiplies rows alike however many.

    Its attention must be torch's, and its other products of matrices those of linear layers.
    """
    kinds = {(p.dtype, p.device.type) for p in model.parameters()}
    attention = model.config.get_text_config(decoder=True)._attn_implementation
    if kinds != {(torch.bfloat16, "cpu")} or attention != "sdpa" or not has_bfloat16():
        return False
    modules = [each for each in model.modules() if each is not model.get_output_embeddings()]
    layers = [each for each in modules if isinstance(each, torch.nn.Linear | Conv1D)]
    known = (*layers, *(each for each in modules if isinstance(each, torch.nn.Embedding)))
    held = {id(each.weight) for each in known} | {id(model.get_output_embeddings().weight)}
    if any(p.ndim > 1 and id(p) not in held for p in model.parameters()):
        return False
    shapes = {(isinstance(each, Conv1D), each.bias is None, each.weight.shape) for each in layers}
    return all(_sums_alike(*shape) for shape in shapes)


def float32_arithmetic(model: PreTrainedModel) -> AbstractContextManager[Any]:
    """Context in which a model of half precision computes what a float32 copy of it would.

    It takes no less time than the copy: parameters stay as they are, and each is converted for as
    long as one operation needs it.
    """
    return _Float32Arithmetic() if model.dtype in _HALF else nullcontext()


class _Float32Arithmetic(TorchFunctionMode):
    """Functions of torch take and give float32 where half precision is passed or asked for."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.__name__ == "__get__":  # Facts such as a parameter's shape.
            return func(*args, **kwargs)
        if func not in _LOOKUPS:
            args, kwargs = _widened(args), _widened(kwargs)
        return _widened(func(*args, **kwargs))


def _widened(value: Any) -> Any:
    """Float32 for half precision, in dtypes, tensors and whatever holds them."""
    if isinstance(value, Tensor):
        return value.float() if value.dtype in _HALF else value
    if isinstance(value, torch.dtype):
        return torch.float32 if value in _HALF else value
    if type(value) in (tuple, list):
        return type(value)(_widened(each) for each in value)
    if type(value) is dict:
        return {key: _widened(each) for key, each in value.items()}
    return value


class OutputWeight:
    """An output layer's weight in float32, converted when it is new."""

    def __init__(self) -> None:
        self._of: tuple[int, int] | None = None
        self._wide: Tensor | None = None

    def of(self, weight: Tensor) -> Tensor:
        """The weight in float32; with its gradient where one is wanted."""
        if torch.is_grad_enabled() and weight.requires_grad:
            return weight.float()
        key = (weight.data_ptr(), weight._version)
        if self._of != key:
            self._of, self._wide = key, weight.detach().float()
        return self._wide


class BFloat16Arithmetic(TorchFunctionMode):
    """A bfloat16 model's own arithmetic, attention in float64 and the output layer in float32.

    Products of matrices and what is computed for each row alone do not depend on other rows. The
    attention sums over tokens, in an order that depends on how many there are: summed in float64
    it is, once rounded, the same bfloat16.
    """

    def __init__(self, head: Any, weight: OutputWeight) -> None:
        super().__init__()
        self._head, self._weight = head, weight

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention:
            return _attention(*args, **kwargs)
        if func is functional.linear:
            if args[1] is self._head.weight:
                bias = None if self._head.bias is None else self._head.bias.float()
                return functional.linear(args[0].float(), self._weight.of(args[1]), bias)
            return _enough_rows(args[0], args[1], lambda rows: func(rows, *args[1:], **kwargs))
        if func is torch.addmm:
            bias, rows, weight = args
            return _enough_rows(rows, weight, lambda some: func(bias, some, weight, **kwargs))
        return func(*args, **kwargs)


def _enough_rows(rows: Tensor, weight: Tensor, product: Callable[[Tensor], Tensor]) -> Tensor:
    """A product of matrices by the kernel for large ones, whatever its size."""
    count = rows.numel() // rows.shape[-1]
    least = max(2, _LEAST_TERMS // weight.numel() + 1)
    if not 0 < count < least:
        return product(rows)
    enough = functional.pad(rows.reshape(count, -1), (0, 0, 0, least - count))
    return product(enough)[:count].view(*rows.shape[:-1], -1)


@torch.no_grad()
def _sums_alike(inputs_first: bool, without_bias: bool, shape: torch.Size) -> bool:
    """Whether a product with a weight of this shape does not depend on how many rows there are.

    All terms cancel: what is left is rounding, which tells one order of summation from another,
    where the sums themselves would round to the same bfloat16 but once in many thousand.
    """
    inputs, outputs = shape if inputs_first else shape[::-1]
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(inputs, generator=generator)
    weight = torch.randn(outputs, -(-inputs // 2), generator=generator)
    rows = torch.randn(max(_TRIED_ROWS), weight.shape[1], generator=generator)
    weight = torch.cat([weight, weight], dim=1)[:, order].bfloat16()
    rows = torch.cat([rows, -rows], dim=1)[:, order].bfloat16()
    bias = torch.zeros(outputs, dtype=torch.bfloat16)
    by_inputs = weight.T.contiguous()

    def product(some: Tensor) -> Tensor:
        if inputs_first:
            return torch.addmm(bias, some, by_inputs)
        return functional.linear(some, weight, None if without_bias else bias)

    every = product(rows)
    return all(
        torch.equal(_enough_rows(rows[:count], weight, product), every[:count])
        for count in _TRIED_ROWS
    )


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Scaled dot-product attention in float64, for queries (batch, heads, length, width)."""
    batch, heads, length, width = query.shape
    groups, past = key.shape[1:3]
    keys, values = key.double(), value.double()
    if is_causal:
        attn_mask = torch.ones(length, past, dtype=torch.bool, device=query.device).tril()
    parts = []
    rows = max(1, _SCORES // (batch * heads * past))
    for part in query.double().split(rows, dim=2):
        start, count = sum(each.shape[2] for each in parts), part.shape[2]
        grouped = part.reshape(batch, groups, heads // groups * count, width)
        scores = (grouped @ keys.mT) * (width**-0.5 if scale is None else scale)
        scores = scores.view(batch, heads, count, past)
        if attn_mask is not None:
            mask = attn_mask[..., start : start + count, :]
            fill = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else None
            scores = scores + mask if fill is None else fill
        weights = scores.softmax(-1).view(batch, groups, -1, past)
        parts.append((weights @ values).view(batch, heads, count, width).to(query.dtype))
    return torch.cat(parts, dim=2)
