"""Learned twists on disk: one folder with ``twist.safetensors`` and ``twist.json``, no pickle."""

from __future__ import annotations

import contextlib
import json
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tsmc_widgets.errors import TwistFormatError, check_one_of, check_path, import_extra, quoted
from tsmc_widgets.files import checksum, load_json, write_atomically
from tsmc_widgets.models.protocol import LanguageModel, check_model, network, optional, readable
from tsmc_widgets.models.tempered import Tempered
from tsmc_widgets.targets.target import Target, check_target
from tsmc_widgets.twists.forms import TWIST_FORMS
from tsmc_widgets.twists.trainable import TrainableModule

_PER_TENSOR = 256
_SAMPLES = 64
# Between one model in two dtypes: bfloat16 keeps 8 bits.
_ROUNDING = 2.0**-7


def fingerprint(lm: LanguageModel) -> dict[str, Any]:
    """Type, sizes, dtype, a hash over values of every parameter, and a few of them to read.

    Models that are none of transformers are known by p0 after prompts of at most one token. Of a
    ``Tempered`` model it is the model's, with its settings beside it: hidden states are the same,
    and psi > 0 keeps Z_hat unbiased, so that a twist may be loaded for another temperature.
    """
    if isinstance(lm, Tempered):
        return {**fingerprint(lm.lm), "tempered": lm.settings}
    values, dtype = _values(lm)
    model = network(lm)
    config = getattr(model, "config", None)
    step = max(1, math.ceil(values.numel() / _SAMPLES))
    return {
        "class": type(lm).__name__,
        "model_type": None if config is None else config.model_type,
        "vocab_size": lm.vocab_size,
        "hidden_size": _hidden_size(lm),
        "dtype": dtype,
        "sha256": checksum(values.numpy().tobytes()),
        "samples": values[::step].tolist(),
    }


def other_model(lm: LanguageModel, saved: Mapping[str, Any]) -> str:
    """How ``lm`` differs from a fingerprint, in words; "" for that model in any dtype."""
    own = fingerprint(lm)
    words = {
        "class": "kind of model",
        "model_type": "type of model",
        "vocab_size": "vocabulary",
        "hidden_size": "width of the hidden state",
    }
    for key, word in words.items():
        if saved.get(key) != own[key]:
            return f"{word} {saved.get(key)}, and this one has {own[key]}"
    same = saved.get("sha256") == own["sha256"]
    # Parameters of one dtype are equal to the byte; what a model computes is not on every device.
    if not same and (network(lm) is None or saved.get("dtype") != own["dtype"]):
        same = _close(own["samples"], saved.get("samples", ()))
    return "" if same else "of the same type and sizes but with other weights"


def _close(own: list[float], saved: Any) -> bool:
    numbers = isinstance(saved, list) and all(isinstance(each, float | int) for each in saved)
    if not numbers or len(own) != len(saved):
        return False
    return all(
        math.isclose(a, b, rel_tol=_ROUNDING, abs_tol=1e-6) for a, b in zip(own, saved, strict=True)
    )


def _hidden_size(lm: LanguageModel) -> int | None:
    model: Any = network(lm)
    if model is None or not hasattr(model, "config"):
        return None
    return model.config.get_text_config(decoder=True).hidden_size


@torch.no_grad()
def _values(lm: LanguageModel) -> tuple[Tensor, str]:
    """Values that make the model what it is, in float64 on the CPU, and the dtype they had."""
    model = network(lm)
    if model is None:
        answers = [lm.prefill(tokens).log_probs.exp() for tokens in _prompts(lm)]
        values = torch.cat([each.reshape(-1) for each in answers])
        return values.double().cpu(), str(values.dtype)
    parts, dtype = [], "none"
    for parameter in model.parameters():
        flat = parameter.detach().reshape(-1)
        parts.append(flat[:: max(1, flat.numel() // _PER_TENSOR)].double().cpu())
        dtype = str(parameter.dtype)
    return torch.cat(parts), dtype


def _prompts(lm: LanguageModel) -> list[Tensor]:
    prompts = []
    if optional(lm, "allows_empty_prompt"):
        prompts.append(torch.zeros(1, 0, dtype=torch.int64, device=lm.device))
    if lm.context_length is None or lm.context_length > 1:
        first = torch.arange(min(lm.vocab_size, _SAMPLES), device=lm.device)
        prompts.append(first.unsqueeze(1))
    return prompts


# ``python -m training.twists`` writes them.
SHIPPED_FOLDER = Path(__file__).with_name("weights")


def shipped_twists() -> tuple[str, ...]:
    """Names of the problems that a trained twist ships for, as ``load_twist`` takes them."""
    return tuple(sorted(path.parent.name for path in SHIPPED_FOLDER.glob("*/twist.json")))


def shipped_folder(name: str | Path) -> Path | None:
    """Folder of the twist that ships for a problem; None where there is none of that name."""
    known = isinstance(name, str) and name in shipped_twists()
    return SHIPPED_FOLDER / name if known else None


FORMAT = "tsmc_widgets.Twist"
BEGINS = f'{{\n "format": "{FORMAT}"'
"""The first characters of a card."""
VERSION = 4
WEIGHTS = "twist.safetensors"
CARD = "twist.json"
FORMS = {form.kind.__name__: form.kind for form in TWIST_FORMS.values()}
_PARTS = {
    "options": dict, "base_model": dict, "method": str | None, "weights_sha256": str,
    "history": list,
}  # fmt: skip
_DTYPES = (None, torch.float16, torch.bfloat16, torch.float32, torch.float64)


def save_twist(
    twist: Any,
    folder: str | Path,
    *,
    target: Target | None = None,
    history: Sequence[Any] | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write a learned twist into a folder; what was saved there before is replaced whole.

    Args:
        twist: any form that learns; its base model is named in the file and not saved.
        folder: made where it does not exist.
        target: what the twist was trained for; None keeps what a loaded twist says of it.
        history: what the training went through, in JSON's types; numbers that are not finite
            become null. None keeps what a loaded twist says of it.
        dtype: to save the weights in, such as ``torch.float16`` for half the size; None is as
            they are.

    Returns:
        The folder.
    """
    if type(twist).__name__ not in FORMS:
        raise TypeError(
            f"twist must be one of {', '.join(sorted(FORMS))}; got {type(twist).__name__}. Of a "
            "conditional twist save the twist itself, not what condition(observed) gives."
        )
    check_one_of("dtype", dtype, _DTYPES)
    folder = check_path("folder", folder)
    if target is not None:
        check_target(target)
    if history is not None and not isinstance(history, list | tuple):
        raise TypeError(f"history must be a list, in JSON's types; got {quoted(history)}.")
    weights = import_extra("safetensors.torch", "hf", "Saving or loading a twist").save(
        _weights(twist, dtype)
    )
    known = twist.card or {}
    card = {
        "format": FORMAT,
        "version": VERSION,
        "form": type(twist).__name__,
        "options": twist.card_options(),
        "base_model": fingerprint(twist.lm),
        "link": twist.link,
        "method": twist.method,
        "target": known.get("target") if target is None else _describe(target),
        "history": list(known.get("history", ()) if history is None else history),
        "weights_sha256": checksum(weights),
    }
    card = _finite(card)
    card["sha256"] = _card_checksum(card)
    folder.mkdir(parents=True, exist_ok=True)
    pending = _pending(folder, card["weights_sha256"])
    for path, content in ((pending, weights), (folder / CARD, _card_text(card))):
        with write_atomically(path) as part:
            part.write_bytes(content)
    # With its new card the folder holds the new twist, whose weights are read under either name.
    pending.replace(folder / WEIGHTS)
    return folder


def load_twist(folder: str | Path, lm: LanguageModel) -> TrainableModule:
    """Read a twist that ``save_twist`` wrote, onto the base model it was trained on.

    Args:
        folder: what ``save_twist`` was given, or the name of a problem that a twist ships for.
        lm: the base model, of any dtype and on any device.

    Returns:
        The twist, in float32 (tables in float64); ``twist.card`` holds what ``twist.json`` says.

    Raises:
        FileNotFoundError: there is no such folder, or no twist in it.
        TwistFormatError: the files are no twist, are damaged or of another format, or the twist
            belongs to another base model.
    """
    check_model(lm)
    folder = shipped_folder(folder) or check_path("folder", folder)
    card = _read_card(folder)
    difference = other_model(lm, card["base_model"])
    if difference:
        raise TwistFormatError(
            f"the twist in {str(folder)!r} belongs to another base model: {difference}. Load the "
            "model it was trained on."
        )
    weights = _read_weights(folder, card["weights_sha256"])
    for name, value in weights.items():
        if not bool(torch.isfinite(value).all()):
            raise TwistFormatError(
                f"the weights {name} of the twist in {str(folder)!r} are not finite: its training "
                "diverged; take one that was saved before."
            )
    try:
        with _no_larger_than(weights):
            twist = FORMS[card["form"]](lm, **card["options"])
        # Those that ship leave out the usual constants.
        twist.load_state_dict({"constants": twist.constants, **weights})
    except (TypeError, ValueError, RuntimeError, KeyError, OverflowError) as error:
        raise TwistFormatError(
            f"{str(folder)!r} holds weights that do not make a {card['form']} with the options "
            f"{card['options']}; train it again, or use the version of tsmc_widgets that wrote it: "
            f"{error}"
        ) from error
    twist.method = card["method"]
    twist.card = card
    return twist


@contextlib.contextmanager
def _no_larger_than(weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Refuse to make modules much larger than the weights for them, before memory is touched."""
    thread, left = threading.get_ident(), 4 * sum(value.numel() for value in weights.values())

    def count(module: torch.nn.Module, name: str, parameter: Tensor | None) -> None:
        nonlocal left
        if parameter is not None and threading.get_ident() == thread:
            left -= parameter.numel()
            if left < 0:
                raise ValueError("the options ask for more parameters than the file has")

    hook = torch.nn.modules.module.register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def _weights(twist: TrainableModule, dtype: torch.dtype | None) -> dict[str, Tensor]:
    weights = {}
    for name, value in twist.state_dict().items():
        kept = value.detach().cpu().contiguous()
        if dtype is not None and kept.is_floating_point() and name != "constants":
            kept = kept.to(dtype)
        if not bool(torch.isfinite(kept).all()):
            raise ValueError(
                f"the weights {name} are not finite in {kept.dtype}, so the twist cannot be "
                "saved: choose a wider dtype, or go back to before the training diverged."
            )
        weights[name] = kept
    return weights


def _describe(target: Target) -> dict[str, Any]:
    return {
        "potential": target.potential.describe(),
        "prompt": readable(target.lm, target.prompt_tokens.unsqueeze(0))[0],
        "prompt_tokens": target.prompt_tokens.tolist(),
        "num_steps": target.num_steps,
        **target.rules,
    }


def _finite(value: Any) -> Any:
    """The value in JSON's types, with null for numbers that JSON has no word for."""
    if isinstance(value, Mapping):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    if isinstance(value, Tensor | np.ndarray | np.generic):
        return _finite(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _read_card(folder: Path) -> dict[str, Any]:
    path = folder / CARD
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no twist in {str(folder)!r}, which lacks {CARD}: give the folder that "
            f"save_twist wrote, or a name that ships: {', '.join(shipped_twists())}."
        )
    try:
        card = load_json(path.read_bytes())
        if not isinstance(card, dict) or card.get("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT!r}")
        version = card.get("version")
        if not isinstance(version, int):
            raise ValueError("its version is no number")
        if version == VERSION and card.get("sha256") != _card_checksum(card):
            raise ValueError("its checksum does not match")
    except ValueError as error:
        raise TwistFormatError(
            f"{str(path)!r} does not describe a twist saved by this package, or it is damaged or "
            f"cut short ({error}). Only what save_twist wrote can be loaded."
        ) from error
    if version != VERSION or str(card.get("form")) not in FORMS:
        advice = "train the twist again" if version < VERSION else "update tsmc_widgets"
        raise TwistFormatError(
            f"{str(path)!r} is a {card.get('form')} of format {version}; this version of the "
            f"package reads format {VERSION}, and the forms {', '.join(sorted(FORMS))}: {advice}."
        )
    for name, kind in _PARTS.items():
        if not isinstance(card.get(name), kind):
            raise TwistFormatError(f"{str(path)!r} lacks {name}, or what stands there is another.")
    return card


def _card_text(card: Mapping[str, Any]) -> bytes:
    return json.dumps(card, indent=1, allow_nan=False).encode()


def _card_checksum(card: Mapping[str, Any]) -> str:
    """Of all that a card says besides it."""
    return checksum(_card_text({key: value for key, value in card.items() if key != "sha256"}))


def _pending(folder: Path, sha256: str) -> Path:
    """Where weights stand until the card is theirs."""
    return folder / f"twist-{sha256[:16]}.safetensors"


def _read_weights(folder: Path, sha256: str) -> dict[str, Tensor]:
    paths = [path for path in (folder / WEIGHTS, _pending(folder, sha256)) if path.is_file()]
    if not paths:
        raise FileNotFoundError(f"{str(folder)!r} lacks {WEIGHTS}, the weights of its twist.")
    contents = (path.read_bytes() for path in paths)
    content = next((each for each in contents if checksum(each) == sha256), None)
    safetensors = import_extra("safetensors.torch", "hf", "Saving or loading a twist")
    try:
        return safetensors.load(content)
    except Exception as error:
        raise TwistFormatError(
            f"{str(paths[0])!r} is damaged or cut short, or is not of the same save as {CARD} "
            "beside it: save the twist again."
        ) from error
