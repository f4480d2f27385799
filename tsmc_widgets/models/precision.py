"""Float32 arithmetic with parameters of half precision."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

_HALF = (torch.float16, torch.bfloat16)
# They pick rows of a table, which need not be converted whole.
_LOOKUPS = (torch.nn.functional.embedding, torch.embedding)


def float32_arithmetic(model: PreTrainedModel) -> AbstractContextManager[Any]:
    """Context in which a model of half precision computes what a float32 copy of it would.

    Arithmetic in half precision makes a token's log p0 depend on how many tokens and rows are read
    with it: by up to 1 nat over 20 tokens of a model of 135 million parameters in bfloat16. Here
    parameters stay as they are, and each is converted for as long as one operation needs it.
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
