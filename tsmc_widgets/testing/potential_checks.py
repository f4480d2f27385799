"""Contract of a potential."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from tsmc_widgets.models.protocol import LanguageModel
from tsmc_widgets.targets.checked import as_numbers
from tsmc_widgets.targets.protocol import Potential, as_potential
from tsmc_widgets.targets.sampling import base_samples
from tsmc_widgets.targets.target import Prompt, Target
from tsmc_widgets.testing.language_model_checks import require, require_line

MOST_CELLS = 2**12


def check_potential(
    potential: Any,
    lm: LanguageModel,
    *,
    prompt: Prompt,
    num_steps: int = 4,
    eos: str = "ignore",
    num_rows: int = 32,
    seed: int = 0,
    tolerance: float = 1e-9,
) -> None:
    """Raise AssertionError unless a potential keeps the contract on random texts of a model.

    Args:
        potential: any object with ``log_phi(tokens)``, not waiting for an observation.
        lm: the model that it joins.
        prompt: as for Target.
        num_steps: T.
        eos: as for Target.
        num_rows: texts to try, half drawn from p0 and half uniformly.
        seed: of the texts.
        tolerance: allowed difference in nats between two ways to one number; raise it to about
            1e-4 where a float32 model computes them.

    Raises:
        AssertionError: says which part of the contract is broken, and on what.
        PotentialError: the potential raised, or gave NaN, +inf or a wrong shape.
    """
    target = Target(lm, potential, prompt=prompt, num_steps=num_steps, eos=eos)
    generator = torch.Generator(lm.device).manual_seed(seed)
    case = _Case(target, _texts(target, num_rows, generator), tolerance)
    _check_words(target.potential)
    _check_repeatable(case, generator)
    _check_bound(case)
    _check_next(case)
    _check_automaton(case)
    _check_algebra(case, potential)


class _Case:
    """A target, the texts that it is tried on, and log phi of each."""

    def __init__(self, target: Target, tokens: Tensor, tolerance: float) -> None:
        self.target, self.phi = target, target.potential
        self.tokens, self.tolerance = tokens, tolerance
        self.values = target.log_phi(tokens)

    def fresh(self, phi: Potential, tokens: Tensor) -> Tensor:
        """Log phi by a new binding, whose caches are empty: they would hide what we look for."""
        return as_numbers(phi.bind(self.target.context).log_phi(tokens)).double()

    def require_same(
        self,
        got: Tensor,
        wanted: Tensor,
        problem: str,
        tokens: Tensor | None = None,
        slack: float = 1.0,
    ) -> None:
        """Raise AssertionError unless log phi of each row of tokens is what it should be."""
        require(got.shape == wanted.shape, f"{problem}: shape {tuple(got.shape)}.")
        scale = 1.0 + torch.where(wanted.isfinite(), wanted.abs(), 0.0)
        bad = ~((got == wanted) | ((got - wanted).abs() <= slack * self.tolerance * scale))
        if bad.any():
            row = (self.tokens if tokens is None else tokens)[bad][0]
            raise AssertionError(
                f"{problem}: {float(got[bad][0]):.12g} against {float(wanted[bad][0]):.12g} on "
                f"{self.target.context.show_row(row)}."
            )


def _texts(target: Target, num_rows: int, generator: torch.Generator) -> Int[Tensor, "rows steps"]:
    lm, steps = target.lm, target.num_steps
    half = max(1, num_rows // 2)
    likely = base_samples(
        lm, target.prompt_tokens, steps, half, generator=generator, ending=target.ending
    )
    uniform = torch.randint(lm.vocab_size, (half, steps), generator=generator, device=likely.device)
    if target.ending is not None:
        uniform = target.ending.filled(uniform)
    return torch.cat([likely, uniform])


def _check_words(phi: Potential) -> None:
    require_line(phi.describe())
    parts = phi.factors()
    require(bool(parts), "factors() must give at least one factor.")
    require(all(part.describe().strip() for part in parts), "each factor must describe itself.")


def _check_repeatable(case: _Case, generator: torch.Generator) -> None:
    phi, tokens = case.phi, case.tokens
    before = tokens.clone()
    first = case.fresh(phi, tokens)
    require(torch.equal(tokens, before), "log_phi must not write into the tokens it is given.")
    again = case.fresh(phi, tokens)
    case.require_same(again, first, "log_phi gives another value when asked again")
    order = torch.randperm(len(tokens), generator=generator, device=tokens.device)
    shuffled = case.fresh(phi, tokens[order])
    problem = "log_phi of a row depends on the order of the rows"
    case.require_same(shuffled, first[order], problem, tokens[order])
    problem = "log_phi of a row depends on its companions"
    for row in range(min(4, len(tokens))):
        alone = tokens[row : row + 1]
        case.require_same(case.fresh(phi, alone), first[row : row + 1], problem, alone)
    case.require_same(first, case.values, problem)


def _check_bound(case: _Case) -> None:
    bound = case.phi.log_phi_max
    if bound is None:
        return
    require(math.isfinite(bound), f"log_phi_max must be finite or None; got {bound!r}.")
    highest = int(case.values.argmax())
    require(
        float(case.values[highest]) <= bound + case.tolerance,
        f"log_phi = {float(case.values[highest]):g} exceeds log_phi_max = {bound:g} on "
        f"{case.target.context.show_row(case.tokens[highest])}.",
    )


def _check_next(case: _Case) -> None:
    offer = case.target.log_phi_next
    if offer is None:
        return
    tokens, problem = case.tokens, "log_phi_next differs from log_phi"
    prefixes = tokens[:, :-1]
    table = offer(prefixes)
    case.require_same(table.gather(1, tokens[:, -1:]).squeeze(1), case.values, problem)
    vocab_size = case.target.lm.vocab_size
    count = max(1, min(len(prefixes), MOST_CELLS // vocab_size))
    last = torch.arange(vocab_size, device=tokens.device).repeat(count).unsqueeze(1)
    every = torch.cat([prefixes[:count].repeat_interleave(vocab_size, dim=0), last], dim=1)
    ending = case.target.ending
    possible = torch.ones(len(every), dtype=torch.bool, device=every.device)
    if ending is not None:
        # A text that has ended goes on with EOS only; other rows are no texts of the target.
        possible = (ending.filled(every) == every).all(-1)
    every, offered = every[possible], table[:count].flatten()[possible]
    case.require_same(offered, case.target.log_phi(every), problem, every)


def _check_automaton(case: _Case) -> None:
    automaton = case.phi.automaton()
    if automaton is not None:
        read = automaton.log_phi(case.tokens).double()
        case.require_same(read, case.values, "automaton() differs from log_phi")


def _check_algebra(case: _Case, potential: Any) -> None:
    phi, values = as_potential(potential), case.values
    for name, composed, expected in [
        ("phi ** 2", phi**2, 2 * values),
        ("phi ** 0", phi**0, torch.zeros_like(values)),
        ("phi * phi", phi * phi, values + values),
    ]:
        got = case.fresh(composed, case.tokens)
        case.require_same(got, expected, f"{name} is not what it says", slack=2.0)
