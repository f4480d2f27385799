"""Any causal language model of transformers, with a copy-on-write KV cache."""

from __future__ import annotations

import difflib
import inspect
import operator
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, SupportsIndex

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from tsmc_widgets.errors import (
    ContextLengthError,
    ControlTokenError,
    NoTokenizerError,
    UnknownTokenError,
    UnsupportedModelError,
    check_integer,
    check_kind,
    check_stop,
    quoted,
)
from tsmc_widgets.models.cache import Extension, KVCarry, layer_windows
from tsmc_widgets.models.checkpoint import load_checkpoint, training_part
from tsmc_widgets.models.precision import (
    BFloat16Arithmetic,
    OutputWeight,
    float32_arithmetic,
    is_bfloat16,
)
from tsmc_widgets.models.protocol import LAZY_CELLS, LMStep, TeacherForced, by_rows

_BYTE = re.compile("<0x[0-9A-F]{2}>")


class TokenizerText:
    """The methods of a language model that need its tokenizer, a fast or a slow one.

    Without a tokenizer (None) only ``token_text`` answers; the others raise NoTokenizerError.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None) -> None:
        self.tokenizer: Any = tokenizer

    @property
    def _given_tokenizer(self) -> Any:
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


# Of each character of a byte-level BPE token.
_BYTE_OF = {character: value for value, character in bytes_to_unicode().items()}
# Of float32 logits or activations in one forward pass, whichever are wider.
_PASS_BYTES = 2**28


class HuggingFaceLM(TokenizerText):
    """A causal language model and its tokenizer as p0: full softmax, temperature 1, eval mode.

    Log-probs and hidden states are float32 (float64 for a float64 model). Log p0 of a sequence does
    not depend on what is read with it, or on whether it is stepped through or read at once. A
    bfloat16 model computes in bfloat16, with its output layer in float32, where the CPU has the
    instructions and a trial with the model finds hidden states equal to the bit in all these ways.
    Elsewhere a model of half precision saves the memory of its parameters and no time: its
    arithmetic is float32. ``hidden`` is what the output embedding reads: the last state after the
    final norm.

    Ids for which the tokenizer has no text, as in a padded vocabulary, have p0 = 0: their mass is
    removed and the rest normalised again, in every method.

    Args:
        model: a transformers model with a language-modelling head; it is put in eval mode.
        tokenizer: its tokenizer; None for a model of token ids alone, whose prompts are ids.
        max_rows: rows that one forward pass of one token reads at most; passes over longer rows
            read proportionally fewer. None bounds the logits of a pass to 256 MB.

    Attributes:
        model: the transformers model.
        tokenizer: its tokenizer, or None.
        vocab_size: width of the model's logits, which may exceed the tokenizer's vocabulary.
        context_length: most tokens, prompt included; None where the model sets no bound.
        eos_token_id: the token that ends a text, if one does; the first of several.
        eos_token_ids: all of them: the tokenizer's, the config's and the generation config's.
        bos_token_id: the token that begins a text, if one does.
    """

    allows_empty_prompt = False

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        max_rows: int | None = None,
    ) -> None:
        if tokenizer is not None:
            methods = ("encode", "convert_ids_to_tokens")
            check_kind("tokenizer", tokenizer, methods, "a tokenizer of transformers, or None")
        methods = ("forward", "get_output_embeddings")
        check_kind("model", model, methods, "a causal model of transformers")
        super().__init__(tokenizer)
        _check_causal(model)
        self._windows = layer_windows(model.config)
        self._head = _output_embedding(model)
        self._trims_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
        config = model.config.get_text_config(decoder=True)
        self.model = model.eval()
        _skip_padding_check(model)
        self.vocab_size = int(getattr(self._head, "out_features", len(self._head.weight)))
        self.context_length = _context_length(config)
        special = config if tokenizer is None else tokenizer
        self.bos_token_id = special.bos_token_id
        generation = model.generation_config or config
        self.eos_token_ids = _ids(
            self.vocab_size, special.eos_token_id, config.eos_token_id, generation.eos_token_id
        )
        self.eos_token_id = self.eos_token_ids[0] if self.eos_token_ids else None
        if max_rows is None:
            width = max(self.vocab_size, 8 * config.hidden_size)
            max_rows = max(1, _PASS_BYTES // (4 * width))
        check_integer("max_rows", max_rows)
        self.max_rows = max_rows
        self._textless = _textless(self.vocab_size, tokenizer)
        self._output_weight = OutputWeight()
        # Whether logits are what the output embedding gives; known once a prompt has been read.
        self._head_alone: bool | None = None
        self._is_bfloat16 = is_bfloat16(model)
        self._is_bfloat16 = self._is_bfloat16 and self._has_one_answer()

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str | Path,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | str | None = None,
        max_rows: int | None = None,
    ) -> HuggingFaceLM:
        """Load a checkpoint by its transformers name or from a folder.

        Args:
            name_or_folder: what transformers' ``from_pretrained`` takes.
            device: where to put the model; None is the CPU.
            dtype: of the parameters; None is the checkpoint's own, but float32 on a CPU for a model
                that cannot compute in it: see the class.
            max_rows: as for the class.
        """
        model, tokenizer = load_checkpoint(
            "AutoModelForCausalLM", name_or_folder, device=device, dtype=dtype or "auto"
        )
        lm = cls(model, tokenizer, max_rows=max_rows)
        if dtype is None and lm.device.type == "cpu" and not lm._is_bfloat16:
            lm = cls(model.float(), tokenizer, max_rows=max_rows)
        return lm

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters."""
        return self._head.weight.dtype

    @property
    def output_embedding(self) -> Float[Tensor, "vocab width"]:
        """The output layer's weight in the dtype of log-probs, not to be written."""
        weight = self._head.weight.detach()
        return weight if weight.dtype == _wide(weight) else self._output_weight.of(weight)

    @property
    def device(self) -> torch.device:
        """Where the model's parameters are."""
        return self._head.weight.device

    def __repr__(self) -> str:
        """Class, model type and sizes."""
        return (
            f"HuggingFaceLM({self.model.config.model_type}, vocab_size={self.vocab_size}, "
            f"context_length={self.context_length}, dtype={str(self.dtype)[6:]}, "
            f"device={str(self.device)!r})"
        )

    def check_context(self, prompt_length: int, num_steps: int) -> None:
        """Raise ContextLengthError unless prompt and generated tokens fit the model together."""
        if self.context_length is not None and prompt_length + num_steps > self.context_length:
            raise ContextLengthError(
                f"A prompt of {prompt_length} tokens and {num_steps} steps make "
                f"{prompt_length + num_steps} tokens, and the model's context holds "
                f"{self.context_length}: use a shorter prompt or at most "
                f"{max(0, self.context_length - prompt_length)} steps."
            )

    @torch.no_grad()
    def prefill(self, tokens: Int[Tensor, "batch length"]) -> LMStep:
        """Read whole prefixes, all of one length."""
        if tokens.shape[1] == 0:
            raise ValueError(
                "This model cannot start from an empty prompt: give a text, or "
                "prompt=[lm.bos_token_id] where the model has such a token."
            )
        self.check_context(tokens.shape[1], 0)
        return self._read(tokens, None)

    @torch.no_grad()
    def advance(self, tokens: Int[Tensor, " batch"], carry: KVCarry) -> LMStep:
        """Read one more token for each row; ``carry`` stays valid and unchanged."""
        if carry.batch != tokens.shape[0]:
            raise ValueError(
                f"tokens must be one for each row of the carry; got {tokens.shape[0]} tokens for "
                f"{carry.batch} rows."
            )
        if self.context_length is not None and carry.length >= self.context_length:
            self.check_context(carry.length, 1)
        return self._read(tokens.unsqueeze(1), carry)

    def teacher_force(
        self, tokens: Int[Tensor, "batch length"], prompt_length: int
    ) -> TeacherForced:
        """Answers for the tokens after the first ``prompt_length``, in one pass with gradients."""
        log_probs, hidden = [], []
        for _, logits, states in self._passes(tokens, prompt_length):
            log_probs.append(torch.log_softmax(logits, dim=-1, dtype=_wide(logits)))
            hidden.append(states)
        return TeacherForced(
            log_probs=_join(log_probs), hidden=None if hidden[0] is None else _join(hidden)
        )

    def log_prob(
        self, tokens: Int[Tensor, "batch length"], prompt_length: int
    ) -> Float[Tensor, "batch steps"]:
        """Log p0 of each token after the first ``prompt_length``, in nats, with gradients."""
        log_probs = []
        for rows, logits, _ in self._passes(tokens, prompt_length):
            logits = logits.to(_wide(logits))
            chosen = rows[:, prompt_length:].unsqueeze(-1)
            log_probs.append(logits.gather(-1, chosen).squeeze(-1) - logits.logsumexp(-1))
        return _join(log_probs)

    def _read(self, tokens: Int[Tensor, "batch length"], carry: KVCarry | None) -> LMStep:
        batch, length = tokens.shape
        if batch == 0:  # Models cannot read no rows: read one and select none of its answer.
            one = None if carry is None else replace(carry, rows=tokens.new_zeros(1), batch=1)
            step, none = self._read(tokens.new_zeros(1, length), one), tokens.new_zeros(0)
            states = None if step.hidden is None else step.hidden[none]
            return LMStep(step.log_probs[none], states, step.carry.select(none))
        self._check_mode()
        extension = Extension(self._windows, batch, length, carry)
        is_lazy = bool(self._head_alone) and batch * self.vocab_size >= LAZY_CELLS
        log_probs: list[Tensor] = []
        hidden: list[Any] = []
        for start, stop in self._chunks(batch, length):
            logits, states = self._forward(
                tokens[start:stop],
                keep=1,
                skip_head=is_lazy,
                past_key_values=extension.cache(start, stop),
                use_cache=True,
            )
            if not is_lazy:
                log_probs.append(torch.log_softmax(logits[:, -1], dim=-1, dtype=_wide(logits)))
            hidden.append(None if states is None else states[:, -1])
        if self._head_alone is None and batch == 1 and hidden[0] is not None:
            self._head_alone = torch.equal(self._after_head(hidden[0]), log_probs[0])
        states = None if hidden[0] is None else _join(hidden)
        table = (
            _join(log_probs)
            if log_probs
            else by_rows(self._after_head, states, width=self.vocab_size)
        )
        return LMStep(table, states, extension.finish(), by_rows=bool(self._head_alone))

    def _after_head(self, states: Float[Tensor, "batch width"]) -> Float[Tensor, "batch vocab"]:
        """Log-probs from what the output embedding reads, in models where it alone makes them."""
        with self._arithmetic():
            logits = self._head(states.to(self._head.weight.dtype).unsqueeze(1))[:, -1]
        logits = self._with_text(logits)
        return torch.log_softmax(logits, dim=-1, dtype=_wide(logits))

    def _passes(
        self, tokens: Int[Tensor, "batch length"], prompt_length: int
    ) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """Tokens, logits and states of each chunk of rows, for the tokens after the prompt."""
        batch, length = tokens.shape
        check_integer("prompt_length", prompt_length)
        if length <= prompt_length:
            raise ValueError(
                f"tokens must go beyond the prompt; got {length} tokens with a prompt of "
                f"{prompt_length}."
            )
        self.check_context(prompt_length, length - prompt_length)
        self._check_mode()
        keep = length - prompt_length
        read = tokens if batch else tokens.new_zeros(1, length)
        shared = self._shares_prompt(read, prompt_length)
        for start, stop in self._chunks(len(read), keep if shared else length - 1):
            rows = tokens[start:stop]
            inputs: Tensor = read[start:stop, :-1]
            options: dict[str, Any] = {"use_cache": False}
            if shared:
                cache = self._prompt_cache(inputs, prompt_length)
                options = {"past_key_values": cache, "use_cache": True}
                inputs = inputs[:, prompt_length - 1 :]
            logits, states = self._forward(inputs, keep=keep, **options)
            logits = logits[: len(rows), -keep:]
            yield rows, logits, None if states is None else states[: len(rows), -keep:]

    def _shares_prompt(self, tokens: Tensor, prompt_length: int) -> bool:
        """Whether all rows begin alike, so that their beginning need be read once only."""
        if len(tokens) == 1 or prompt_length == 1 or set(self._windows) != {None}:
            return False
        return bool((tokens[:, :prompt_length] == tokens[0, :prompt_length]).all())

    def _prompt_cache(self, tokens: Tensor, prompt_length: int) -> DynamicCache:
        """Keys and values of the prompt but its last token, read once, for each row.

        Of transformers' own kind: gradients go through it, and nothing is written in place.
        """
        cache = DynamicCache()
        first = tokens[:1, : prompt_length - 1]
        self._forward(first, keep=1, past_key_values=cache, use_cache=True)
        cache.batch_repeat_interleave(len(tokens))
        return cache

    def _chunks(self, batch: int, length: int) -> Iterator[tuple[int, int]]:
        rows = max(1, self.max_rows // length)
        for start in range(0, batch, rows):
            check_stop()
            yield start, min(start + rows, batch)

    def _forward(
        self, tokens: Tensor, *, keep: int, skip_head: bool = False, **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Logits of at least the last ``keep`` positions and the states that they come from.

        With ``skip_head`` there are no logits: the output embedding gets no position to read.
        """
        if self._trims_logits:
            options["logits_to_keep"] = keep
        with _inputs_of(self._head, skip=skip_head) as seen, self._arithmetic():
            logits = self.model(input_ids=tokens, **options).logits
        logits = self._with_text(logits)
        return logits, seen[0].to(_wide(seen[0])) if seen else None

    def _arithmetic(self) -> AbstractContextManager[Any]:
        if self._is_bfloat16 and self.dtype == torch.bfloat16:
            return BFloat16Arithmetic(self._head, self._output_weight)
        return float32_arithmetic(self.model)

    def _with_text(self, logits: Tensor) -> Tensor:
        """Logits in which ids without a text have none of the mass."""
        if not self._textless:
            return logits
        ids = torch.tensor(self._textless, device=logits.device)
        return logits.index_fill(-1, ids, -torch.inf)

    @torch.no_grad()
    def _has_one_answer(self) -> bool:
        """Whether rows read together, alone, at once and token by token have the same states."""
        length = min(32, self.context_length or 32)
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(self.vocab_size, (4, length), generator=generator)
        expected = self.teacher_force(tokens, 1).hidden
        if expected is None:
            return False
        alone, states = tokens[:1], expected[:1]
        pairs = [(self.teacher_force(alone, 1).hidden, states)]
        for at in (1, length // 2, length - 2):
            step: Any = self.prefill(alone[:, :at])
            pairs += [(step.hidden, states[:, at - 1])]
            pairs += [(self.advance(alone[:, at], step.carry).hidden, states[:, at])]
        return all(torch.equal(*pair) for pair in pairs)

    def _check_mode(self) -> None:
        part = training_part(self.model)
        if part is not None:
            raise RuntimeError(
                f"{part} is in training mode, where dropout changes p0: call lm.model.eval()."
            )


def _join(chunks: Sequence[Tensor]) -> Tensor:
    return chunks[0] if len(chunks) == 1 else torch.cat(list(chunks))


def _wide(values: Tensor) -> torch.dtype:
    return torch.float64 if values.dtype == torch.float64 else torch.float32


class _InputCollector:
    """A forward pre-hook that keeps what one thread feeds to a module, or keeps it from it."""

    def __init__(self, *, skip: bool) -> None:
        self.thread, self.skip = threading.get_ident(), skip
        self.seen: list[Tensor] = []

    def __call__(self, _: torch.nn.Module, inputs: tuple[Tensor, ...]) -> Tensor | None:
        if threading.get_ident() != self.thread:
            return None
        self.seen.append(inputs[0])
        return inputs[0][:, :0] if self.skip else None


@contextmanager
def _inputs_of(module: torch.nn.Module, *, skip: bool = False) -> Iterator[list[Tensor]]:
    """Collect what this thread feeds to a module, which then reads none of it if ``skip``."""
    collector = _InputCollector(skip=skip)
    # An interrupt between two lines here can leave a hook behind, so the next pass removes it.
    _remove_collectors(module)
    try:
        module.register_forward_pre_hook(collector)
        yield collector.seen
    finally:
        _remove_collectors(module)


def _remove_collectors(module: torch.nn.Module) -> None:
    hooks = module._forward_pre_hooks
    for key, hook in list(hooks.items()):
        if isinstance(hook, _InputCollector) and hook.thread == threading.get_ident():
            hooks.pop(key, None)


def _skip_padding_check(model: PreTrainedModel) -> None:
    # Rows are never padded here, and the check waits for the accelerator in every pass.
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            module.warn_if_padding_and_no_attention_mask = _nothing_to_warn_of


def _nothing_to_warn_of(*_: object) -> None:
    """Stand in for a check whose answer is known."""


def _check_causal(model: PreTrainedModel) -> None:
    if model.config.is_encoder_decoder:
        raise UnsupportedModelError(
            f"{type(model).__name__} is an encoder-decoder model: use a causal (decoder-only) one."
        )
    if any(getattr(module, "is_causal", True) is False for module in model.modules()):
        raise UnsupportedModelError(
            f"{type(model).__name__} lets tokens look at later ones: use a causal model (or set "
            "is_decoder=True in the config of one that was trained so)."
        )


def _output_embedding(model: PreTrainedModel) -> Any:
    head = model.get_output_embeddings()
    if head is None or "past_key_values" not in inspect.signature(model.forward).parameters:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no language-modelling head with a KV cache: use a class "
            "that AutoModelForCausalLM gives."
        )
    return head


def _textless(vocab_size: int, tokenizer: PreTrainedTokenizerBase | None) -> list[int]:
    """Ids that the model has and the tokenizer lacks."""
    if tokenizer is None:
        return []
    known = set(tokenizer.get_vocab().values())
    return [token for token in range(vocab_size) if token not in known]


def _context_length(config: Any) -> int | None:
    """Most tokens, under whatever name the model's config has for it."""
    names = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
    values = (getattr(config, name, None) for name in names)
    return next((value for value in values if isinstance(value, int)), None)


def _ids(vocab_size: int, *given: int | Sequence[int] | None) -> tuple[int, ...]:
    """All token ids that are given, each once, of those that the model has."""
    lists = [[each] if isinstance(each, int) else each or () for each in given]
    ids = dict.fromkeys(token for each in lists for token in each)
    return tuple(token for token in ids if token < vocab_size)
