"""Twists as tables over all prefixes: for tiny vocabularies, teaching and tests."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tsmc_widgets.errors import BudgetError, check_integer, check_kind, quoted
from tsmc_widgets.models.protocol import LanguageModel, TeacherForced
from tsmc_widgets.models.tabular import TabularCarry
from tsmc_widgets.twists.protocol import OnePassTwist, SteppedTwist
from tsmc_widgets.twists.trainable import TrainableModule

_MOST_ENTRIES = 2**24


class _PrefixTables(SteppedTwist):
    """Log psi of every prefix; ``log_tables[t - 1]`` has shape (V**(t-1), V)."""

    vocab_size: int
    log_tables: Sequence[Tensor] | nn.ParameterList

    def _start(self, tokens: Int[Tensor, "batch length"]) -> TabularCarry:
        return TabularCarry(tokens.new_zeros(tokens.shape[0]), 0)

    def _read(self, tokens: Int[Tensor, " batch"], carry: TabularCarry) -> TabularCarry:
        return TabularCarry(carry.index * self.vocab_size + tokens, carry.length + 1)

    def _value(self, carry: TabularCarry) -> Float[Tensor, "batch vocab"]:
        if carry.length >= len(self.log_tables):
            raise ValueError(
                f"this twist has tables for {len(self.log_tables)} steps and step "
                f"{carry.length + 1} is asked for: make it for the num_steps of the target."
            )
        table = self.log_tables[carry.length]
        return table[carry.index.to(table.device)]


class TableTwist(_PrefixTables):
    """Log psi_t of every prefix: ``log_tables[t - 1]`` has t axes of size V."""

    def __init__(
        self, log_tables: Sequence[Float[Tensor, " ..."]], *, prompt_length: int = 0
    ) -> None:
        """Take the tables.

        Args:
            log_tables: log psi_1, log psi_2, ... in nats; -inf is allowed, NaN and +inf are not.
            prompt_length: tokens of the prompt, which the tables leave out.
        """
        check_integer("prompt_length", prompt_length, at_least=0)
        if not isinstance(log_tables, list | tuple):
            raise TypeError(f"log_tables must be a list of tensors; got {quoted(log_tables)}.")
        for t, table in enumerate(log_tables, start=1):
            check_kind(f"log_tables[{t - 1}]", table, Tensor, "a tensor of log psi, in nats")
            if table.ndim != t or len(set(table.shape)) != 1:
                raise ValueError(
                    f"log_tables[{t - 1}] must have {t} axes of one size V; got shape "
                    f"{tuple(table.shape)}."
                )
            if bool((torch.isnan(table) | (table == torch.inf)).any()):
                raise ValueError(
                    f"log_tables[{t - 1}] holds NaN or +inf: log psi must be below +inf."
                )
        if not log_tables:
            raise ValueError("log_tables must hold at least log psi_1; got none.")
        self.vocab_size = log_tables[0].shape[0]
        self.prompt_length = prompt_length
        self.log_tables = [table.double().reshape(-1, self.vocab_size) for table in log_tables]

    @classmethod
    def random(
        cls,
        vocab_size: int,
        num_steps: int,
        *,
        seed: int,
        scale: float = 1.0,
        prompt_length: int = 0,
    ) -> TableTwist:
        """Normal log psi with standard deviation ``scale``, unrelated to any phi."""
        generator = torch.Generator().manual_seed(seed)
        tables = [
            scale * torch.randn(*(vocab_size,) * t, generator=generator, dtype=torch.float64)
            for t in range(1, num_steps + 1)
        ]
        return cls(tables, prompt_length=prompt_length)


class TableHeadTwist(_PrefixTables, TrainableModule):
    """A table that learns: one parameter for each prefix, V**t at step t; starts at psi = 1.

    It can represent every twist, so that it converges to a loss's optimum at every prefix.

    Args:
        lm: the base model, of a tiny vocabulary; it need not have a hidden state.
        num_steps: T.
        prompt_length: tokens of the prompt, which the tables leave out.
        link: "log", or "sigmoid" for psi <= 1.

    Attributes:
        log_tables: ``log_tables[t - 1]`` has shape (V**(t-1), V), in float64.
    """

    def __init__(
        self, lm: LanguageModel, *, num_steps: int, prompt_length: int = 0, link: str = "log"
    ) -> None:
        super().__init__(lm, link, {"num_steps": num_steps, "prompt_length": prompt_length})
        check_integer("num_steps", num_steps)
        check_integer("prompt_length", prompt_length, at_least=0)
        vocab = self.vocab_size = lm.vocab_size
        self.prompt_length = prompt_length
        if vocab ** min(num_steps, 64) > _MOST_ENTRIES:
            raise BudgetError(
                f"a table of every prefix of {num_steps} tokens out of {vocab} has "
                f"{vocab}**{num_steps} entries, more than {_MOST_ENTRIES}: use LinearHeadTwist, or "
                "fewer steps."
            )
        self.log_tables = nn.ParameterList(
            torch.zeros(vocab**t, vocab, dtype=torch.float64, device=lm.device)
            for t in range(num_steps)
        )

    # The one that refuses an observation.
    log_psi = OnePassTwist.log_psi

    def log_psi_next(
        self,
        tokens: Int[Tensor, "batch length"],
        prompt_length: int,
        base: TeacherForced | None = None,
        observed: Int[Tensor, "batch ..."] | None = None,
    ) -> Float[Tensor, "batch steps vocab"]:
        """Log psi_t(s_{<t}, .) for t = 1..T, with gradients to the entries that are read."""
        self._check_unconditional(observed)
        if prompt_length != self.prompt_length:
            raise ValueError(
                f"these tables stand after a prompt of {self.prompt_length} tokens; got "
                f"prompt_length={prompt_length}."
            )
        steps = self._walk(tokens, prompt_length)
        return torch.stack([step.log_psi_next for step in steps], dim=1)

    def _last_layer(self) -> list[Tensor]:
        return list(self.log_tables)

    def _value(self, carry: TabularCarry) -> Float[Tensor, "batch vocab"]:
        return self._linked(super()._value(carry))
