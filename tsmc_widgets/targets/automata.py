"""Finite automata over tokens: potentials that an exact oracle can carry to any T."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

STATE_LIMIT = 2**14
CELL_LIMIT = 2**22
"""Automata of more states, or of more states times tokens, are not built: there may be 2^n."""
_PIECE = 2**20
"""Cells that are made at a time."""


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
    than are built.
    """
    if any(automaton is None for automaton in automata):
        return None
    tables = [automaton.transition.cpu().numpy() for automaton in automata]
    radices = [math.prod(len(table) for table in tables[:i]) for i in range(len(tables) + 1)]
    if radices.pop() >= 2**62:
        return None
    sizes = list(zip(tables, radices, strict=True))
    found = explore(
        sum(a.initial * radix for a, radix in zip(automata, radices, strict=True)),
        lambda codes: sum(radix * table[codes // radix % len(table)] for table, radix in sizes),
        tables[0].shape[1],
    )
    if found is None:
        return None
    device = automata[0].transition.device
    codes, transition = found
    values = [
        automaton.log_value[torch.from_numpy(codes // radix % len(table)).to(device)].double()
        for automaton, (table, radix) in zip(automata, sizes, strict=True)
    ]
    return TokenAutomaton(
        0, torch.from_numpy(transition).to(device), log_value(torch.stack(values, dim=-1))
    )


def explore(
    initial: int, follow: Callable[[np.ndarray], np.ndarray], vocab_size: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """The states that can be reached from ``initial``, each an integer, and their transitions.

    Args:
        initial: where texts begin.
        follow: next state for each of some states and each token, (states, vocab).
        vocab_size: V.

    Returns:
        The states, and the place among them of the next one, (states, vocab); None where there are
        more than are built.
    """
    most = min(STATE_LIMIT, CELL_LIMIT // vocab_size)
    places, states, rows = {initial: 0}, [initial], []
    at = 0
    while at < len(states):
        part = states[at : at + max(1, _PIECE // vocab_size)]
        at += len(part)
        following, inverse = np.unique(follow(np.array(part)), return_inverse=True)
        found = following.tolist()
        states += [state for state in found if state not in places]
        if len(states) > most:
            return None
        reached = [places.setdefault(state, len(places)) for state in found]
        rows.append(np.array(reached)[inverse].reshape(len(part), vocab_size))
    return np.array(states), np.concatenate(rows)


def occurrence_automaton(
    patterns: Sequence[Sequence[int]],
    vocab_size: int,
    *,
    wanted: bool,
    otherwise: float = -math.inf,
    device: torch.device,
) -> TokenAutomaton:
    """Log phi is 0 where some pattern occurs (or, not ``wanted``, none), else ``otherwise``."""
    transition, ends = pattern_automaton(patterns, vocab_size, device=device)
    transition[ends] = ends.nonzero()[0]
    return TokenAutomaton(0, transition, torch.where(ends == wanted, 0.0, otherwise).double())


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
