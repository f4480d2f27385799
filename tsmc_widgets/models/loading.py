"""Models by name: what ships with the package, and anything transformers can load."""

from __future__ import annotations

import importlib
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tsmc_widgets.errors import UnsupportedModelError, missing_extra

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


def load_checkpoint(
    auto_class: str,
    name_or_folder: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
) -> tuple[Any, Any]:
    """Model and tokenizer of a checkpoint, by the name of a transformers ``AutoModel`` class.

    Raises:
        FileNotFoundError: there is no such checkpoint here, and none could be fetched.
        UnsupportedModelError: the checkpoint is of another kind, or lacks weights.
    """
    transformers = _transformers(f"Loading {name_or_folder!s}")
    place = torch.device(_device(device))
    if dtype is None:
        dtype = torch.float32 if place.type == "cpu" else "auto"
    source = str(name_or_folder)
    try:
        model, info = getattr(transformers, auto_class).from_pretrained(
            source, dtype=dtype, output_loading_info=True
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    except OSError as error:
        raise FileNotFoundError(_not_found(source, error)) from error
    except (ValueError, KeyError) as error:
        raise UnsupportedModelError(
            f"transformers can not load {source!r} with {auto_class}: {error}"
        ) from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise UnsupportedModelError(
            f"{source!r} lacks the weights {', '.join(missing[:5])}, so {type(model).__name__} "
            "would get random ones: the checkpoint is of another kind of model. Give one that "
            f"was saved from a class of {auto_class}."
        )
    return model.to(place), tokenizer


@lru_cache(maxsize=_CACHED_MODELS)
def _language_model(
    source: str, device: str, dtype: torch.dtype | str | None, max_rows: int | None
) -> HuggingFaceLM:
    _transformers(f"Loading {source}")
    from tsmc_widgets.models.huggingface import HuggingFaceLM

    return HuggingFaceLM.from_pretrained(source, device=device, dtype=dtype, max_rows=max_rows)


@lru_cache(maxsize=_CACHED_MODELS)
def _classifier(
    source: str, device: str, dtype: torch.dtype | str | None, max_tokens: int | None
) -> TextClassifier:
    _transformers(f"Loading {source}")
    from tsmc_widgets.models.classifier import TextClassifier

    return TextClassifier.from_pretrained(source, device=device, dtype=dtype, max_tokens=max_tokens)


def _resolve(name_or_folder: str | Path) -> str:
    """Folder of what ships with the package; any other name as it is."""
    name = str(name_or_folder)
    first, _, rest = name.partition("/")
    if first == "storybook" and not Path(name).exists():
        storybook = importlib.import_module("tsmc_widgets.models.storybook")
        return str(storybook.path(rest or "lm"))
    return name


def _device(device: str | torch.device | None) -> str:
    return "cpu" if device is None else str(device)


def _transformers(purpose: str) -> Any:
    try:
        return importlib.import_module("transformers")
    except ModuleNotFoundError as error:
        raise missing_extra("transformers", "hf", purpose) from error


def _not_found(source: str, error: OSError) -> str:
    if Path(source).is_dir():
        return f"The folder {source!r} is no complete checkpoint: {error}"
    return (
        f"There is no checkpoint {source!r}: no folder of this name here, none in the local cache, "
        "and none could be fetched from the model hub (is there a network, and is the name spelled "
        "'owner/name'?). Use 'storybook', which ships with the package, or the path of a folder."
    )
