"""Reading a transformers checkpoint, with errors that say what to do."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tsmc_widgets.errors import UnsupportedModelError, import_extra, quoted
from tsmc_widgets.models.gguf import converted, gguf_file, tell

SHIPPED = {
    "storybook": "load_language_model",
    "storybook/stars": "load_classifier",
    "storybook/hostility": "load_classifier",
}
"""Names that come with the package, and what loads them."""

_SECONDS = 5.0


def check_fetchable(name: str) -> None:
    """Raise at once where loading a name could only fail after many tries to fetch its files.

    Raises:
        FileNotFoundError: the name is no folder, is not in the local cache, and is a misspelled
            shipped name, not on the hub, or the hub cannot be reached.
    """
    if Path(name).exists():
        return
    # The hub takes new names as owner/name only.
    if "/" not in name and _meant(name):
        raise FileNotFoundError(not_found(name, "no folder of this name here."))
    hub: Any = importlib.import_module("huggingface_hub")
    try:
        if _is_cached(hub, name):
            return
        hub.get_hf_file_metadata(hub.hf_hub_url(name, "config.json"), timeout=_SECONDS)
    except hub.errors.HFValidationError as error:
        here = "no folder of this name here, and the model hub has no such names."
        raise FileNotFoundError(not_found(name, here)) from error
    except hub.errors.GatedRepoError:
        return
    except hub.errors.RepositoryNotFoundError as error:
        here = (
            "no folder of this name here, and none on the model hub that you may read (is the name "
            "spelled 'owner/name'? Are you logged in, if it is private?)."
        )
        raise FileNotFoundError(not_found(name, here)) from error
    except hub.errors.HfHubHTTPError:
        return
    # The hub's client lets through what its HTTP library raises, which is not always the same.
    except Exception as error:
        here = (
            "no folder of this name here, none in the local cache, and the model hub cannot be "
            f"reached (is there a network? {type(error).__name__}: {error})."
        )
        raise FileNotFoundError(not_found(name, here)) from error


def not_found(name: str, reason: str) -> str:
    """Message for a name that leads nowhere, with the shipped name that may have been meant."""
    meant = _meant(name)
    if meant is None:
        advice = (
            "Use 'storybook', which ships with the package, 'smollm2', or a folder's or GGUF "
            "file's path."
        )
    else:
        advice = (
            f"Did you mean {meant!r}, which ships with the package: {SHIPPED[meant]}({meant!r})?"
        )
    return f"There is no checkpoint {quoted(name)}: {reason} {advice}"


def _meant(name: str) -> str | None:
    return next(iter(difflib.get_close_matches(name.lower(), SHIPPED, n=1, cutoff=0.8)), None)


def _is_cached(hub: Any, name: str) -> bool:
    files = ("config.json", "adapter_config.json")
    return any(isinstance(hub.try_to_load_from_cache(name, file), str) for file in files)


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

    A GGUF file is converted when it is first loaded. Code that a checkpoint brings is never run,
    nor asked about.

    Raises:
        FileNotFoundError: there is no such checkpoint here, and none could be fetched.
        UnsupportedModelError: the checkpoint is of another kind, or lacks weights.
    """
    transformers = import_transformers(f"Loading {name_or_folder!s}")
    place = torch.device("cpu" if device is None else device)
    if dtype is None:
        dtype = torch.float32 if place.type == "cpu" else "auto"
    file = gguf_file(name_or_folder)
    with _quiet(transformers, file is not None):
        source = str(name_or_folder if file is None else converted(file))
    if Path(source).is_dir() and not (Path(source) / "config.json").is_file():
        raise FileNotFoundError(
            f"The folder {quoted(source)} is no checkpoint: it has no config.json."
        )
    tell(f"loading {Path(name_or_folder).name}")
    check_fetchable(source)
    try:
        with _quiet(transformers, Path(source).is_dir()):
            model, info = getattr(transformers, auto_class).from_pretrained(
                source, dtype=dtype, output_loading_info=True, trust_remote_code=False
            )
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except OSError as error:
        raise FileNotFoundError(_not_found(source, error)) from error
    except (ValueError, KeyError) as error:
        if "trust_remote_code" in str(error):
            raise UnsupportedModelError(
                f"{quoted(source)} is a model with code of its own, which is never run from here. "
                "If "
                "you trust it, load it with transformers yourself, and give model and tokenizer "
                "to tsmc_widgets.models.HuggingFaceLM or TextClassifier."
            ) from error
        raise UnsupportedModelError(
            f"transformers cannot load {quoted(source)} with {auto_class}: {error}"
        ) from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise UnsupportedModelError(
            f"{quoted(source)} lacks the weights {', '.join(missing[:5])}, so "
            f"{type(model).__name__} "
            "would get random ones: the checkpoint is of another kind of model. Give one that "
            f"was saved from a class of {auto_class}."
        )
    return model.to(place), tokenizer


def training_part(model: torch.nn.Module) -> str | None:
    """The first part of a model that is in training mode, in words; None in eval mode."""
    parts = [model]
    for part in parts:  # grows while it is read: named_modules costs each step ten times as much
        if part.training:
            name = next(name for name, each in model.named_modules() if each is part)
            return f"The model's part {quoted(name)}" if name else "The model"
        parts += filter(None, part._modules.values())
    return None


def _not_found(source: str, error: OSError) -> str:
    if Path(source).is_dir():
        return f"The folder {quoted(source)} is no complete checkpoint: {error}"
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
