"""Sequence classifiers of transformers on texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tsmc_widgets.errors import UnsupportedModelError, check_integer, check_stop
from tsmc_widgets.models.checkpoint import load_checkpoint, training_part
from tsmc_widgets.models.precision import float32_arithmetic

_PASS_BYTES = 2**28


class TextClassifier:
    """A text's logits, one for each label; a text's answer does not depend on its companions.

    Args:
        model: a transformers model for sequence classification; it is put in eval mode.
        tokenizer: its tokenizer.
        max_tokens: tokens, padding included, that one forward pass reads at most; None bounds the
            activations of a pass to 256 MB.

    Attributes:
        labels: the labels' names, in the order of the logits.
        num_labels: 1 for a classifier with a scalar logit.
        context_length: tokens of a text that count; later ones are cut off. None if unbounded.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_tokens: int | None = None,
    ) -> None:
        config: Any = model.config
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.num_labels = int(config.num_labels)
        self.labels = [str(config.id2label[label]) for label in range(self.num_labels)]
        self.context_length = _context_length(model, tokenizer)
        self._pad_id = _padding(model, tokenizer)
        if max_tokens is None:
            max_tokens = max(1, _PASS_BYTES // (32 * config.hidden_size))
        check_integer("max_tokens", max_tokens)
        self.max_tokens = max_tokens

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str | Path,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | str | None = None,
        max_tokens: int | None = None,
    ) -> TextClassifier:
        """Load a checkpoint by its transformers name or from a folder; see ``load_classifier``."""
        model, tokenizer = load_checkpoint(
            "AutoModelForSequenceClassification", name_or_folder, device=device, dtype=dtype
        )
        return cls(model, tokenizer, max_tokens=max_tokens)

    @property
    def device(self) -> torch.device:
        """Where the model's parameters are."""
        return self.model.device

    @torch.no_grad()
    def logits(self, texts: Sequence[str]) -> Float[Tensor, "texts labels"]:
        """Logits of each text, in float32 on the model's device."""
        part = training_part(self.model)
        if part is not None:
            raise RuntimeError(f"{part} is in training mode: call the classifier's model.eval().")
        answers = torch.empty(len(texts), self.num_labels, device=self.device)
        if not texts:
            return answers
        encoded = self._encode(texts)
        for chunk in self._chunks(encoded):
            check_stop()
            ids, mask = self._pad([encoded[at] for at in chunk])
            with float32_arithmetic(self.model):
                answers[chunk] = self.model(input_ids=ids, attention_mask=mask).logits.float()
        return answers

    def _chunks(self, encoded: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        """Indices of texts of like length, cut so that a padded chunk fits ``max_tokens``."""
        chunk: list[int] = []
        for at in sorted(range(len(encoded)), key=lambda at: len(encoded[at])):
            width = len(encoded[at])
            too_large = (len(chunk) + 1) * width > self.max_tokens
            if chunk and (too_large or width > 2 * len(encoded[chunk[0]])):
                yield chunk
                chunk = []
            chunk.append(at)
        yield chunk

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        encoded = self.tokenizer(
            list(texts), truncation=self.context_length is not None, max_length=self.context_length
        )["input_ids"]
        if all(encoded):
            return encoded
        start = self.tokenizer.bos_token_id
        start = self.tokenizer.eos_token_id if start is None else start
        if start is None:
            raise ValueError(
                "A text is empty, and this classifier's tokenizer has no token to put in its "
                "place: give a text of at least one word."
            )
        return [ids or [start] for ids in encoded]

    def _pad(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Ids and mask of rows padded on the right, which moves no position."""
        width = max(len(row) for row in rows)
        ids = [[*row, *[self._pad_id] * (width - len(row))] for row in rows]
        mask = [[1] * len(row) + [0] * (width - len(row)) for row in rows]
        return torch.tensor(ids, device=self.device), torch.tensor(mask, device=self.device)


def _context_length(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int | None:
    bounds = [getattr(model.config, "max_position_embeddings", None), tokenizer.model_max_length]
    # A tokenizer without a bound says 1e30.
    known = [bound for bound in bounds if isinstance(bound, int) and bound < 10**9]
    return min(known, default=None)


def _padding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Token to pad with; a model that reads its answer at the last token must know it too."""
    for pad in (model.config.pad_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id):
        if pad is not None:
            model.config.pad_token_id = pad
            return pad
    raise UnsupportedModelError(
        "The classifier's config and tokenizer have no padding token, so texts of different "
        "length cannot be told apart from padding: set tokenizer.pad_token."
    )
