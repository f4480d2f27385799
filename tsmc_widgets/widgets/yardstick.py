"""What learned twists are held against: exact samples, log Z and the optimal log psi."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int
from torch import Tensor

from tsmc_widgets.learning.positives import GrowingPool, Positives, WeightedPositives
from tsmc_widgets.models.protocol import TeacherForced
from tsmc_widgets.smc.exact import Oracle, exact
from tsmc_widgets.targets.exact_draws import ExactDraws
from tsmc_widgets.targets.sampling import base_samples
from tsmc_widgets.targets.target import Target

HELD_OUT = 40
POOL = 500
MOST_DRAWS = 5000
ROLLOUTS = 32
SHARES = (0.2, 0.4, 0.6, 0.8)
PREFIXES = 6


def enough(draws: ExactDraws) -> bool:
    """Whether training can begin: the pool is full, or filling it would take too long."""
    if len(draws) < HELD_OUT:
        return False
    expected = draws.proposed * (HELD_OUT + POOL) / len(draws)
    return len(draws) >= HELD_OUT + POOL or expected > MOST_DRAWS


@dataclass
class Prefixes:
    """Prefixes at which learned and optimal log psi are compared.

    Attributes:
        tokens: texts that the prefixes are beginnings of.
        row: which text each prefix begins.
        step: its length t.
        log_psi: optimal log psi_t, exact or estimated, in nats.
        error: standard error of each; zeros where exact.
        note: what the numbers are, in words.
    """

    tokens: Int[Tensor, "texts steps"]
    row: Int[Tensor, " prefixes"]
    step: Int[Tensor, " prefixes"]
    log_psi: Float64[Tensor, " prefixes"]
    error: Float64[Tensor, " prefixes"]
    note: str
    _base: TeacherForced | None = None

    @property
    def size(self) -> int:
        """How many prefixes."""
        return len(self.row)

    @torch.no_grad()
    def learned(self, target: Target, twist: Any) -> Float64[Tensor, " prefixes"]:
        """A twist's log psi at each prefix."""
        length = len(target.prompt_tokens)
        prompt = target.prompt_tokens.expand(len(self.tokens), -1)
        tokens = torch.cat([prompt, self.tokens], dim=1)
        if self._base is None:
            self._base = target.lm.teacher_force(tokens, length)
        log_psi = twist.log_psi(tokens, length, self._base).double().cpu()
        return log_psi[self.row, self.step - 1]

    def compare(self, target: Target, twist: Any) -> dict[str, Any]:
        """Both log psi with the mean of each t taken off, their correlation and its interval."""
        learned = _centre(self.learned(target, twist), self.step).numpy()
        optimal = _centre(self.log_psi, self.step).numpy()
        correlation = math.nan
        if learned.std() > 1e-9 and optimal.std() > 1e-9:
            correlation = float(np.corrcoef(learned, optimal)[0, 1])
        return {
            "learned": learned,
            "optimal": optimal,
            "error": self.error.numpy(),
            "step": self.step.numpy(),
            "correlation": correlation,
            "interval": _fisher(correlation, self.size),
        }


def _centre(values: Tensor, step: Tensor) -> Tensor:
    result = values.clone()
    for t in step.unique():
        result[step == t] -= values[step == t].mean()
    return result


def _fisher(correlation: float, count: int) -> tuple[float, float]:
    """95 % interval of a correlation over ``count`` independent pairs."""
    if not abs(correlation) < 1 or count < 5:
        return (math.nan, math.nan)
    reach = 1.96 / math.sqrt(count - 3)
    middle = math.atanh(correlation)
    return math.tanh(middle - reach), math.tanh(middle + reach)


def all_prefixes(target: Target) -> tuple[Oracle, Prefixes]:
    """The oracle of a tiny target, and every prefix with its exact log psi*."""
    oracle = exact(target)
    prompt = target.prompt_tokens.expand(len(oracle.tokens), -1)
    tokens = torch.cat([prompt, oracle.tokens], dim=1)
    optimal = oracle.optimal_twist().log_psi(tokens, prompt.shape[1])
    rows, steps = [], []
    for t in range(1, target.num_steps):
        _, place = torch.unique(oracle.tokens[:, :t], dim=0, return_inverse=True)
        first = torch.stack([(place == i).nonzero()[0, 0] for i in range(int(place.max()) + 1)])
        rows.append(first)
        steps.append(torch.full_like(first, t))
    row, step = torch.cat(rows), torch.cat(steps)
    log_psi = optimal[row, step - 1].double()
    note = f"exact, all {len(row)} prefixes"
    zeros = torch.zeros_like(log_psi)
    return oracle, Prefixes(oracle.tokens, row, step, log_psi, zeros, note)


def pick_prefixes(target: Target, samples: Int[Tensor, "n steps"], *, seed: int) -> Prefixes:
    """Prefixes of four lengths, half from p0 and half from sigma, still without log psi*."""
    generator = torch.Generator(target.lm.device).manual_seed(seed * 10_007 + 9_001)
    lengths = sorted({max(1, round(share * target.num_steps)) for share in SHARES})
    count, half = len(lengths) * PREFIXES, len(lengths) * PREFIXES // 2
    drawn = base_samples(
        target.lm, target.prompt_tokens, target.num_steps, count - half, generator=generator
    )
    tokens = torch.cat([drawn, samples[:half]])
    row = torch.arange(len(tokens))
    step = torch.tensor(lengths).repeat(len(tokens) // len(lengths) + 1)[: len(tokens)]
    blank = torch.full((len(tokens),), math.nan, dtype=torch.float64)
    note = f"{len(tokens)} prefixes, half from p₀, half from σ; ψ* from {ROLLOUTS} rollouts each"
    return Prefixes(tokens, row, step, blank, blank.clone(), note)


def roll_out(target: Target, prefixes: Prefixes, place: int, *, seed: int) -> None:
    """Estimate log psi* of one prefix by the mean of phi over texts that p0 ends it with."""
    generator = torch.Generator(target.lm.device).manual_seed(seed * 10_007 + 9_100 + place)
    row, step = int(prefixes.row[place]), int(prefixes.step[place])
    begun = prefixes.tokens[row, :step]
    context = torch.cat([target.prompt_tokens, begun])
    ends = base_samples(target.lm, context, target.num_steps - step, ROLLOUTS, generator=generator)
    phi = target.log_phi(torch.cat([begun.expand(ROLLOUTS, -1), ends], dim=1)).exp()
    mean = float(phi.mean())
    prefixes.log_psi[place] = math.log(max(mean, 1e-12))
    prefixes.error[place] = float(phi.std()) / math.sqrt(ROLLOUTS) / max(mean, 1e-12)


def choose_source(draws: ExactDraws, seed: int) -> Positives:
    """The samples that are not held out, or the weighted batch where they are few."""
    few = len(draws) - HELD_OUT < POOL // 2
    return WeightedPositives() if few else GrowingPool(draws, seed, held_out=HELD_OUT)
