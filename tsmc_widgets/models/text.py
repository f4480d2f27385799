"""Text and tokens by a transformers tokenizer, with errors that name the unknown words."""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Mapping, Sequence
from typing import Any, SupportsIndex

from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tsmc_widgets.errors import (
    ControlTokenError,
    NoTokenizerError,
    UnknownTokenError,
    UnsupportedModelError,
    quoted,
)

_BYTE = re.compile("<0x[0-9A-F]{2}>")


class TokenizerText:
    """The methods of a language model that need its tokenizer, a fast or a slow one.

    Without a tokenizer (None) only ``token_text`` answers; the others raise NoTokenizerError.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None) -> None:
        self.tokenizer = tokenizer

    @property
    def _given_tokenizer(self) -> PreTrainedTokenizerBase:
        if self.tokenizer is None:
            raise NoTokenizerError(
                "This model has no tokenizer, so it reads and gives token ids only: give prompts "
                "and words as token ids, or make it as HuggingFaceLM(model, tokenizer)."
            )
        return self.tokenizer

    @property
    def control_tokens(self) -> dict[int, str]:
        """Tokens that are no text, such as BOS and EOS, and how they are spelled."""
        tokenizer = self._given_tokenizer
        found = {i: str(t) for i, t in tokenizer.added_tokens_decoder.items() if t.special}
        known = zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)
        return found | dict(known)

    def encode(self, text: str, *, control_tokens: bool = False) -> list[int]:
        """Token ids of a text, without special tokens around it.

        Args:
            text: what a person wrote.
            control_tokens: whether the spelling of a control token means that token.

        Raises:
            UnknownTokenError: the vocabulary lacks a word of the text.
            ControlTokenError: the text spells a control token, and that was not allowed.
        """
        if not text.isascii() and re.search("[\ud800-\udfff]", text):
            raise UnknownTokenError(f"no encoding has the lone surrogates of {quoted(text)}.")
        ids = self._given_tokenizer.encode(text, add_special_tokens=False)
        if not control_tokens:
            self._check_control(ids, text)
        unknown = self._given_tokenizer.unk_token_id
        if unknown is not None and unknown in ids:
            raise UnknownTokenError(self._unknown_message(text, unknown))
        return ids

    def encode_prompt(self, text: str) -> list[int]:
        """Token ids of a text that begins a sequence: after BOS where the tokenizer puts one."""
        ids = self.encode(text)
        bos = self._given_tokenizer.bos_token_id
        framed = self._given_tokenizer.encode(text, add_special_tokens=True)
        begins = bos is not None and framed[:1] == [bos] and ids[:1] != [bos]
        return [bos, *ids] if begins else ids

    def _check_control(self, ids: Sequence[int], text: str) -> None:
        control = self.control_tokens
        found = [control[token] for token in dict.fromkeys(ids) if token in control]
        # The unknown word's token stands for words that were not spelled so.
        found = [spelled for spelled in found if spelled in text]
        if found:
            raise ControlTokenError(
                f"The text {quoted(text)} spells {', '.join(map(repr, found))}, which this model "
                "reads "
                "as a control token and not as text: write it otherwise, use apply_chat_template "
                "for a conversation, or pass ids such as lm.encode(text, control_tokens=True)."
            )

    def apply_chat_template(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Token ids of a conversation, up to where the model's answer begins.

        Args:
            messages: dictionaries with "role" and "content".

        Raises:
            UnknownTokenError: the vocabulary lacks a word of a message.
            ControlTokenError: a message spells a control token.
            UnsupportedModelError: the tokenizer has no chat template.
        """
        if not self._given_tokenizer.chat_template:
            raise UnsupportedModelError(
                "The model's tokenizer has no chat template: give the prompt as a text, or use an "
                "instruction-tuned model."
            )
        for message in messages:
            self._check_words(message)
        return self._given_tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, tokenize=True, return_dict=False
        )

    def decode(self, tokens: Int[Tensor, "batch length"]) -> list[str]:
        """Text of each row, special tokens left out."""
        return self._given_tokenizer.batch_decode(tokens.tolist(), skip_special_tokens=True)

    def token_text(self, token: SupportsIndex) -> str:
        """One token as people read it, with its leading space, special tokens included.

        Bytes that are no text by themselves read like ``<0xE2>``, ids that the tokenizer lacks
        (a model's vocabulary may be padded) like ``<id 50300>``, and all ids like ``#123`` where
        there is no tokenizer.
        """
        token = operator.index(token)
        if self.tokenizer is None:
            return f"#{token}"
        piece = None
        if 0 <= token < len(self.tokenizer):
            piece = self.tokenizer.convert_ids_to_tokens(token)
        if piece is None:
            return f"<id {token}>"
        if token in self.tokenizer.all_special_ids:
            return piece
        if "\u2581" in piece:
            return piece.replace("\u2581", " ")
        text = self.tokenizer.convert_tokens_to_string([piece])
        if "\ufffd" in text and _BYTE.fullmatch(piece):
            return piece
        if "\ufffd" in text:
            values = [_BYTE_OF.get(character) for character in piece]
            if None not in values:
                return "".join(f"<0x{value:02X}>" for value in values)
        return text

    def _check_words(self, message: Mapping[str, Any]) -> None:
        """Raise UnknownTokenError or ControlTokenError for what a chat message may not hold."""
        content = message.get("content")
        parts = [content] if isinstance(content, str) else content or ()
        for part in parts:
            text = part.get("text") if isinstance(part, Mapping) else part
            if isinstance(text, str):
                self.encode(text)

    def _unknown_message(self, text: str, unknown: int) -> str:
        words = self._unknown_words(text, unknown)
        vocabulary = {token.strip("\u2581\u0120 ") for token in self._given_tokenizer.get_vocab()}
        hints = []
        for word in words[:5]:
            near = difflib.get_close_matches(word, vocabulary, n=3)
            hints.append(quoted(word) + (f" (nearest: {', '.join(near)})" if near else ""))
        more = f" and {len(words) - 5} more" if len(words) > 5 else ""
        return (
            f"The model's vocabulary lacks {', '.join(hints)}{more} of the text {quoted(text)}: "
            "use other words."
        )

    def _unknown_words(self, text: str, unknown: int) -> list[str]:
        if not self._given_tokenizer.is_fast:
            parts = text.split()
            found = [
                part
                for part in parts
                if unknown in self._given_tokenizer.encode(part, add_special_tokens=False)
            ]
            return found or [text]
        encoded = self._given_tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        spans = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        return list(dict.fromkeys(text[a:b].strip() for token, (a, b) in spans if token == unknown))


def _byte_alphabet() -> dict[str, int]:
    """Byte that each character of a byte-level BPE token stands for (as GPT-2 defined it)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [value for value in range(256) if value not in printable]
    alphabet = {chr(value): value for value in printable}
    return alphabet | {chr(256 + at): value for at, value in enumerate(others)}


_BYTE_OF = _byte_alphabet()
