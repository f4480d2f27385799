"""Twists without training: a heuristic from the factors of phi, and powers of another twist."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tsmc_widgets.errors import UnknownTokenError, check_integer, check_number
from tsmc_widgets.models.protocol import LanguageModel, LMStep
from tsmc_widgets.targets.automata import TokenAutomaton, pattern_automaton
from tsmc_widgets.targets.classifier import ClassProbability, RewardThreshold
from tsmc_widgets.targets.protocol import Potential, Power
from tsmc_widgets.targets.target import Target, check_target
from tsmc_widgets.targets.words import AvoidsWord, ContainsWord, TextIndicator
from tsmc_widgets.twists.protocol import (
    BaseTwist,
    SteppedTwist,
    Twist,
    TwistStep,
    as_twist,
    of_other,
)

FLOOR = -12.0
"""Lowest log psi of one factor: the heuristic must never rule out what phi may still allow."""


@dataclass(frozen=True, slots=True)
class LookAheadCarry:
    """The tokens that each row has generated, and the state of each automaton."""

    tokens: Int[Tensor, "batch steps"]
    states: tuple[Tensor, ...]

    def select(self, rows: Int[Tensor, " batch"]) -> LookAheadCarry:
        """Carry of the given rows."""
        return LookAheadCarry(self.tokens[rows], tuple(state[rows] for state in self.states))


class LookAheadTwist(SteppedTwist):
    """Heuristic psi_t from the factors of phi; it is never 0, so that Z_hat stays unbiased.

    Factors about words look ahead: the probability that the rest of the sequence satisfies them if
    its tokens were independent, with p0's mean frequencies at each step. Factors of whole sequences
    look back: phi of the sequence before the newest token. A threshold is softened to one nat for
    each unit missed; a class probability is raised to the power t / 2T, as it says little of short
    sequences.

    Args:
        target: what psi is for; its potential is taken apart into factors.
        num_texts: sequences drawn from p0 for the frequencies, where a factor looks ahead.
        seed: of these draws.
    """

    def __init__(self, target: Target, *, num_texts: int = 32, seed: int = 0) -> None:
        check_target(target)
        num_texts = check_integer("num_texts", num_texts)
        seed = check_integer("seed", seed, at_least=0)
        self.target = target
        self.prompt_length = len(target.prompt_tokens)
        self._texts: list[tuple[Potential, float]] = []
        self._automata: list[TokenAutomaton] = []
        for factor in target.potential.factors():
            part, beta = _unwrap(factor)
            automaton = factor.automaton() or _word_automaton(part, target.lm)
            if automaton is not None:
                self._automata.append(automaton)
            elif not isinstance(part, TextIndicator):
                self._texts.append((part, beta))
        self._log_backward: list[Tensor] = []
        if self._automata:
            frequencies = token_frequencies(target, num_texts, seed)
            self._log_backward = [_log_backward(one, frequencies) for one in self._automata]

    def _start(self, tokens: Int[Tensor, "batch length"]) -> LookAheadCarry:
        states = (automaton.run(tokens[:, :0]) for automaton in self._automata)
        return LookAheadCarry(tokens[:, :0], tuple(states))

    def _read(self, tokens: Int[Tensor, " batch"], carry: LookAheadCarry) -> LookAheadCarry:
        moved = zip(self._automata, carry.states, strict=True)
        states = tuple(automaton.transition[state, tokens] for automaton, state in moved)
        return LookAheadCarry(torch.cat([carry.tokens, tokens.unsqueeze(1)], dim=1), states)

    def _value(self, carry: LookAheadCarry) -> Float[Tensor, "batch vocab"]:
        rows, depth = carry.tokens.shape
        total = torch.zeros(rows, self.target.lm.vocab_size, dtype=torch.float64)
        for automaton, state, log_h in zip(
            self._automata, carry.states, self._log_backward, strict=True
        ):
            total += log_h[min(depth, len(log_h) - 1)][automaton.transition[state]].cpu()
        for part, beta in self._texts:
            # Class probabilities of short prefixes are overconfident: small weights at first.
            early = isinstance(part, ClassProbability)
            weight = 0.5 * depth / self.target.num_steps if early else 1.0
            total += weight * beta * self._so_far(part, carry.tokens).cpu().unsqueeze(1)
        return total

    def _so_far(self, part: Potential, tokens: Int[Tensor, "batch steps"]) -> Tensor:
        if isinstance(part, RewardThreshold):
            reward = part.reward(part.texts(tokens))
            missed = torch.maximum(part.at_least - reward, reward - part.at_most).clamp(min=0.0)
            return (-missed).clamp(min=FLOOR)
        return part.log_phi(tokens).double().clamp(min=FLOOR)


def _unwrap(factor: Potential) -> tuple[Potential, float]:
    beta = 1.0
    while isinstance(factor, Power):
        factor, beta = factor.part, beta * factor.beta
    return factor, beta


def _word_automaton(part: Potential, lm: LanguageModel) -> TokenAutomaton | None:
    """Automaton of whether one of the words occurs, by its usual tokens; None for other factors."""
    if not isinstance(part, ContainsWord | AvoidsWord):
        return None
    patterns = list(word_tokens(part.words, lm))
    if not patterns:
        return None
    transition, ends = pattern_automaton(patterns, lm.vocab_size, device=lm.device)
    found = ends.nonzero().squeeze(1)
    transition[found] = found.unsqueeze(1)
    wanted = ends if isinstance(part, ContainsWord) else ~ends
    return TokenAutomaton(0, transition, torch.where(wanted, 0.0, FLOOR).double())


def word_tokens(words: Iterable[str], lm: LanguageModel) -> Iterable[list[int]]:
    """Tokens of each word as it may stand in a text: after a space, at its start, capitalised."""
    seen: set[tuple[int, ...]] = set()
    for word in words:
        for form in (word, word.lower(), word.capitalize()):
            for spelled in (form, f" {form}"):
                try:
                    tokens = tuple(lm.encode(spelled))
                except UnknownTokenError:
                    continue
                if tokens and tokens not in seen:
                    seen.add(tokens)
                    yield list(tokens)


@torch.no_grad()
def token_frequencies(target: Target, num_texts: int, seed: int) -> Float[Tensor, "steps vocab"]:
    """Mean of p0's next-token probabilities at each step, over sequences drawn from it."""
    generator = torch.Generator().manual_seed(seed)
    lm = target.lm
    step: Any = lm.prefill(target.prompt_tokens.unsqueeze(0).expand(num_texts, -1))
    means = []
    for t in range(target.num_steps):
        probabilities = step.log_probs.double().exp().cpu()
        means.append(probabilities.mean(0))
        if t + 1 < target.num_steps:
            drawn = torch.multinomial(probabilities, 1, generator=generator).squeeze(1)
            step = lm.advance(drawn.to(lm.device), step.carry)
    return torch.stack(means)


def _log_backward(
    automaton: TokenAutomaton, frequencies: Float[Tensor, "steps vocab"]
) -> Float[Tensor, "steps states"]:
    """Entry [t - 1, a]: log of the mean phi of sequences that are in state a after step t."""
    steps = len(frequencies)
    table = automaton.log_value.cpu().double().clamp(min=FLOOR).unsqueeze(0)
    transition = automaton.transition.cpu()
    for t in range(steps - 1, 0, -1):
        log_frequency = frequencies[t].log()
        after = table[0][transition] + log_frequency
        table = torch.cat([torch.logsumexp(after, dim=1, keepdim=True).T, table])
    return table.to(automaton.transition.device)


class TemperedTwist(BaseTwist):
    """psi ** beta of another twist: sharpened, flattened or inverted.

    Where psi > 0 the estimate of Z stays unbiased for every beta, since phi stands for psi at T; a
    wrong beta costs variance. Prefixes with psi = 0 keep psi = 0, for negative beta too.

    Args:
        twist: the other twist.
        beta: any finite power.
    """

    method, proposal_only = of_other("twist", "method", "proposal_only")

    def __init__(self, twist: Twist, beta: float | int) -> None:
        self.beta = check_number("beta", beta, "(-inf, inf)")
        self.twist = as_twist(twist)

    def prefill(self, tokens: Int[Tensor, "batch length"], lm_step: LMStep) -> TwistStep:
        """Read the prompts."""
        return self._tempered(self.twist.prefill(tokens, lm_step))

    def advance(self, tokens: Int[Tensor, " batch"], carry: Any, lm_step: LMStep) -> TwistStep:
        """Read one more token for each row."""
        return self._tempered(self.twist.advance(tokens, carry, lm_step))

    def log_psi(
        self, tokens: Int[Tensor, "batch length"], prompt_length: int
    ) -> Float[Tensor, "batch steps"]:
        """Log psi_t along the tokens after the prompt."""
        return self._scale(self.twist.log_psi(tokens, prompt_length))

    def _tempered(self, step: TwistStep) -> TwistStep:
        return TwistStep(self._scale(step.log_psi_next), step.carry)

    def _scale(self, log_psi: Tensor) -> Tensor:
        return torch.where(log_psi == -math.inf, log_psi, self.beta * log_psi)
