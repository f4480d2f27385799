"""Twists without training: a heuristic from the factors of phi, powers of psi and of p0."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from tsmc_widgets.errors import UnknownTokenError, check_integer, check_number
from tsmc_widgets.models.protocol import LanguageModel, LMStep, by_rows
from tsmc_widgets.targets.automata import TokenAutomaton, occurrence_automaton
from tsmc_widgets.targets.classifier import ClassProbability, RewardThreshold
from tsmc_widgets.targets.protocol import Potential
from tsmc_widgets.targets.target import Target, check_target
from tsmc_widgets.targets.text import TextPotential
from tsmc_widgets.targets.words import AvoidsWord, ContainsWord, TextIndicator
from tsmc_widgets.twists.protocol import (
    BaseTwist,
    SteppedTwist,
    Twist,
    TwistStep,
    as_twist,
    of_other,
    some_twist,
)

FLOOR = -12.0
"""Lowest log psi of one factor, from the level of its phi on: the heuristic must never rule out
what phi may still allow. The level moves with phi, so that c phi gives c psi."""


@dataclass(frozen=True, slots=True)
class LookAheadCarry:
    """The tokens that each row has generated, and the state of each automaton that reads them."""

    tokens: Int[Tensor, "batch steps"]
    states: tuple[Tensor, ...] = ()

    def select(self, rows: Int[Tensor, " batch"]) -> LookAheadCarry:
        """Carry of the given rows."""
        return LookAheadCarry(self.tokens[rows], tuple(state[rows] for state in self.states))


class LookAheadTwist(SteppedTwist):
    """Heuristic psi_t from the factors of phi: 0 only where phi must be, so Z_hat stays unbiased.

    Factors about words look ahead: the probability that the rest of the sequence satisfies them if
    its tokens were independent, with p0's mean frequencies at each step. Factors of whole sequences
    look back: phi of the sequence before the newest token. A threshold is softened to one nat for
    each unit missed; a class probability is raised to the power t / 2T, as it says little of short
    sequences. No factor falls by more than 12 nats below its largest value, of a factor of
    whole sequences that on some drawn from p0; where phi is 0 on all of these, it counts as 0 or
    as not 0.

    Args:
        target: what psi is for; its potential is taken apart into factors.
        num_texts: sequences drawn from p0, for the frequencies where a factor looks ahead, and for
            the level of one that looks back.
        seed: of these draws.
    """

    def __init__(self, target: Target, *, num_texts: int = 32, seed: int = 0) -> None:
        check_target(target)
        num_texts = check_integer("num_texts", num_texts)
        seed = check_integer("seed", seed, at_least=0)
        self.target = target
        self.prompt_length = len(target.prompt_tokens)
        texts: list[tuple[Potential, float]] = []
        self._automata: list[TokenAutomaton] = []
        self._languages: list[Potential] = []
        for factor in target.potential.factors():
            part, beta = factor.unpowered()
            automaton = factor.automaton() or _word_automaton(part, target.lm)
            if automaton is not None:
                self._automata.append(automaton)
            elif part.viable_next is not None:
                self._languages.append(part)
            elif not isinstance(part, TextIndicator):
                texts.append((part, beta))
        self._texts: list[tuple[Potential, float, float]] = []
        if texts:
            generator = torch.Generator(target.lm.device).manual_seed(seed)
            drawn = target.context.draw(num_texts, generator)
            self._texts = [(part, beta, float(part.log_phi(drawn).max())) for part, beta in texts]
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
        # All of V in float64 only where there is more to it than 0 and -inf.
        exact = bool(self._automata or self._texts)
        total = torch.zeros(rows, 1, dtype=torch.float64 if exact else torch.float32)
        for automaton, state, log_h in zip(
            self._automata, carry.states, self._log_backward, strict=True
        ):
            total = total + log_h[min(depth, len(log_h) - 1)][automaton.transition[state]].cpu()
        for part, beta, level in self._texts:
            # Class probabilities of short prefixes are overconfident: small weights at first.
            early = isinstance(part, ClassProbability)
            weight = 0.5 * depth / self.target.num_steps if early else 1.0
            total = total + weight * beta * self._so_far(part, level, carry.tokens).cpu().unsqueeze(
                1
            )
        for part in self._languages:
            total = torch.where(part.viable_next(carry.tokens).cpu(), total, -math.inf)
        return total.expand(rows, self.target.lm.vocab_size)

    def _so_far(
        self, part: Potential, level: float, tokens: Int[Tensor, "batch steps"]
    ) -> Float64[Tensor, " batch"]:
        log_phi = so_far(part, tokens)
        if isinstance(part, RewardThreshold):
            return log_phi.clamp(min=FLOOR)
        if level == -math.inf:
            log_phi, level = torch.where(log_phi == -math.inf, log_phi, 0.0), 0.0
        return log_phi.clamp(min=level + FLOOR)


def so_far(part: Potential, tokens: Int[Tensor, "batch steps"]) -> Float64[Tensor, " batch"]:
    """Log phi of sequences that go on; a threshold softened to one nat for each unit missed."""
    if not isinstance(part, RewardThreshold):
        return part.log_phi(tokens).double()
    reward = part.reward(part.texts(tokens))
    missed = torch.maximum(part.at_least - reward, reward - part.at_most).clamp(min=0.0)
    return -missed.to(tokens.device)


def text_factors(target: Target) -> list[tuple[Potential, float]]:
    """Factors of phi that judge a text as a whole, by degrees, and their powers."""
    parts = [factor.unpowered() for factor in target.potential.factors()]
    return [
        (part, beta)
        for part, beta in parts
        if isinstance(part, TextPotential) and not isinstance(part, TextIndicator)
    ]


def _word_automaton(part: Potential, lm: LanguageModel) -> TokenAutomaton | None:
    """Automaton of whether one of the words occurs, by its usual tokens; None for other factors."""
    if not isinstance(part, ContainsWord | AvoidsWord):
        return None
    patterns = list(word_tokens(part.words, lm))
    if not patterns:
        return None
    wanted = isinstance(part, ContainsWord)
    return occurrence_automaton(
        patterns, lm.vocab_size, wanted=wanted, otherwise=FLOOR, device=lm.device
    )


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
    table = automaton.log_value.cpu().double()
    level = float(table.max())
    table = table.clamp(min=(level if level > -math.inf else 0.0) + FLOOR).unsqueeze(0)
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
        self.twist = some_twist(twist)

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
        log_psi = step.log_psi_next
        return TwistStep(by_rows(self._scale, log_psi, width=log_psi.shape[1]), step.carry)

    def _scale(self, log_psi: Tensor) -> Tensor:
        return torch.where(log_psi == -math.inf, log_psi, self.beta * log_psi)


@dataclass(frozen=True, slots=True)
class RampCarry:
    """Log p0 of what each row has generated, p0's answers, and the other twist's carry.

    Attributes:
        log_p: of each row's tokens.
        log_probs: p0's answers, some rows of which are ``rows``.
        rows: each row's answer.
        steps: tokens generated.
        inner: the other twist's carry.
    """

    log_p: Float[Tensor, " batch"]
    log_probs: Float[Tensor, "answers vocab"]
    rows: Int[Tensor, " batch"]
    steps: int
    inner: Any

    def select(self, rows: Int[Tensor, " picked"]) -> RampCarry:
        """Carry of the given rows."""
        inner = None if self.inner is None else self.inner.select(rows)
        return RampCarry(self.log_p[rows], self.log_probs, self.rows[rows], self.steps, inner)


class PowerRamp(BaseTwist):
    """psi_t of another twist times p0(s_{1:t}) ** (alpha_t - alpha): p0's power grows with t.

    Intermediate targets are then p0 ** alpha_t psi_t, and the twist-induced proposal is p0 **
    alpha_t psi_t at each token, for alpha_t from ``start`` to the target's power alpha in equal
    steps. It is exactly alpha at T and wherever a sequence ends, as phi alone stands there for the
    twist, and Z_hat stays unbiased.

    Args:
        target: what psi is for; its ``power`` is alpha.
        start: alpha_0, before the first token.
        twist: psi_t; None is psi = 1.
    """

    method, proposal_only = of_other("twist", "method", "proposal_only")

    def __init__(
        self, target: Target, *, start: float | int = 1.0, twist: Twist | None = None
    ) -> None:
        check_target(target)
        check_number("start", start, "(0, inf)")
        self.target, self.start, self.twist = target, float(start), as_twist(twist)
        self.prompt_length = len(target.prompt_tokens)

    def _excess(self, t: int) -> float:
        """Alpha_t - alpha."""
        return (self.start - self.target.power) * (1 - t / self.target.num_steps)

    @torch.no_grad()
    def prefill(self, tokens: Int[Tensor, "batch length"], lm_step: LMStep) -> TwistStep:
        """Read the prompts and whatever has been generated after them."""
        inner = None if self.twist is None else self.twist.prefill(tokens, lm_step)
        steps = tokens.shape[1] - self.prompt_length
        log_p = torch.zeros(len(tokens), dtype=torch.float64, device=tokens.device)
        if steps:
            log_p = self.target.lm.log_prob(tokens, self.prompt_length).double().sum(1)
        return self._step(log_p, lm_step, steps, inner)

    @torch.no_grad()
    def advance(self, tokens: Int[Tensor, " batch"], carry: Any, lm_step: LMStep) -> TwistStep:
        """Read one more token for each row."""
        inner = None
        if self.twist is not None:
            inner = self.twist.advance(tokens, carry.inner, lm_step)
        log_p = carry.log_p + carry.log_probs[carry.rows, tokens].double()
        return self._step(log_p, lm_step, carry.steps + 1, inner)

    def log_psi(
        self, tokens: Int[Tensor, "batch length"], prompt_length: int
    ) -> Float[Tensor, "batch steps"]:
        """Log psi_t along the tokens after the prompt."""
        log_p = self.target.lm.log_prob(tokens, prompt_length).double().cumsum(1)
        excess = [self._excess(t + 1) for t in range(log_p.shape[1])]
        log_psi = _times(log_p, torch.tensor(excess, dtype=torch.float64, device=log_p.device))
        return (
            log_psi if self.twist is None else log_psi + self.twist.log_psi(tokens, prompt_length)
        )

    def _step(self, log_p: Tensor, lm_step: LMStep, steps: int, inner: Any) -> TwistStep:
        path = log_p.unsqueeze(1) + lm_step.log_probs.double()
        log_psi = _times(path, self._excess(steps + 1))
        rows, carry = torch.arange(len(log_p), device=log_p.device), None
        if inner is not None:
            log_psi, carry = log_psi + inner.log_psi_next, inner.carry
        return TwistStep(log_psi, RampCarry(log_p, lm_step.log_probs, rows, steps, carry))


def _times(log_p: Tensor, excess: Any) -> Tensor:
    """A power of p0, and 1 where p0 is 0, which no path passes."""
    return torch.where(log_p == -math.inf, 0.0, excess * log_p)
