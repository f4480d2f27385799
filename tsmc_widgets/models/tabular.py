"""Language models small enough to write down: everything about them is exact, in float64."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tsmc_widgets.errors import (
    ContextLengthError,
    UnknownTokenError,
    as_list,
    check_integer,
    check_kind,
    check_number,
    listed,
    quoted,
)
from tsmc_widgets.models.protocol import LMStep, TeacherForced


@dataclass(frozen=True, slots=True)
class TabularCarry:
    """Where each row stands: how many tokens, and the index of its prefix (Markov: its last)."""

    index: Int[Tensor, " batch"]
    length: int

    def select(self, rows: Int[Tensor, " batch"]) -> TabularCarry:
        """Carry of the given rows."""
        return TabularCarry(self.index[rows], self.length)


MOST_TABLE_BITS = 28
"""Random tables of more numbers than two to the power of this are not made."""


class TabularLM:
    """A language model given by its tables, over a few readable symbols.

    Build it with ``markov``, ``from_tables`` or ``random``. Probabilities may be zero. Prompts may
    be empty. ``initial`` and ``transition`` are None unless the model is a Markov chain.
    """

    allows_empty_prompt = True
    device = torch.device("cpu")

    def __init__(
        self,
        log_tables: Sequence[Float[Tensor, "_ vocab"]],
        *,
        symbols: Sequence[str],
        separator: str,
        eos: str | Sequence[str] | None,
        markov: bool,
    ) -> None:
        """Use a named constructor instead; this one takes log-probabilities as they are kept."""
        self.symbols = list(symbols)
        self.separator = separator
        self.vocab_size = len(self.symbols)
        self.is_markov = markov
        self.context_length = None if markov else len(log_tables)
        check_kind("separator", separator, str, "a text")
        ends = [] if eos is None else as_list("eos", eos, at_least=0)
        for symbol in ends:
            check_kind("eos", symbol, str, "a symbol, or several")
        self.eos_token_ids = tuple(self.token_id(symbol) for symbol in ends)
        self.eos_token_id = self.eos_token_ids[0] if self.eos_token_ids else None
        self._log_tables = list(log_tables)

    @classmethod
    def markov(
        cls,
        initial: Float[Tensor, " vocab"] | Sequence[float],
        transition: Float[Tensor, "vocab vocab"] | Sequence[Sequence[float]],
        *,
        symbols: Sequence[str] | None = None,
        separator: str = "",
        eos: str | Sequence[str] | None = None,
    ) -> TabularLM:
        """Markov chain: ``initial`` gives the first token, ``transition[u, v]`` is p(v | u).

        Args:
            initial: probabilities of the first token when the prompt is empty.
            transition: row u holds the probabilities of the token after u.
            symbols: one readable text a token; letters a, b, c, ... if None.
            separator: what stands between symbols in a decoded text.
            eos: the symbol or symbols that end a text, if any do.
        """
        first = _distributions("initial", initial, ndim=1)
        rows = _distributions("transition", transition, ndim=2)
        if rows.shape != (first.shape[0], first.shape[0]):
            raise ValueError(
                f"transition must have shape ({first.shape[0]}, {first.shape[0]}) to go with "
                f"initial; got {tuple(rows.shape)}."
            )
        names = _check_symbols(symbols, first.shape[0])
        tables = [first.log().unsqueeze(0), rows.log()]
        return cls(tables, symbols=names, separator=separator, eos=eos, markov=True)

    @classmethod
    def from_tables(
        cls,
        tables: Sequence[Tensor],
        *,
        symbols: Sequence[str] | None = None,
        separator: str = "",
        eos: str | Sequence[str] | None = None,
    ) -> TabularLM:
        """Explicit conditionals: ``tables[t]`` has t + 1 axes of size V, p(v | prefix of t tokens).

        The longest text, prompt included, has ``len(tables)`` tokens.
        """
        if not isinstance(tables, list | tuple) or not tables:
            raise ValueError(
                "tables must be a list of at least one table, that of the first token; got "
                f"{quoted(tables)}."
            )
        checked = [
            _distributions(f"tables[{t}]", table, ndim=t + 1) for t, table in enumerate(tables)
        ]
        vocab = checked[0].shape[0]
        for t, table in enumerate(checked):
            if set(table.shape) != {vocab}:
                raise ValueError(
                    f"tables[{t}] must have {t + 1} axes of size {vocab}; got {tuple(table.shape)}."
                )
        names = _check_symbols(symbols, vocab)
        rows = [table.reshape(-1, vocab).log() for table in checked]
        return cls(rows, symbols=names, separator=separator, eos=eos, markov=False)

    @classmethod
    def random(
        cls, vocab_size: int, num_steps: int, *, seed: int, concentration: float = 1.0
    ) -> TabularLM:
        """Explicit tables drawn from a symmetric Dirichlet: no two prefixes alike."""
        vocab_size = check_integer("vocab_size", vocab_size)
        num_steps = check_integer("num_steps", num_steps, below=2**16)
        if num_steps * math.log2(vocab_size) > MOST_TABLE_BITS:
            raise ValueError(
                f"vocab_size={vocab_size} and num_steps={num_steps} make a table of "
                f"{vocab_size}**{num_steps} numbers, and 2**{MOST_TABLE_BITS} are allowed."
            )
        seed = check_integer("seed", seed, at_least=0)
        concentration = check_number("concentration", concentration, "(0, inf)")
        generator = torch.Generator().manual_seed(seed)
        alpha = torch.full((vocab_size,), concentration, dtype=torch.float64)
        tables = []
        for t in range(num_steps):
            gammas = torch._standard_gamma(
                alpha.expand(*(vocab_size,) * t, vocab_size), generator=generator
            )
            tables.append(gammas / gammas.sum(-1, keepdim=True))
        return cls.from_tables(tables)

    def mapped(self, change: Callable[[Tensor], Tensor]) -> TabularLM:
        """The same model with other log-probabilities in each row of its tables."""
        other = copy.copy(self)
        other._log_tables = [change(table) for table in self._log_tables]
        return other

    @property
    def initial(self) -> Float[Tensor, " vocab"] | None:
        """Probabilities of the first token; None unless a Markov chain."""
        return self._log_tables[0][0].exp() if self.is_markov else None

    @property
    def transition(self) -> Float[Tensor, "vocab vocab"] | None:
        """Row u holds p(. | u); None unless a Markov chain."""
        return self._log_tables[1].exp() if self.is_markov else None

    def prefill(self, tokens: Int[Tensor, "batch length"]) -> LMStep:
        """Read whole prefixes; the length may be 0."""
        index = torch.zeros(tokens.shape[0], dtype=torch.int64)
        for t in range(tokens.shape[1]):
            index = self._next_index(index, tokens[:, t])
        return self._step(index, tokens.shape[1])

    def advance(self, tokens: Int[Tensor, " batch"], carry: TabularCarry) -> LMStep:
        """Read one more token for each row."""
        return self._step(self._next_index(carry.index, tokens), carry.length + 1)

    def teacher_force(
        self, tokens: Int[Tensor, "batch length"], prompt_length: int
    ) -> TeacherForced:
        """Answers for the tokens after the first ``prompt_length``."""
        steps = [
            self.prefill(tokens[:, :t]).log_probs for t in range(prompt_length, tokens.shape[1])
        ]
        return TeacherForced(log_probs=torch.stack(steps, dim=1), hidden=None)

    def log_prob(
        self, tokens: Int[Tensor, "batch length"], prompt_length: int
    ) -> Float[Tensor, "batch steps"]:
        """Log p0 of each token after the first ``prompt_length``, in nats."""
        return self.teacher_force(tokens, prompt_length).chosen(tokens[:, prompt_length:])

    def token_id(self, symbol: str) -> int:
        """Id of a symbol."""
        if symbol not in self.symbols:
            raise UnknownTokenError(
                f"{quoted(symbol)} is not a symbol of this model; it has {listed(self.symbols)}."
            )
        return self.symbols.index(symbol)

    def encode(self, text: str) -> list[int]:
        """Ids of the symbols that make up a text (longest symbol first, separators skipped)."""
        if self.separator:
            return [self.token_id(part) for part in text.split(self.separator) if part]
        ids = []
        at = 0
        by_length = sorted(range(self.vocab_size), key=lambda i: -len(self.symbols[i]))
        while at < len(text):
            match = next((i for i in by_length if text.startswith(self.symbols[i], at)), None)
            if match is None:
                raise UnknownTokenError(
                    f"{text[at]!r} at position {at} of {quoted(text)} is not a symbol of this "
                    f"model; it has {listed(self.symbols)}."
                )
            ids.append(match)
            at += len(self.symbols[match])
        return ids

    def decode(self, tokens: Int[Tensor, "batch length"]) -> list[str]:
        """Text of each row, EOS left out."""
        return [
            self.separator.join(self.symbols[i] for i in row if i not in self.eos_token_ids)
            for row in tokens.tolist()
        ]

    def token_text(self, token: int) -> str:
        """The symbol of a token."""
        return self.symbols[token]

    def _next_index(
        self, index: Int[Tensor, " batch"], tokens: Int[Tensor, " batch"]
    ) -> Int[Tensor, " batch"]:
        return tokens.clone() if self.is_markov else index * self.vocab_size + tokens

    def _step(self, index: Int[Tensor, " batch"], length: int) -> LMStep:
        if self.context_length is not None and length >= self.context_length:
            raise ContextLengthError(
                f"This model has tables for {self.context_length} tokens and {length} have been "
                "read: use a shorter prompt, fewer steps or more tables."
            )
        table = self._log_tables[min(length, len(self._log_tables) - 1)]
        return LMStep(log_probs=table[index], hidden=None, carry=TabularCarry(index, length))


def _distributions(name: str, values: Tensor | Sequence, *, ndim: int) -> Tensor:
    try:
        table = torch.as_tensor(values, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must hold probabilities; got {quoted(values)}.") from error
    if table.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} axes; got shape {tuple(table.shape)}.")
    sums = table.sum(-1, keepdim=True)
    good = (table >= 0).all(-1) & ((sums - 1).abs() < 1e-6).squeeze(-1)
    if not bool(good.all()):
        row = table[~good][0].tolist()
        raise ValueError(
            f"{name} must hold probabilities that sum to 1 over the last axis; got "
            f"{', '.join(f'{value:g}' for value in row[:20])}, which sum to {math.fsum(row):g}."
        )
    return table / sums


def _check_symbols(symbols: Sequence[str] | None, vocab_size: int) -> list[str]:
    if symbols is None:
        width = max(1, math.ceil(math.log(max(vocab_size, 2), 26)))
        letters = "abcdefghijklmnopqrstuvwxyz"
        names = [
            "".join(letters[i // 26**p % 26] for p in reversed(range(width)))
            for i in range(vocab_size)
        ]
    else:
        names = list(symbols) if isinstance(symbols, Sequence) else []
    if not all(isinstance(name, str) for name in names):
        names = []
    if len(names) != vocab_size or len(set(names)) != vocab_size or "" in names:
        raise ValueError(
            f"symbols must be {vocab_size} different, non-empty texts, one a token; got "
            f"{quoted(symbols)}."
        )
    return names
