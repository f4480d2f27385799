"""Prefixes at which log psi is looked at: all of a tiny target's, or some with rollouts of p0."""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int
from torch import Tensor

from tsmc_widgets import numerics
from tsmc_widgets.models.protocol import TeacherForced
from tsmc_widgets.smc.exact import EnumeratedOracle, Oracle, exact
from tsmc_widgets.targets.sampling import after_eos, base_samples
from tsmc_widgets.targets.target import Target

ROLLOUTS = 32
SHARES = (0.2, 0.4, 0.6, 0.8)
PREFIXES = 6
FLOOR = 1e-12
"""Where no rollout hits, log psi* is shown at the log of this, and its error says nothing."""


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
        enumerated: whether these are all prefixes there are, so that nothing is sampled.
    """

    tokens: Int[Tensor, "texts steps"]
    row: Int[Tensor, " prefixes"]
    step: Int[Tensor, " prefixes"]
    log_psi: Float64[Tensor, " prefixes"]
    error: Float64[Tensor, " prefixes"]
    note: str
    enumerated: bool = False
    _base: TeacherForced | None = None

    @property
    def size(self) -> int:
        """How many prefixes."""
        return len(self.row)

    @torch.no_grad()
    def learned(self, target: Target, twist: Any) -> Float64[Tensor, " prefixes"]:
        """A twist's log psi at each prefix."""
        length = len(target.prompt_tokens)
        tokens = with_prompt(target, self.tokens)
        shared = []
        if "base" in inspect.signature(twist.log_psi).parameters:
            if self._base is None:
                self._base = target.lm.teacher_force(tokens, length)
            shared = [self._base]
        log_psi = twist.log_psi(tokens, length, *shared).double().cpu()
        return log_psi[self.row.cpu(), self.step.cpu() - 1]

    def texts(self, target: Target) -> list[str]:
        """Each prefix as text, without the prompt."""
        rows = zip(self.row.tolist(), self.step.tolist(), strict=True)
        return [target.texts(self.tokens[row : row + 1, :step])[0] for row, step in rows]

    def compare(self, target: Target, twist: Any) -> dict[str, Any]:
        """Both log psi with the mean of each t taken off, their correlation and its interval."""
        learned = centre(self.learned(target, twist), self.step).numpy()
        optimal = centre(self.log_psi, self.step).numpy()
        correlation = math.nan
        if learned.std() > 1e-9 and optimal.std() > 1e-9:
            correlation = float(np.corrcoef(learned, optimal)[0, 1])
        return {
            "learned": learned,
            "optimal": optimal,
            "error": self.error.numpy(),
            "step": self.step.numpy(),
            "correlation": correlation,
            "interval": fisher(correlation, self.size),
        }


def with_prompt(target: Target, tokens: Int[Tensor, "n steps"]) -> Int[Tensor, "n length"]:
    """Generated tokens with the prompt before them."""
    return torch.cat([target.prompt_tokens.expand(len(tokens), -1), tokens], dim=1)


def centre(
    values: Float64[Tensor, " prefixes"], step: Int[Tensor, " prefixes"]
) -> Float64[Tensor, " prefixes"]:
    """Values with the mean of each t taken off: twists are only defined up to one constant a t."""
    result = values.clone()
    for t in step.unique():
        result[step == t] -= values[step == t].mean()
    return result


def fisher(correlation: float, count: int) -> tuple[float, float]:
    """95 % interval of a correlation over ``count`` independent pairs."""
    if not abs(correlation) < 1 or count < 5:
        return (math.nan, math.nan)
    reach = 1.96 / math.sqrt(count - 3)
    middle = math.atanh(correlation)
    return math.tanh(middle - reach), math.tanh(middle + reach)


def families(tokens: Int[Tensor, "texts steps"], t: int) -> Int[Tensor, " texts"]:
    """Number of each text's prefix of length t, equal prefixes having equal numbers."""
    begun = torch.nn.functional.pad(tokens[:, :t], (1, 0))
    return torch.unique(begun, dim=0, return_inverse=True)[1]


def all_prefixes(target: Target) -> tuple[Oracle, Prefixes]:
    """The oracle of a tiny target, and every prefix that goes on, with its exact log psi*."""
    oracle = exact(target)
    tokens = oracle.tokens if hasattr(oracle, "tokens") else EnumeratedOracle(target).tokens
    optimal = oracle.optimal_twist().log_psi(with_prompt(target, tokens), len(target.prompt_tokens))
    rows, steps = [], []
    for t in range(1, target.num_steps):
        family = families(tokens, t)
        count = int(family.max()) + 1
        places = torch.arange(len(tokens), device=family.device)
        first = torch.full((count,), len(tokens), device=family.device)
        first = first.scatter_reduce(0, family, places, "amin")
        if target.absorbs_eos:
            first = first[~after_eos(tokens, target.eos_token_id)[first, t]]
        rows.append(first)
        steps.append(torch.full_like(first, t))
    row, step = torch.cat(rows), torch.cat(steps)
    log_psi = optimal[row, step - 1].double()
    note = f"exact, all {len(row)} prefixes"
    return oracle, Prefixes(
        tokens, row, step, log_psi, torch.zeros_like(log_psi), note, enumerated=True
    )


def pick_prefixes(
    target: Target, samples: Int[Tensor, "n steps"], *, seed: int, rollouts: int = ROLLOUTS
) -> Prefixes:
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
    note = f"{len(tokens)} prefixes, half from p₀, half from σ; ψ* from {rollouts} rollouts each"
    return Prefixes(tokens, row, step, blank, blank.clone(), note)


def roll_out(
    target: Target, prefixes: Prefixes, place: int, *, seed: int, rollouts: int = ROLLOUTS
) -> None:
    """Estimate log psi* of one prefix by the mean of phi over texts that p0 ends it with."""
    generator = torch.Generator(target.lm.device).manual_seed(seed * 10_007 + 9_100 + place)
    row, step = int(prefixes.row[place]), int(prefixes.step[place])
    log_phi = rollout_log_phi(target, prefixes.tokens[row, :step], rollouts, generator)
    peak = float(log_phi.max())
    if peak == -math.inf:
        prefixes.log_psi[place], prefixes.error[place] = math.log(FLOOR), 0.0
        return
    ratio = (log_phi - peak).exp()
    prefixes.log_psi[place] = max(peak + math.log(float(ratio.mean())), math.log(FLOOR))
    prefixes.error[place] = float(ratio.std()) / math.sqrt(rollouts) / float(ratio.mean())


@torch.no_grad()
def rollout_log_phi(
    target: Target, begun: Int[Tensor, " t"], rollouts: int, generator: torch.Generator
) -> Float64[Tensor, " rollouts"]:
    """Log phi of texts that p0 ends a prefix with; of the text itself if it has ended."""
    whole = begun.expand(rollouts, -1)
    left = target.num_steps - len(begun)
    eos = target.context.eos_token_id
    if left and eos is not None and bool((begun == eos).any()):
        whole = torch.nn.functional.pad(whole, (0, left), value=eos)
    elif left:
        context = torch.cat([target.prompt_tokens, begun])
        ends = base_samples(
            target.lm, context, left, rollouts, generator=generator, eos_token_id=eos
        )
        whole = torch.cat([whole, ends], dim=1)
    return target.log_phi(whole).cpu()


def log_psi_path(
    target: Target, twist: Any, tokens: Int[Tensor, "n steps"]
) -> Float64[Tensor, "n steps"]:
    """Log psi_t as a sweep weighs with it: phi itself at T and from where a text has ended on."""
    with torch.no_grad():
        length = len(target.prompt_tokens)
        log_psi = twist.log_psi(with_prompt(target, tokens), length).double().cpu()
        log_phi = target.log_phi(tokens).cpu()
    over = torch.zeros(tokens.shape, dtype=torch.bool)
    if target.absorbs_eos:
        over = (tokens == target.eos_token_id).cummax(dim=1).values.cpu()
    over[:, -1] = True
    return torch.where(over, log_phi.unsqueeze(1), log_psi)


def normalised_log(log_weights: Float64[Tensor, " n"]) -> Float64[Tensor, " n"]:
    """Log weights less their log sum."""
    return log_weights - numerics.logsumexp(log_weights)
