"""Oracles: log Z, marginals, samples and the optimal twist, computed and not estimated."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tsmc_widgets import numerics
from tsmc_widgets.errors import BudgetError, check_integer
from tsmc_widgets.models.tabular import TabularCarry, TabularLM
from tsmc_widgets.models.tempered import Tempered, table_of
from tsmc_widgets.smc.api import run_smc
from tsmc_widgets.smc.noise import AddressedNoise
from tsmc_widgets.smc.proposals import TwistInduced
from tsmc_widgets.smc.resampling import Never, invert_cdf
from tsmc_widgets.smc.trace import SMCTrace
from tsmc_widgets.targets.automata import TokenAutomaton
from tsmc_widgets.targets.target import Target, check_target
from tsmc_widgets.twists.protocol import SteppedTwist, Twist, TwistStep


class OptimalTwist(SteppedTwist):
    """psi* of a target of ``num_steps`` steps, computed on the CPU."""

    num_steps: int

    def _step(self, carry: TabularCarry) -> TwistStep:
        if carry.length >= self.num_steps:
            raise ValueError(
                f"this optimal twist belongs to a target of {self.num_steps} steps and step "
                f"{carry.length + 1} is asked for: use the oracle of the target that is run."
            )
        return super()._step(carry)


class TreeTwist(OptimalTwist):
    """The optimal twist by enumeration of every prefix."""

    def __init__(
        self,
        children: Sequence[Int[Tensor, "_ vocab"]],
        log_psi: Sequence[Float[Tensor, " _"]],
        *,
        prompt_length: int,
    ) -> None:
        """Follow the tree of p0's support, level by level.

        Args:
            children: ``children[t][i, v]`` is the place at level t + 1 of prefix i followed by v,
                or -1 where p0 rules it out.
            log_psi: ``log_psi[t][i]`` is log psi*_t of prefix i, in nats; level 0 is log Z.
            prompt_length: tokens of the prompt.
        """
        self._children, self._log_psi = children, log_psi
        self.prompt_length = prompt_length
        self.num_steps = len(children)

    def _start(self, tokens: Int[Tensor, "batch length"]) -> TabularCarry:
        return TabularCarry(torch.zeros(len(tokens), dtype=torch.int64), 0)

    def _read(self, tokens: Int[Tensor, " batch"], carry: TabularCarry) -> TabularCarry:
        children = self._children[carry.length]
        index = torch.where(carry.index < 0, -1, children[carry.index.clamp(min=0), tokens.cpu()])
        return TabularCarry(index, carry.length + 1)

    def _value(self, carry: TabularCarry) -> Float[Tensor, "batch vocab"]:
        places = self._children[carry.length][carry.index.clamp(min=0)]
        log_psi = self._log_psi[carry.length + 1][places.clamp(min=0)]
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

    def _start(self, tokens: Int[Tensor, "batch length"]) -> TabularCarry:
        return TabularCarry(
            torch.full((len(tokens),), self.automaton.initial, dtype=torch.int64), 0
        )

    def _read(self, tokens: Int[Tensor, " batch"], carry: TabularCarry) -> TabularCarry:
        return TabularCarry(self.automaton.transition[carry.index, tokens.cpu()], carry.length + 1)

    def _value(self, carry: TabularCarry) -> Float[Tensor, "batch vocab"]:
        states = self.automaton.transition[carry.index]
        vocab = torch.arange(states.shape[1]).expand_as(states)
        return self.log_backward[carry.length][vocab, states]


CHAIN_CELLS = 2**26
"""Of the largest table of forward-backward: states times V times the larger of V and T."""


class Oracle:
    """What is known exactly of a target.

    Attributes:
        target: the target.
        log_z: log Z, exact.
    """

    target: Target
    log_z: float

    def optimal_twist(self) -> Twist:
        """psi*_t: with the twist-induced proposal every run gives log Z exactly."""
        raise NotImplementedError

    def marginals(self) -> Float[Tensor, "steps vocab"]:
        """Probability under sigma of each token at each step."""
        raise NotImplementedError

    def sample(self, num_samples: int, seed: int = 0) -> Int[Tensor, "samples steps"]:
        """Independent exact samples of sigma, without the prompt."""
        return self.trace(num_samples, seed=seed).paths("tokens")[0]

    def trace(self, num_particles: int, *, seed: int = 0) -> SMCTrace:
        """Exact samples in the columns of a run, so that every figure of runs can draw them.

        Under the optimal twist all weights are equal, so the particles are exact samples.
        """
        self._require_mass()
        return run_smc(
            self.target,
            num_particles=num_particles,
            proposal=TwistInduced(),
            twist=self.optimal_twist(),
            rule=Never(),
            seed=seed,
        )

    def _require_mass(self) -> None:
        if self.log_z == -math.inf:
            raise ValueError(
                "Z is zero: the base model gives no mass to any text that the potential allows, so "
                "sigma does not exist. Soften the potential or change prompt or number of steps."
            )


def exact(target: Target, *, max_sequences: int = 2**20) -> Oracle:
    """Compute a target exactly, by automaton where one is known and by enumeration otherwise.

    Args:
        target: any target; a Markov ``TabularLM`` with a potential that a finite automaton computes
            (tokens, words, regular expressions, counts and their products) is exact at any T.
        max_sequences: enumeration's budget, in sequences of T tokens.

    Raises:
        BudgetError: the target has more sequences than that and no automaton, or too large a one.
    """
    check_target(target)
    check_integer("max_sequences", max_sequences)
    table = table_of(target.lm)
    markov = table is not None and table.is_markov
    if markov:
        automaton = target.potential.automaton()
        widest = max(target.lm.vocab_size, target.num_steps)
        if automaton is not None and automaton.transition.numel() * widest <= CHAIN_CELLS:
            return ChainOracle(target, automaton)
    try:
        return EnumeratedOracle(target, max_sequences=max_sequences)
    except BudgetError as error:
        if not markov:
            raise
        raise BudgetError(
            f"{error} This one, {target.potential.describe()}, has no automaton, or one of more "
            "states than fit."
        ) from error


_Level = tuple[Int[Tensor, "prefixes vocab"], Float[Tensor, "prefixes vocab"]]
"""Of each prefix of one length and each next token: its row at the next level (-1), log p0."""


class EnumeratedOracle(Oracle):
    """Every sequence that p0 can produce, with its probability.

    Attributes:
        tokens: the sequences.
        log_p: log p0 of each, times the target's power, in nats.
        log_phi: log phi of each, in nats.
        log_z: log Z, exact.
    """

    @torch.no_grad()
    def __init__(self, target: Target, *, max_sequences: int = 2**20) -> None:
        """Enumerate a target; raises BudgetError where it has too many sequences."""
        self.target = target
        levels, self.tokens, self.log_p = _enumerate(target, max_sequences)
        self.log_phi = target.log_phi(self.tokens).double().cpu()
        log_psi = [self.log_phi]
        for children, log_probs in reversed(levels):
            below = torch.where(children < 0, -math.inf, log_psi[0][children.clamp(min=0)])
            log_psi.insert(0, numerics.logsumexp(_plus(log_probs, below)))
        self.log_z = float(log_psi[0][0])
        self._tree = [children for children, _ in levels], log_psi

    def __repr__(self) -> str:
        """Class, number of sequences and log Z."""
        return f"EnumeratedOracle({len(self.tokens)} sequences, log_z={self.log_z:.6g})"

    @property
    def log_sigma(self) -> Float[Tensor, " sequences"]:
        """Log sigma of each sequence, normalised, in nats."""
        self._require_mass()
        return _plus(self.log_p, self.log_phi) - self.log_z

    def optimal_twist(self) -> TreeTwist:
        """psi*_t of every prefix."""
        return TreeTwist(*self._tree, prompt_length=len(self.target.prompt_tokens))

    def marginals(self) -> Float[Tensor, "steps vocab"]:
        """Probability under sigma of each token at each step."""
        sigma = self.log_sigma.exp()
        columns = [
            torch.zeros(self.target.lm.vocab_size, dtype=torch.float64).index_add(
                0, self.tokens[:, t].cpu(), sigma
            )
            for t in range(self.target.num_steps)
        ]
        return torch.stack(columns)

    def sample(self, num_samples: int, seed: int = 0) -> Int[Tensor, "samples steps"]:
        """Independent exact samples of sigma."""
        check_integer("num_samples", num_samples)
        uniforms = AddressedNoise(seed, 1).uniform(step=0, use="token", num_particles=num_samples)
        drawn = invert_cdf(self.log_sigma.exp().unsqueeze(0), uniforms).squeeze(0)
        return self.tokens[drawn.to(self.tokens.device)]


class ChainOracle(Oracle):
    """Forward-backward over (last token, automaton state): exact at any T.

    Attributes:
        log_z: log Z, exact.
        log_backward: entry [t - 1, v, a] is log psi*_t where token t is v and the state after it a.
    """

    def __init__(self, target: Target, automaton: TokenAutomaton) -> None:
        """Run the backward recursion of a Markov ``TabularLM``."""
        self.target = target
        self.automaton = automaton
        lm = table_of(target.lm)
        first = target.measured(lm.prefill(target.prompt_tokens.unsqueeze(0)))
        self._log_first = first.log_probs[0].double()
        # (last token, automaton state or any of them, next token)
        self._log_moves = target.power * lm.transition.log().unsqueeze(1)
        if target.ending is not None:
            automaton, ended = target.ending.beside(automaton)
            self.automaton = automaton
            fill = torch.full((lm.vocab_size,), -math.inf, dtype=torch.float64)
            fill[target.ending.fill] = 0.0
            self._log_moves = torch.where(ended.unsqueeze(1), fill, self._log_moves)
        vocab = torch.arange(lm.vocab_size)
        backward = [automaton.log_value.double().expand(lm.vocab_size, -1)]
        for _ in range(target.num_steps - 1):
            # (states, vocab): log psi* of the next token, from each state
            after = backward[0][vocab, automaton.transition]
            backward.insert(
                0,
                numerics.logsumexp(_plus(self._log_moves, after.unsqueeze(0))),
            )
        self.log_backward = torch.stack(backward)
        log_psi = self.log_backward[0][vocab, automaton.transition[automaton.initial]]
        self.log_z = float(numerics.logsumexp(_plus(self._log_first, log_psi)))

    def __repr__(self) -> str:
        """Class, number of automaton states and log Z."""
        states = self.automaton.transition.shape[0]
        return f"ChainOracle({states} automaton states, log_z={self.log_z:.6g})"

    def optimal_twist(self) -> ChainTwist:
        """psi*_t at every prefix."""
        length = self.target.prompt_tokens.shape[0]
        return ChainTwist(self.automaton, self.log_backward, prompt_length=length)

    def marginals(self) -> Float[Tensor, "steps vocab"]:
        """Probability under sigma of each token at each step.

        sigma is itself a chain over (token, state), with transitions p0 psi*_{t+1} / psi*_t, so
        probabilities are pushed forward and nothing can underflow.
        """
        self._require_mass()
        vocab, transition = torch.arange(self.target.lm.vocab_size), self.automaton.transition
        start = transition[self.automaton.initial]
        chance = numerics.normalise(_plus(self._log_first, self.log_backward[0][vocab, start]))
        joint = torch.zeros_like(self.log_backward[0])
        joint[vocab, start] = chance
        columns = [joint.sum(1)]
        for t in range(1, self.target.num_steps):
            after = self.log_backward[t][vocab, transition]
            moves = numerics.normalise(_plus(self._log_moves, after.unsqueeze(0)))
            flow = torch.einsum("ua,uav->av", joint, moves)
            joint = torch.zeros_like(joint).index_put(
                (vocab.expand_as(transition), transition), flow, accumulate=True
            )
            columns.append(joint.sum(1))
        return torch.stack(columns)


def _plus(a: Tensor, b: Tensor) -> Tensor:
    """Sum of logs in which a zero stays a zero."""
    return torch.where((a == -math.inf) | (b == -math.inf), -math.inf, a + b)


def _check_budget(sequences: int, most: int, step: int, target: Target) -> None:
    if sequences > most:
        raise BudgetError(
            f"enumeration would pass {most} sequences at step {step} of {target.num_steps} "
            f"(vocabulary {target.lm.vocab_size}): use a smaller vocabulary or T, raise "
            "max_sequences, or use a Markov TabularLM with a potential of tokens, words or a "
            "regular expression, which is exact at any T."
        )


def _enumerate(
    target: Target, max_sequences: int
) -> tuple[list[_Level], Int[Tensor, "sequences steps"], Float[Tensor, " sequences"]]:
    lm, ending = target.lm, target.ending
    device = target.prompt_tokens.device
    tokens = torch.zeros(1, 0, dtype=torch.int64, device=device)
    log_p = torch.zeros(1, dtype=torch.float64)
    step = lm.prefill(target.prompt_tokens.unsqueeze(0))
    live = torch.ones(1, dtype=torch.bool)
    levels = []
    for t in range(target.num_steps):
        count, live_rows = tokens.shape[0], live.nonzero().squeeze(1)
        log_probs = torch.full((count, lm.vocab_size), -math.inf, dtype=torch.float64)
        if ending is not None:
            log_probs[:, ending.fill] = 0.0
        log_probs[live_rows] = target.power * step.log_probs.double().cpu()
        possible = log_probs > -math.inf
        grown = int(possible.sum())
        _check_budget(grown, max_sequences, t + 1, target)
        children = torch.full((count, lm.vocab_size), -1, dtype=torch.int64)
        parents, chosen = possible.nonzero(as_tuple=True)
        children[parents, chosen] = torch.arange(grown)
        levels.append((children, log_probs))
        tokens = torch.cat([tokens[parents.to(device)], chosen.unsqueeze(1).to(device)], dim=1)
        log_p = log_p[parents] + log_probs[parents, chosen]
        place = torch.full((count,), -1, dtype=torch.int64)
        place[live_rows] = torch.arange(live_rows.shape[0])
        live = live[parents]
        if ending is not None:
            live = live & ~ending.ends(tokens).cpu()
        if t + 1 < target.num_steps and bool(live.any()):
            # Tables and cuts have tokens of probability zero: other models grow by all of V.
            if not isinstance(lm, TabularLM | Tempered):
                _check_budget(int(live.sum()) * lm.vocab_size, max_sequences, t + 2, target)
            rows = place[parents[live]].to(device)
            step = lm.advance(chosen[live].to(device), step.carry.select(rows))
    return levels, tokens, log_p
