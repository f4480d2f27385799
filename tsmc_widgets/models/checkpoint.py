"""Reading a transformers checkpoint, with errors that say what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tsmc_widgets.errors import UnsupportedModelError, import_extra
from tsmc_widgets.models.hub import check_fetchable, not_found


def import_transformers(purpose: str) -> Any:
    """The transformers package, or the error that says how to install it."""
    return import_extra("transformers", "hf", purpose)


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
    transformers = import_transformers(f"Loading {name_or_folder!s}")
    place = torch.device("cpu" if device is None else device)
    if dtype is None:
        dtype = torch.float32 if place.type == "cpu" else "auto"
    source = str(name_or_folder)
    if Path(source).is_dir() and not (Path(source) / "config.json").is_file():
        raise FileNotFoundError(f"The folder {source!r} is no checkpoint: it has no config.json.")
    check_fetchable(source)
    try:
        with _quiet(transformers, Path(source).is_dir()):
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


def _not_found(source: str, error: OSError) -> str:
    if Path(source).is_dir():
        return f"The folder {source!r} is no complete checkpoint: {error}"
    here = "no folder of this name here, and none could be fetched from the model hub"
    return not_found(source, f"{here} ({str(error).strip()}).")


@contextmanager
def _quiet(transformers: Any, quiet: bool) -> Iterator[None]:
    """Hide the progress bars of a load that takes no time: nothing is fetched."""
    bars = transformers.utils.logging
    if not quiet or not bars.is_progress_bar_enabled():
        yield
        return
    bars.disable_progress_bar()
    try:
        yield
    finally:
        bars.enable_progress_bar()
