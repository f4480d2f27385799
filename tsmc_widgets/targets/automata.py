"""Finite automata over tokens: potentials that an exact oracle can carry to any T."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

STATE_LIMIT = 50_000
"""Combined automata with more states than this are not built."""


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

    def log_phi_next(self, tokens: Int[Tensor, "batch shorter"]) -> Float[Tensor, "batch vocab"]:
        """Log phi of each row with every possible last token, in nats."""
        return self.log_value[self.transition[self.run(tokens)]]


def combine(
    automata: Sequence[TokenAutomaton | None],
    log_value: Callable[[Tensor], Tensor],
) -> TokenAutomaton | None:
    """Run automata side by side; ``log_value`` maps their values (states, n) to one (states,).

    Only states that can be reached are kept. None if one of them is None, or if there are more
    than STATE_LIMIT states.
    """
    if any(automaton is None for automaton in automata):
        return None
    tables = [automaton.transition for automaton in automata]
    radices = [1]
    for table in tables:
        radices.append(radices[-1] * table.shape[0])
    if radices.pop() >= 2**62:
        return None
    numbers = {tuple(automaton.initial for automaton in automata): 0}
    queue = [next(iter(numbers))]
    rows = []
    for states in queue:  # grows while it is read
        following = [table[state] for table, state in zip(tables, states, strict=True)]
        codes = sum(f * radix for f, radix in zip(following, radices, strict=True))
        distinct, inverse = torch.unique(codes, return_inverse=True)
        targets = []
        for code in distinct.tolist():
            pair = tuple(
                code // radix % table.shape[0] for table, radix in zip(tables, radices, strict=True)
            )
            if pair not in numbers:
                numbers[pair] = len(numbers)
                queue.append(pair)
            targets.append(numbers[pair])
        if len(numbers) > STATE_LIMIT:
            return None
        rows.append(torch.tensor(targets, device=codes.device)[inverse])
    members = torch.tensor(queue, device=tables[0].device)
    values = [automaton.log_value[members[:, i]].double() for i, automaton in enumerate(automata)]
    return TokenAutomaton(0, torch.stack(rows), log_value(torch.stack(values, dim=-1)))


def pattern_automaton(
    patterns: Sequence[Sequence[int]], vocab_size: int, *, device: torch.device
) -> tuple[Int[Tensor, "states vocab"], Bool[Tensor, " states"]]:
    """Aho-Corasick: transitions from state 0, and the states where some pattern just ended."""
    children: list[dict[int, int]] = [{}]
    ends = [False]
    for pattern in patterns:
        state = 0
        for token in pattern:
            if token not in children[state]:
                children[state][token] = len(children)
                children.append({})
                ends.append(False)
            state = children[state][token]
        ends[state] = True
    transition = torch.zeros(len(children), vocab_size, dtype=torch.int64)
    failure = [0] * len(children)
    queue = [0]
    for state in queue:  # grows while it is read
        if state:
            transition[state] = transition[failure[state]]
        for token, child in children[state].items():
            failure[child] = int(transition[failure[state], token]) if state else 0
            ends[child] = ends[child] or ends[failure[child]]
            queue.append(child)
        for token, child in children[state].items():
            transition[state, token] = child
    return transition.to(device), torch.tensor(ends, device=device)
