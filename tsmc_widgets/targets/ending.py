"""Where texts end before T: at EOS tokens, stop strings, or tokens of which a function says so."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tsmc_widgets.errors import quoted
from tsmc_widgets.models.protocol import LanguageModel, eos_ids
from tsmc_widgets.models.tempered import table_of
from tsmc_widgets.targets.automata import TokenAutomaton, pattern_automaton

Stop = str | Sequence[str] | Callable[[str], bool] | None
"""Texts, or a function of one token's text; see ``Target``."""


@dataclass(frozen=True, eq=False)
class Ending:
    """Where texts end, as a finite automaton over tokens, and what fills the places after an end.

    An ended text stays ended: p0 puts mass 1 on ``fill`` from then on.

    Attributes:
        fill: the token that repeats up to T, the model's (first) EOS.
        transition: state after each state and token; a text starts at 0, and the last state is that
            of ended texts.
    """

    fill: int
    transition: Int[Tensor, "states vocab"]

    @property
    def ended(self) -> int:
        """The number of the state of an ended text."""
        return len(self.transition) - 1

    def after_each(self, tokens: Int[Tensor, "batch steps"]) -> Int[Tensor, "batch steps"]:
        """State after each token."""
        state, states = torch.zeros_like(tokens[:, 0]), []
        for column in tokens.unbind(1):
            state = self.transition.to(tokens.device)[state, column]
            states.append(state)
        return torch.stack(states, dim=1)

    def over(self, tokens: Int[Tensor, "batch steps"]) -> Bool[Tensor, "batch steps"]:
        """Positions from a row's end on: the token that ends it, and what fills up."""
        if not tokens.shape[1]:
            return torch.zeros_like(tokens, dtype=torch.bool)
        if self.ended == 1:
            return self.transition[0].to(tokens.device)[tokens].cumsum(1) > 0
        return self.after_each(tokens) == self.ended

    def after(self, tokens: Int[Tensor, "batch steps"]) -> Bool[Tensor, "batch steps"]:
        """Positions after the token that ends a row."""
        over = self.over(tokens)
        return torch.cat([torch.zeros_like(over[:, :1]), over[:, :-1]], dim=1)

    def ends(self, paths: Int[Tensor, "batch t"]) -> Bool[Tensor, " batch"]:
        """Whether rows that had not ended before end with their last token."""
        before = self.read(paths[:, :-1])
        return self.transition.to(paths.device)[before, paths[:, -1]] == self.ended

    def next(self, prefixes: Int[Tensor, "batch t"]) -> Bool[Tensor, "batch vocab"]:
        """Which next tokens end texts that have not ended yet."""
        return self.transition.to(prefixes.device)[self.read(prefixes)] == self.ended

    def read(self, prefixes: Int[Tensor, "batch t"]) -> Int[Tensor, " batch"]:
        """State after each row."""
        if not prefixes.shape[1] or self.ended == 1:
            return prefixes.new_zeros(len(prefixes))
        return self.after_each(prefixes)[:, -1]

    def beside(self, automaton: TokenAutomaton) -> tuple[TokenAutomaton, Bool[Tensor, " states"]]:
        """An automaton that follows another and this one, and its states of ended texts."""
        size = len(self.transition)
        both = (automaton.transition.unsqueeze(1) * size + self.transition).flatten(0, 1)
        values = automaton.log_value.repeat_interleave(size)
        ended = (torch.arange(len(both)) % size == self.ended).to(both.device)
        return TokenAutomaton(automaton.initial * size, both, values), ended

    def filled(self, tokens: Int[Tensor, "batch steps"]) -> Int[Tensor, "batch steps"]:
        """Rows with ``fill`` after their ends."""
        return torch.where(self.after(tokens), self.fill, tokens)


def ending_of(lm: LanguageModel, stop: Stop) -> Ending:
    """Ends at any of the model's EOS tokens, and where ``stop`` says."""
    ends = torch.zeros(lm.vocab_size, dtype=torch.bool)
    ends[list(eos_ids(lm))] = True
    if callable(stop):
        every = token_texts(lm)  # type: ignore[arg-type]
        ends |= torch.tensor([bool(stop(text)) for text in every])
        stop = None
    texts = [stop] if isinstance(stop, str) else list(stop or ())
    if not all(isinstance(text, str) and text for text in texts):
        raise ValueError(
            "stop must be a non-empty text, a list of these, or a function of a token's text; got "
            f"{quoted(stop)}."
        )
    transition = torch.zeros(1, lm.vocab_size, dtype=torch.int64)
    transition = _search(texts, lm) if texts else transition
    transition[:, ends] = len(transition)
    ended = torch.full_like(transition[:1], len(transition))
    return Ending(lm.eos_token_id, torch.cat([transition, ended]).to(lm.device))


def _search(texts: Sequence[str], lm: LanguageModel) -> Int[Tensor, "states vocab"]:
    """Transitions of a search for any of some texts, byte by byte and so across tokens."""
    patterns = [tuple(text.encode()) for text in texts]
    table, found = pattern_automaton(patterns, 256, device=torch.device("cpu"))
    going = (~found).nonzero().squeeze(1)
    number = torch.full((len(table),), len(going)).index_put((going,), torch.arange(len(going)))
    moves = number[table[going]].tolist()
    ended = len(going)
    rows = torch.empty(ended, lm.vocab_size, dtype=torch.int64)
    for token, text in enumerate(token_texts(lm)):  # type: ignore[arg-type]
        piece = token_bytes(text)
        for state in range(ended):
            now = state
            for byte in piece:
                now = moves[now][byte]
                if now == ended:
                    break
            rows[state, token] = now
    return rows


def token_bytes(text: str) -> bytes:
    """A token's text as UTF-8; bytes that are no text by themselves are written ``<0xE2>``."""
    if re.fullmatch(r"(<0x[0-9A-F]{2}>)+", text):
        return bytes.fromhex(text.replace("<0x", "").replace(">", ""))
    return text.encode()


@lru_cache(maxsize=4)
def token_texts(lm: LanguageModel) -> tuple[str, ...]:
    """Every token as a text goes on with it, a separator included; "" for special ones."""
    table = table_of(lm)
    if table is not None:
        special = eos_ids(lm)
        return tuple(
            "" if token in special else table.separator + symbol
            for token, symbol in enumerate(table.symbols)
        )
    # Read after a plain word, where a decoder adds its spaces and leaves special tokens out.
    texts = [lm.token_text(token) for token in range(lm.vocab_size)]
    first = next((token for token, text in enumerate(texts) if text.strip().isalpha()), 0)
    every = torch.arange(lm.vocab_size)
    shown = lm.decode(torch.stack([torch.full_like(every, first), every], dim=1))
    word = lm.decode(torch.tensor([[first]]))[0]
    return tuple(
        after[len(word) :] if after.startswith(word) and "\ufffd" not in after else text
        for after, text in zip(shown, texts, strict=True)
    )
