"""What the package asks of a base language model p0: four methods and a few facts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tsmc_widgets.errors import NoTokenizerError, UnsupportedModelError, quoted


@runtime_checkable
class Carry(Protocol):
    """What a model keeps of a batch of prefixes (a KV cache, say): derived data, never written."""

    def select(self, rows: Int[Tensor, " batch"]) -> Carry:
        """Carry of the given rows, in that order and with repeats; this one stays as it is."""
        ...


@runtime_checkable
class ReservingCarry(Carry, Protocol):
    """A carry that can be told, once after the prompt, how large its successors will become."""

    def reserve(self, rows: int, tokens: int) -> Carry:
        """Carry whose successors make room for that many rows and tokens."""
        ...

    def most_bytes(self, rows: int, tokens: int) -> float | int:
        """Memory that as many rows and tokens take at most while a model reads the last token."""
        ...


class LazyTable:
    """A (rows, V) table that is computed a slice of rows at a time, when it is read.

    As a tensor, in functions of torch and with a tensor's methods, it is the whole table.
    """

    def __init__(self, rows: int, compute: Callable[[slice], Tensor]) -> None:
        """``compute`` gives a slice of the ``rows`` rows."""
        self._compute = compute
        first = compute(slice(0, 1))
        self._last = (slice(0, 1), first)
        self.shape = torch.Size((rows, first.shape[1]))
        self.device, self.dtype = first.device, first.dtype

    def __getitem__(self, key: Any) -> Tensor:
        """Rows of a slice, the last of which are kept; any other choice from the whole table."""
        if not isinstance(key, slice):
            return self._whole()[key]
        if self._last[0] != key:
            self._last = (key, self._compute(key))
        return self._last[1]

    def _whole(self) -> Tensor:
        return self._compute(slice(None))

    def __getattr__(self, name: str) -> Any:
        """What the whole table has."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._whole(), name)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function of torch on the whole table."""
        whole = [each._whole() if isinstance(each, LazyTable) else each for each in args]
        return func(*whole, **(kwargs or {}))


if TYPE_CHECKING:
    Table = Tensor  # What it stands for.
else:
    Table = Float[Tensor, "batch vocab"] | LazyTable

# A table of this many cells or more is not held whole.
LAZY_CELLS = 2**24


def by_rows(function: Callable[..., Tensor], *tables: Any, width: int = 0) -> Any:
    """The table whose rows ``function`` makes of the same rows of others.

    It is lazy where one of the others is, or where ``width`` columns make it large.
    """
    rows = tables[0].shape[0]
    if rows * width < LAZY_CELLS and all(isinstance(table, Tensor) for table in tables):
        return function(*tables)
    compute = torch.no_grad()(lambda part: function(*(table[part] for table in tables)))
    return LazyTable(rows, compute)


@dataclass(frozen=True, slots=True)
class LMStep:
    """A model's answer for a batch of prefixes.

    Attributes:
        log_probs: log p0(. | prefix), normalised over the full vocabulary.
        hidden: last hidden state, which heads on the trunk read; None where there is none.
        carry: goes into the next ``advance``.
        by_rows: whether a large table of log-probs would be a ``LazyTable``.
    """

    log_probs: Table
    hidden: Float[Tensor, "batch width"] | None
    carry: Carry
    by_rows: bool = False


@dataclass(frozen=True, slots=True)
class TeacherForced:
    """A model's answers along given tokens, with gradients; position i looks at tokens before it.

    Attributes:
        log_probs: log p0(. | s_{<t}) for t = 1..T, normalised.
        hidden: the state that predicts token t; None where there is none.
    """

    log_probs: Float[Tensor, "batch steps vocab"]
    hidden: Float[Tensor, "batch steps width"] | None

    def chosen(self, tokens: Int[Tensor, "batch steps"]) -> Float[Tensor, "batch steps"]:
        """Log p0 of the given tokens, one for each step."""
        return self.log_probs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


@runtime_checkable
class LanguageModel(Protocol):
    """A base model p0: the full softmax at temperature 1, in eval mode, or ``Tempered``.

    ``testing.check_language_model`` checks the contract. Tokens are int64 on ``device``.
    """

    vocab_size: int
    eos_token_id: int | None
    context_length: int | None

    @property
    def device(self) -> torch.device:
        """Where tokens must be."""
        ...

    def prefill(self, tokens: Int[Tensor, "batch length"]) -> LMStep:
        """Read whole prefixes, all of one length."""
        ...

    def advance(self, tokens: Int[Tensor, " batch"], carry: Any) -> LMStep:
        """Read one more token for each row; ``carry``, of its own last step, stays unchanged."""
        ...

    def teacher_force(
        self, tokens: Int[Tensor, "batch length"], prompt_length: int
    ) -> TeacherForced:
        """Answers for the tokens after the first ``prompt_length``, in one pass with gradients."""
        ...

    def log_prob(
        self, tokens: Int[Tensor, "batch length"], prompt_length: int
    ) -> Float[Tensor, "batch steps"]:
        """Log p0 of each token after the first ``prompt_length``, in nats, with gradients."""
        ...

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; raises UnknownTokenError where the vocabulary lacks a part of it.

        A model without a tokenizer raises NoTokenizerError here and in ``decode``.
        """
        ...

    def decode(self, tokens: Int[Tensor, "batch length"]) -> list[str]:
        """Text of each row, special tokens left out."""
        ...

    def token_text(self, token: int) -> str:
        """One token as people read it, special tokens included."""
        ...


_OPTIONAL: dict[str, Any] = {
    "model": None,
    "eos_token_ids": None,
    "allows_empty_prompt": False,
    "encode_prompt": None,
    "apply_chat_template": None,
    "max_rows": None,
}


def optional(lm: LanguageModel, name: str) -> Any:
    """What a model may have besides the protocol, or what holds of models that lack it.

    Args:
        lm: any model.
        name: "model", the torch module that computes its answers; "eos_token_ids", where several
            tokens end a text; "allows_empty_prompt", whether it predicts a first token;
            "encode_prompt", like ``encode``, of a text that begins a sequence;
            "apply_chat_template", ids of chat messages; "max_rows" of one forward pass.
    """
    return getattr(lm, name, _OPTIONAL[name])


def network(lm: LanguageModel) -> nn.Module | None:
    """The torch module that computes a model's answers, kept as ``lm.model``; None without one."""
    model = optional(lm, "model")
    return model if isinstance(model, nn.Module) else None


def eos_ids(lm: LanguageModel) -> tuple[int, ...]:
    """The tokens that end a text: ``lm.eos_token_ids`` where there are several, first its EOS."""
    several = optional(lm, "eos_token_ids")
    if several is None:
        return () if lm.eos_token_id is None else (lm.eos_token_id,)
    return tuple(several)


def readable(lm: LanguageModel, tokens: Int[Tensor, "batch length"]) -> list[str]:
    """Text of each row for labels; ids such as ``#12 #7`` where the model has no tokenizer."""
    try:
        return lm.decode(tokens)
    except NoTokenizerError:
        return [" ".join(f"#{token}" for token in row) for row in tokens.tolist()]


def check_device(device: str | torch.device | None) -> str:
    """The name of a device that torch knows, here or elsewhere; None is the CPU."""
    try:
        return str(torch.device("cpu" if device is None else device))
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"device must be one such as 'cpu', 'cuda' or 'cuda:1'; got {quoted(device)}."
        ) from error


def check_model(lm: object) -> None:
    """Raise UnsupportedModelError unless ``lm`` has what a language model must have."""
    needed = ("vocab_size", "prefill", "advance", "log_prob", "encode", "decode")
    missing = [name for name in needed if not hasattr(lm, name)]
    if isinstance(lm, type):
        missing = ["an instance"]
    if missing:
        hint = " Load a name with load_language_model." if isinstance(lm, str) else ""
        raise UnsupportedModelError(
            f"lm must be a language model of this package's protocol; got {quoted(lm)}, which "
            f"lacks {', '.join(missing)}.{hint}"
        )
