"""Models by name: what ships with the package, and anything transformers can load."""

from __future__ import annotations

import importlib
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tsmc_widgets.models.checkpoint import import_transformers

if TYPE_CHECKING:
    from tsmc_widgets.models.classifier import TextClassifier
    from tsmc_widgets.models.huggingface import HuggingFaceLM

_CACHED_MODELS = 4


def load_language_model(
    name_or_folder: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    max_rows: int | None = None,
) -> HuggingFaceLM:
    """Load a causal language model; the same arguments give the same object.

    Args:
        name_or_folder: "storybook" (ships with the package), a transformers name or a folder.
        device: where to put the model; None is the CPU.
        dtype: of the parameters; None is float32 on the CPU and the checkpoint's own elsewhere.
        max_rows: rows that one forward pass reads at most; see ``HuggingFaceLM``.
    """
    return _language_model(_resolve(name_or_folder), _device(device), dtype, max_rows)


def load_classifier(
    name_or_folder: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    max_tokens: int | None = None,
) -> TextClassifier:
    """Load a sequence classifier; the same arguments give the same object.

    Args:
        name_or_folder: "storybook/stars" or "storybook/hostility" (ship with the package), a
            transformers name or a folder.
        device: where to put the model; None is the CPU.
        dtype: of the parameters; None is float32 on the CPU and the checkpoint's own elsewhere.
        max_tokens: tokens that one forward pass reads at most; see ``TextClassifier``.
    """
    return _classifier(_resolve(name_or_folder), _device(device), dtype, max_tokens)


@lru_cache(maxsize=_CACHED_MODELS)
def _language_model(
    source: str, device: str, dtype: torch.dtype | str | None, max_rows: int | None
) -> HuggingFaceLM:
    import_transformers(f"Loading {source}")
    from tsmc_widgets.models.huggingface import HuggingFaceLM

    return HuggingFaceLM.from_pretrained(source, device=device, dtype=dtype, max_rows=max_rows)


@lru_cache(maxsize=_CACHED_MODELS)
def _classifier(
    source: str, device: str, dtype: torch.dtype | str | None, max_tokens: int | None
) -> TextClassifier:
    import_transformers(f"Loading {source}")
    from tsmc_widgets.models.classifier import TextClassifier

    return TextClassifier.from_pretrained(source, device=device, dtype=dtype, max_tokens=max_tokens)


def _resolve(name_or_folder: str | Path) -> str:
    """Folder of what ships with the package; any other name as it is (./storybook is a folder)."""
    name = str(name_or_folder)
    first, _, rest = name.partition("/")
    if first == "storybook":
        storybook = importlib.import_module("tsmc_widgets.models.storybook")
        return str(storybook.path(rest or "lm"))
    return name


def _device(device: str | torch.device | None) -> str:
    return "cpu" if device is None else str(device)
