"""Another base model: a language model under a temperature and cuts of its vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, fields, replace
from operator import attrgetter
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tsmc_widgets.errors import check_integer, check_number
from tsmc_widgets.models.protocol import LanguageModel, LMStep, TeacherForced, by_rows, check_model
from tsmc_widgets.models.tabular import TabularLM

TIE = 1e-4
"""Nats below a cut within which a token counts as tied with it, and stays."""
_TIED_MASS = 1e-6


@dataclass(frozen=True)
class Tempered:
    """A language model under a temperature and cuts: another p0, normalised over what is left.

    In the order of transformers: log p0 / temperature, then ``top_k``, ``top_p`` and ``min_p``,
    each on what the one before has left. Every token that is tied with the last one to stay, or
    less than 1e-4 nats below it, stays too, so that neither the order of equal tokens nor rounding
    decides: stepping and teacher forcing cut alike. Hidden states, carries, prompts and text are
    those of ``lm``.

    Attributes:
        lm: the model.
        temperature: below 1 sharpens, above 1 flattens.
        top_k: keep the k likeliest tokens; None keeps all.
        top_p: keep the likeliest tokens that together have this probability; None keeps all.
        min_p: keep tokens of at least this share of the likeliest one's probability; None keeps
            all.
    """

    lm: LanguageModel
    _: KW_ONLY
    temperature: float | int = 1.0
    top_k: int | None = None
    top_p: float | int | None = None
    min_p: float | int | None = None

    def __post_init__(self) -> None:
        """Check model and numbers."""
        check_model(self.lm)
        given = {each.name: getattr(self, each.name) for each in fields(self)[1:]}
        keeps_all = {name for name, value in given.items() if value is None} - {"temperature"}
        check_settings({name: given[name] for name in given if name not in keeps_all})

    vocab_size, eos_token_id, context_length, device, encode, decode, token_text = (
        property(attrgetter(f"lm.{name}"))
        for name in (
            "vocab_size", "eos_token_id", "context_length", "device", "encode", "decode",
            "token_text",
        )
    )  # fmt: skip

    def __getattr__(self, name: str) -> Any:
        """What a model may have besides the protocol."""
        if name == "lm":  # Not set yet, as while a pickle is read.
            raise AttributeError(name)
        return getattr(self.lm, name)

    def prefill(self, tokens: Int[Tensor, "batch length"]) -> LMStep:
        """Read whole prefixes, all of one length."""
        return self._of(self.lm.prefill(tokens))

    def advance(self, tokens: Int[Tensor, " batch"], carry: Any) -> LMStep:
        """Read one more token for each row; ``carry`` stays unchanged."""
        return self._of(self.lm.advance(tokens, carry))

    def teacher_force(
        self, tokens: Int[Tensor, "batch length"], prompt_length: int
    ) -> TeacherForced:
        """Answers for the tokens after the first ``prompt_length``, with gradients."""
        return self._of(self.lm.teacher_force(tokens, prompt_length))

    def log_prob(
        self, tokens: Int[Tensor, "batch length"], prompt_length: int
    ) -> Float[Tensor, "batch steps"]:
        """Log p0 of each token after the first ``prompt_length``, in nats, with gradients."""
        return self.teacher_force(tokens, prompt_length).chosen(tokens[:, prompt_length:])

    def tempered(self, log_probs: Float[Tensor, "*rows vocab"]) -> Float[Tensor, "*rows vocab"]:
        """Log p0 of the next token from that of ``lm``."""
        left = _normalised(log_probs / self.temperature)
        if self.top_k is not None:
            likeliest = left.topk(min(self.top_k, left.shape[-1])).values
            left = _from(left, likeliest[..., -1:])
        if self.top_p is not None:
            ordered = left.sort(dim=-1, descending=True).values
            mass = ordered.double().exp()
            within = mass.cumsum(-1) - mass < self.top_p - _TIED_MASS
            last = (within.sum(-1, keepdim=True) - 1).clamp(min=0)
            left = left if self.top_p == 1 else _from(left, ordered.gather(-1, last))
        if self.min_p is not None:
            share = torch.tensor(self.min_p, dtype=torch.float64).log().to(left)
            left = _from(left, left.amax(-1, keepdim=True) + share)
        return left

    def _of(self, answer: Any) -> Any:
        return replace(answer, log_probs=by_rows(self.tempered, answer.log_probs))

    @property
    def settings(self) -> dict[str, Any]:
        """What differs from ``lm``, by name."""
        given = {each: getattr(self, each.name) for each in fields(self)[1:]}
        return {each.name: value for each, value in given.items() if value != each.default}


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raise ValueError where one of ``Tempered``'s settings has a value that it cannot have."""
    for name, value in settings.items():
        if name == "top_k":
            check_integer(name, value)
        else:
            check_number(name, value, "(0, inf)" if name == "temperature" else "(0, 1]")


def _normalised(log_probs: Float[Tensor, "*rows vocab"]) -> Float[Tensor, "*rows vocab"]:
    # Not log_softmax, whose float32 sum is 1e-6 nats off a row at 50,000 tokens.
    return log_probs - log_probs.logsumexp(-1, keepdim=True)


def _from(
    log_probs: Float[Tensor, "*rows vocab"], cut: Float[Tensor, "*rows one"]
) -> Float[Tensor, "*rows vocab"]:
    """What is at the cut or above, normalised."""
    return _normalised(log_probs.masked_fill(log_probs < cut.detach() - TIE, -torch.inf))


def table_of(lm: LanguageModel) -> TabularLM | None:
    """The exact tables of a model that has them, temperature and cuts included; else None."""
    if isinstance(lm, TabularLM):
        return lm
    if not isinstance(lm, Tempered):
        return None
    table = table_of(lm.lm)
    return None if table is None else table.mapped(lm.tempered)
