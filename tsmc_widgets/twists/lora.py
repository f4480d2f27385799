"""A twist that bends the base model's body by low-rank adapters."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from tsmc_widgets.errors import UnsupportedModelError, check_integer, import_extra
from tsmc_widgets.models.protocol import LanguageModel
from tsmc_widgets.twists.bodies import OwnStates, bare_copy
from tsmc_widgets.twists.trainable import NeuralTwist, linear_head


class LoRATwist(NeuralTwist):
    """Log psi_t from the base model's body with low-rank adapters (Hu et al. 2021) and a head.

    The body is made of the base model's own tensors, which stay as they are: only adapters and
    head take memory and learn. Head and adapters start at zero: psi = 1, and q = p0 exactly.

    Args:
        lm: the base model, of transformers; its own answers do not change.
        rank: of the adapters.
        alpha: the adapters are scaled by alpha / rank.
        target_modules: names of the layers to adapt, or "all-linear"; None is what peft adapts in
            models of this type (most often queries and values), else all linear layers.
        link: "log", or "sigmoid" for psi <= 1.
        seed: of the adapters' first values.
    """

    def __init__(
        self,
        lm: LanguageModel,
        *,
        rank: int = 8,
        alpha: int | float = 16,
        target_modules: str | Sequence[str] | None = None,
        link: str = "log",
        seed: int = 0,
    ) -> None:
        check_integer("rank", rank)
        if not (alpha > 0 and math.isfinite(alpha)):
            raise ValueError(f"alpha must be a positive number; got {alpha!r}.")
        body = bare_copy(lm, share=True)
        targets = _targets(body, target_modules)
        adapters = _adapt(body, rank, alpha, targets, seed)
        states = OwnStates(lm, body)
        options = {"rank": rank, "alpha": alpha, "target_modules": targets}
        super().__init__(lm, states, linear_head(lm, states.width), link, options)
        self.adapters = nn.ParameterDict(adapters)

    def _shared(self) -> Iterable[Any]:
        body = self._states.reader.model
        adapters = {id(parameter) for parameter in self.adapters.values()}
        tensors = [*body.parameters(), *body.buffers()]
        return [self.lm, self.lm.tokenizer, *(t for t in tensors if id(t) not in adapters)]


def _adapt(
    body: nn.Module, rank: int, alpha: int | float, targets: str | list[str], seed: int
) -> dict[str, nn.Parameter]:
    """Put adapters into the body; gives them by names that a ParameterDict takes."""
    peft = import_extra("peft", "hf", "LoRATwist")
    transposed = any(type(module).__name__ == "Conv1D" for module in body.modules())
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=targets,
        lora_dropout=0.0,
        fan_in_fan_out=transposed,
    )
    # peft draws first values from the global generator, which is the user's.
    with torch.random.fork_rng(devices=[]):
        try:
            peft.inject_adapter_in_model(config, body)
        except ValueError as error:
            raise UnsupportedModelError(
                f"peft can not adapt target_modules={targets!r} of a {body.config.model_type} "
                f"model: {error}"
            ) from error
    body.eval()
    generator = torch.Generator().manual_seed(seed)
    adapters = {}
    for name, parameter in body.named_parameters():
        if not parameter.requires_grad:
            continue
        first = torch.zeros(parameter.shape)
        if "lora_A" in name or "lora_embedding_B" in name:
            nn.init.kaiming_uniform_(first, a=math.sqrt(5), generator=generator)
        parameter.data = first.to(parameter.device)
        adapters[name.replace(".", "/")] = parameter
    return adapters


def _targets(body: nn.Module, target_modules: str | Sequence[str] | None) -> str | list[str]:
    if isinstance(target_modules, str):
        return target_modules
    if target_modules is not None:
        return list(target_modules)
    known = import_extra(
        "peft", "hf", "LoRATwist"
    ).utils.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    return list(known.get(body.config.model_type, ())) or "all-linear"
