"""Twists with a transformer body of their own, stepped with a KV cache of its own."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tsmc_widgets.errors import UnsupportedModelError, check_one_of
from tsmc_widgets.models.checkpoint import import_transformers
from tsmc_widgets.models.protocol import Carry, LanguageModel, LMStep, TeacherForced
from tsmc_widgets.twists.trainable import NeuralTwist, hidden_width, linear_head, mlp_head

HEADS = ("linear", "mlp")


class _NoVocabulary(nn.Module):
    """Stands where a body's output embedding stood: what it is fed is all that is wanted."""

    out_features = 1

    def __init__(self, like: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", like.new_empty(0), persistent=False)

    def forward(self, states: Tensor) -> Tensor:
        """One column, so that the model's own answer costs nothing."""
        return states[..., :1]


class OwnStates:
    """Hidden states of another body than the base model's, in teacher forcing with gradients."""

    def __init__(self, lm: LanguageModel, body: nn.Module) -> None:
        """Step ``body``, which ``bare_copy`` made, as the base model is stepped."""
        huggingface = importlib.import_module("tsmc_widgets.models.huggingface")
        self.reader = huggingface.HuggingFaceLM(body, lm.tokenizer, max_rows=lm.max_rows)
        self.width = hidden_width(self.reader)

    def prefill(self, tokens: Tensor, lm_step: LMStep) -> tuple[Tensor, Carry]:
        """States (batch, width) after whole prefixes, and what to carry on."""
        step = self.reader.prefill(tokens)
        return step.hidden, step.carry

    def advance(self, tokens: Tensor, carry: Carry | None, lm_step: LMStep) -> tuple[Tensor, Carry]:
        """States (batch, width) after one more token."""
        step = self.reader.advance(tokens, carry)
        return step.hidden, step.carry

    def teacher_force(
        self, tokens: Tensor, prompt_length: int, base: TeacherForced | None
    ) -> Float[Tensor, "batch steps width"]:
        """States that predict each token after the prompt."""
        return self.reader.teacher_force(tokens, prompt_length).hidden


def bare_copy(lm: LanguageModel, *, share: bool) -> nn.Module:
    """The base model's body, without its output embedding.

    Args:
        lm: the base model, a ``HuggingFaceLM``; it stays as it is.
        share: whether the copy is made of the base model's own tensors, frozen; else they are
            copied, to float32 where they are of lower precision, and learn.

    Raises:
        UnsupportedModelError: the base model is none of transformers.
    """
    transformers = import_transformers("A twist with a body of its own")
    model = getattr(lm, "model", None)
    if not isinstance(model, transformers.PreTrainedModel):
        raise UnsupportedModelError(
            f"{type(lm).__name__} has no transformer body to copy: use TableHeadTwist for a tiny "
            "vocabulary, or a base model that load_language_model gives."
        )
    head = model.get_output_embeddings()
    memo: dict[int, Any] = {id(head): _NoVocabulary(head.weight.detach())}
    if share:
        memo |= shared_tensors(model)
    body = copy.deepcopy(model, memo).eval()
    if share:
        return body
    if body.dtype in (torch.float16, torch.bfloat16):
        body = body.float()
    return body.requires_grad_(True)


def shared_tensors(model: nn.Module) -> dict[int, Tensor]:
    """A deepcopy memo for a model whose copy is to be made of the same memory, frozen."""
    frozen = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
    return frozen | {id(buffer): buffer for buffer in model.buffers()}


class OwnBodyTwist(NeuralTwist):
    """A twist whose ``body`` learns with it."""

    body: nn.Module

    def train(self, mode: bool = True) -> OwnBodyTwist:
        """Set the mode of the head; the body stays in eval mode, where nothing is dropped."""
        super().train(mode)
        self.body.eval()
        return self

    def _shared(self) -> Iterable[Any]:
        return [*super()._shared(), self.lm.tokenizer]


class BodyTwist(OwnBodyTwist):
    """Log psi_t from a transformer of its own: a copy of the base model's body that learns whole.

    Its head starts at zero: psi = 1, so that the twist-induced proposal is p0 exactly. The copy
    is in float32 (float64 for a float64 model) and always in eval mode, so without dropout.

    Args:
        lm: the base model, of transformers; it stays as it is.
        link: "log", or "sigmoid" for psi <= 1.
        head: "linear", or "mlp" for two layers of ReLU before it.
        seed: of the first values of an MLP head.
    """

    def __init__(
        self, lm: LanguageModel, *, link: str = "log", head: str = "linear", seed: int = 0
    ) -> None:
        check_one_of("head", head, HEADS)
        body = bare_copy(lm, share=False)
        states = OwnStates(lm, body)
        if head == "linear":
            module = linear_head(lm, states.width)
        else:
            module = mlp_head(lm, states.width, width=None, depth=2, seed=seed)
        super().__init__(lm, states, module, link, {"head": head})
        self.body = body
