"""Finite automata over tokens: potentials that an exact oracle can carry to any T."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, slots=True)
class TokenAutomaton:
    """A deterministic automaton that reads s_{1:T} and gives log phi from its last state.

    Attributes:
        initial: state before the first token.
        transition: next state for each state and token.
        log_value: log phi when the text ends in a state; -inf is allowed.
    """

    initial: int
    transition: Int[Tensor, "states vocab"]
    log_value: Float[Tensor, " states"]

    def run(self, tokens: Int[Tensor, "batch steps"]) -> Int[Tensor, " batch"]:
        """State after each row of tokens."""
        state = torch.full(tokens.shape[:1], self.initial, dtype=torch.int64, device=tokens.device)
        for t in range(tokens.shape[1]):
            state = self.transition[state, tokens[:, t]]
        return state

    def log_phi(self, tokens: Int[Tensor, "batch steps"]) -> Float[Tensor, " batch"]:
        """Log phi of each row, in nats."""
        return self.log_value[self.run(tokens)]
