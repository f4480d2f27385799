"""What tells a base model from others: enough of it that a twist is not put onto another one."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tsmc_widgets.errors import TwistFormatError
from tsmc_widgets.models.protocol import LanguageModel

_PER_TENSOR = 256
_SAMPLES = 64
# Between one model in two dtypes: bfloat16 keeps 8 bits.
_ROUNDING = 2.0**-7


def fingerprint(lm: LanguageModel) -> dict[str, Any]:
    """Type, sizes, dtype, a hash over values of every parameter, and a few of them to read.

    Models that are none of transformers are known by p0 after prompts of at most one token.
    """
    values, dtype = _values(lm)
    step = max(1, math.ceil(values.numel() / _SAMPLES))
    return {
        "class": type(lm).__name__,
        "model_type": getattr(getattr(_module(lm), "config", None), "model_type", None),
        "vocab_size": lm.vocab_size,
        "hidden_size": _hidden_size(lm),
        "dtype": dtype,
        "sha256": hashlib.sha256(values.numpy().tobytes()).hexdigest(),
        "samples": values[::step].tolist(),
    }


def check_fingerprint(lm: LanguageModel, saved: Mapping[str, Any], where: str) -> None:
    """Raise TwistFormatError unless ``lm`` is the base model of a saved twist, in any dtype."""
    own = fingerprint(lm)
    words = {
        "class": "kind of model",
        "model_type": "type of model",
        "vocab_size": "vocabulary",
        "hidden_size": "width of the hidden state",
    }
    for key, word in words.items():
        if saved.get(key) != own[key]:
            raise TwistFormatError(
                f"the twist in {where!r} belongs to another base model: {word} {saved.get(key)}, "
                f"and this one has {own[key]}. Load the model it was trained on."
            )
    same = saved.get("sha256") == own["sha256"]
    # Parameters of one dtype are equal to the byte; what a model computes is not on every device.
    if not same and (_module(lm) is None or saved.get("dtype") != own["dtype"]):
        same = _close(own["samples"], saved.get("samples", ()))
    if not same:
        raise TwistFormatError(
            f"the twist in {where!r} belongs to another base model, of the same type and sizes "
            "but with other weights. Load the model it was trained on."
        )


def _close(own: list[float], saved: list[float]) -> bool:
    if len(own) != len(saved):
        return False
    return all(
        math.isclose(a, b, rel_tol=_ROUNDING, abs_tol=1e-6) for a, b in zip(own, saved, strict=True)
    )


def _module(lm: LanguageModel) -> torch.nn.Module | None:
    model = getattr(lm, "model", None)
    return model if isinstance(model, torch.nn.Module) else None


def _hidden_size(lm: LanguageModel) -> int | None:
    model = _module(lm)
    if model is None or not hasattr(model, "config"):
        return None
    return model.config.get_text_config(decoder=True).hidden_size


@torch.no_grad()
def _values(lm: LanguageModel) -> tuple[Tensor, str]:
    """Values that make the model what it is, in float64 on the CPU, and the dtype they had."""
    model = _module(lm)
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
    if getattr(lm, "allows_empty_prompt", False):
        prompts.append(torch.zeros(1, 0, dtype=torch.int64, device=lm.device))
    if lm.context_length is None or lm.context_length > 1:
        first = torch.arange(min(lm.vocab_size, _SAMPLES), device=lm.device)
        prompts.append(first.unsqueeze(1))
    return prompts
