"""The optimal twist psi*_t(s_{1:t}) = E_p0[phi(s) | s_{1:t}] where it can be computed exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tsmc_widgets.targets.automata import TokenAutomaton
from tsmc_widgets.twists.protocol import SteppedTwist, TwistStep
from tsmc_widgets.twists.table import PrefixCarry


@dataclass(frozen=True, slots=True)
class PrefixTree:
    """All prefixes of p0's support, level by level.

    Attributes:
        children: ``children[t][i, v]`` is the place at level t + 1 of prefix i followed by v, or
            -1 where p0 rules it out.
        log_psi: ``log_psi[t][i]`` is log psi*_t of prefix i, in nats; level 0 is log Z.
    """

    children: Sequence[Int[Tensor, "_ vocab"]]
    log_psi: Sequence[Float[Tensor, " _"]]


class OptimalTwist(SteppedTwist):
    """psi* of a target of ``num_steps`` steps, computed on the CPU."""

    num_steps: int

    def _step(self, carry: PrefixCarry) -> TwistStep:
        if carry.depth >= self.num_steps:
            raise ValueError(
                f"this optimal twist belongs to a target of {self.num_steps} steps and step "
                f"{carry.depth + 1} is asked for: use the oracle of the target that is run."
            )
        return super()._step(carry)


class TreeTwist(OptimalTwist):
    """The optimal twist by enumeration of every prefix."""

    def __init__(self, tree: PrefixTree, *, prompt_length: int) -> None:
        """Follow a tree of prefixes whose psi* is known."""
        self.tree = tree
        self.prompt_length = prompt_length
        self.num_steps = len(tree.children)

    def _start(self, tokens: Int[Tensor, "batch length"]) -> PrefixCarry:
        return PrefixCarry(torch.zeros(len(tokens), dtype=torch.int64), 0)

    def _read(self, tokens: Int[Tensor, " batch"], carry: PrefixCarry) -> PrefixCarry:
        children = self.tree.children[carry.depth]
        index = torch.where(carry.index < 0, -1, children[carry.index.clamp(min=0), tokens.cpu()])
        return PrefixCarry(index, carry.depth + 1)

    def _value(self, carry: PrefixCarry) -> Float[Tensor, "batch vocab"]:
        places = self.tree.children[carry.depth][carry.index.clamp(min=0)]
        log_psi = self.tree.log_psi[carry.depth + 1][places.clamp(min=0)]
        return torch.where((places < 0) | (carry.index < 0).unsqueeze(1), -math.inf, log_psi)


class ChainTwist(OptimalTwist):
    """The optimal twist of a Markov chain whose potential a finite automaton computes."""

    def __init__(
        self,
        automaton: TokenAutomaton,
        log_backward: Float[Tensor, "steps vocab states"],
        *,
        prompt_length: int,
    ) -> None:
        """Follow the automaton.

        Args:
            automaton: gives the state after each token.
            log_backward: entry [t - 1, v, a] is log psi*_t where token t is v and the state a.
            prompt_length: tokens of the prompt.
        """
        self.automaton = automaton
        self.log_backward = log_backward
        self.prompt_length = prompt_length
        self.num_steps = log_backward.shape[0]

    def _start(self, tokens: Int[Tensor, "batch length"]) -> PrefixCarry:
        return PrefixCarry(torch.full((len(tokens),), self.automaton.initial, dtype=torch.int64), 0)

    def _read(self, tokens: Int[Tensor, " batch"], carry: PrefixCarry) -> PrefixCarry:
        return PrefixCarry(self.automaton.transition[carry.index, tokens.cpu()], carry.depth + 1)

    def _value(self, carry: PrefixCarry) -> Float[Tensor, "batch vocab"]:
        states = self.automaton.transition[carry.index]
        vocab = torch.arange(states.shape[1]).expand_as(states)
        return self.log_backward[carry.depth][vocab, states]
