"""A twist written down as tables: for tiny vocabularies, teaching and tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tsmc_widgets.models.protocol import LMStep
from tsmc_widgets.twists.protocol import TwistStep


@dataclass(frozen=True, slots=True)
class PrefixCarry:
    """How many tokens each row has generated, and an index that tells its prefix from others."""

    index: Int[Tensor, " batch"]
    depth: int

    def select(self, rows: Int[Tensor, " batch"]) -> PrefixCarry:
        """Carry of the given rows."""
        return PrefixCarry(self.index[rows], self.depth)


class TableTwist:
    """Log psi_t of every prefix: ``log_tables[t - 1]`` has t axes of size V."""

    def __init__(
        self, log_tables: Sequence[Float[Tensor, " ..."]], *, prompt_length: int = 0
    ) -> None:
        """Take the tables.

        Args:
            log_tables: log psi_1, log psi_2, ... in nats; -inf is allowed, NaN and +inf are not.
            prompt_length: tokens of the prompt, which the tables leave out.
        """
        for t, table in enumerate(log_tables, start=1):
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
        self._rows = [table.double().reshape(-1, self.vocab_size) for table in log_tables]

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
        """Normal log psi with standard deviation ``scale``: as bad as a twist gets."""
        generator = torch.Generator().manual_seed(seed)
        tables = [
            scale * torch.randn(*(vocab_size,) * t, generator=generator, dtype=torch.float64)
            for t in range(1, num_steps + 1)
        ]
        return cls(tables, prompt_length=prompt_length)

    def prefill(self, tokens: Int[Tensor, "batch length"], lm_step: LMStep) -> TwistStep:
        """Read the prompts and whatever has been generated after them."""
        carry = PrefixCarry(torch.zeros(tokens.shape[0], dtype=torch.int64), 0)
        for t in range(self.prompt_length, tokens.shape[1]):
            carry = self._read(tokens[:, t], carry)
        return self._step(carry)

    def advance(
        self, tokens: Int[Tensor, " batch"], carry: PrefixCarry, lm_step: LMStep
    ) -> TwistStep:
        """Read one more token for each row."""
        return self._step(self._read(tokens, carry))

    def log_psi(
        self, tokens: Int[Tensor, "batch length"], prompt_length: int
    ) -> Float[Tensor, "batch steps"]:
        """Log psi_t along the tokens after the prompt."""
        generated = tokens[:, prompt_length:]
        carry = PrefixCarry(torch.zeros(tokens.shape[0], dtype=torch.int64), 0)
        steps = []
        for t in range(generated.shape[1]):
            chosen = generated[:, t : t + 1]
            steps.append(self._step(carry).log_psi_next.gather(1, chosen))
            carry = self._read(chosen.squeeze(1), carry)
        return torch.cat(steps, dim=1)

    def _read(self, tokens: Int[Tensor, " batch"], carry: PrefixCarry) -> PrefixCarry:
        return PrefixCarry(carry.index * self.vocab_size + tokens, carry.depth + 1)

    def _step(self, carry: PrefixCarry) -> TwistStep:
        if carry.depth >= len(self._rows):
            raise ValueError(
                f"this twist has tables for {len(self._rows)} steps and step {carry.depth + 1} is "
                "asked for: give a table for every step of the target."
            )
        return TwistStep(self._rows[carry.depth][carry.index], carry)
