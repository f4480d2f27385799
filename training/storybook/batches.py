"""Texts as tensors: packed rows for the language model, padded rows with labels at each prefix."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from training.storybook.engine import SENTENCE_ENDS
from training.storybook.grammar import Text, hostile_logit, shown_hostility

IGNORED = -100.0


@dataclass(frozen=True, slots=True)
class Encoded:
    """A text's tokens, its end-of-text token included, with its labels."""

    tokens: list[int]
    starts: list[int]
    """Where sentences begin."""
    text: Text


def encode(texts: Sequence[Text], tokenizer: PreTrainedTokenizerFast) -> list[Encoded]:
    """Tokens by word, as the tokenizer would give them on the running text."""
    vocabulary, eos = tokenizer.get_vocab(), tokenizer.eos_token_id
    unknown = tokenizer.unk_token_id
    encoded = []
    for text in texts:
        starts = [0] + [
            i + 1
            for i, word in enumerate(text.words[:-1])
            if word in SENTENCE_ENDS and text.words[i + 1][0].isupper()
        ]
        tokens = [vocabulary.get(word, unknown) for word in text.words]
        encoded.append(Encoded([*tokens, eos], starts, text))
    return encoded


def packed_rows(
    texts: Sequence[Encoded], length: int, eos: int, rng: random.Random
) -> Iterator[list[int]]:
    """Rows of texts, one after another, for the language model; each text is used once.

    A row begins with a text, with the end of the text before it, or in mid-text at a sentence, so
    that any such prompt is familiar; the last text of a row is cut short.
    """
    row: list[int] = []
    for text in texts:
        if not row:
            draw = rng.random()
            start = rng.choice(text.starts) if draw < 0.15 else 0
            row = ([eos] if draw > 0.75 else []) + text.tokens[start:]
        else:
            row += text.tokens
        if len(row) >= length:
            yield row[:length]
            row = []


def prefix_batch(
    texts: Sequence[Encoded], task: str, pad: int, rng: random.Random | None = None
) -> tuple[Tensor, Tensor]:
    """Padded tokens (batch, length) and the label of each prefix (batch, length).

    The label of `stars` is the class 0 to 4; of `hostility` the log-odds of hostile. Where padded
    it is IGNORED. With `rng`, three texts in ten begin at a later sentence and, for `hostility`,
    three in ten are sentences of several texts, so that what is said counts, not where.
    """
    rows = []
    for text in texts:
        mode = rng.random() if rng else 1.0
        if 0.3 <= mode < 0.6 and task == "hostility":
            rows.append(_collage(texts, rng))
        else:
            rows.append(_labelled(text, task, rng.choice(text.starts) if mode < 0.3 else 0))
    length = max(len(row) for row, _ in rows)
    tokens = torch.full((len(rows), length), pad)
    targets = torch.full((len(rows), length), IGNORED)
    for i, (row, labels) in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor(row)
        targets[i, : len(row)] = torch.tensor(labels)
    return tokens, targets


def _labelled(text: Encoded, task: str, start: int) -> tuple[list[int], list[float]]:
    tokens = text.tokens[start:]
    if task == "stars":
        return tokens, [float(text.text.stars - 1)] * len(tokens)
    return tokens, _logits((*text.text.heats[start:], 0.0))


def _collage(texts: Sequence[Encoded], rng: random.Random) -> tuple[list[int], list[float]]:
    """Two to nine sentences, each of any of the texts, many more of them hostile than in texts.

    The label is a function of the words, so choosing the words at will leaves it calibrated.
    """
    tokens: list[int] = []
    heats: list[float] = []
    for _ in range(rng.randrange(2, 10)):
        for _ in range(rng.choice((1, 8))):
            text = rng.choice(texts)
            which = rng.randrange(len(text.starts))
            start, end = (*text.starts, len(text.text.words))[which : which + 2]
            if any(text.text.heats[start:end]):
                break
        tokens += text.tokens[start:end]
        heats += text.text.heats[start:end]
    return tokens, _logits(heats)


def _logits(heats: Sequence[float]) -> list[float]:
    return [hostile_logit(level) for level in shown_hostility(heats)]
