"""The contract of a potential, as a check that anyone can run on their own."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from tsmc_widgets.models.protocol import LanguageModel
from tsmc_widgets.targets.checked import as_numbers
from tsmc_widgets.targets.protocol import Potential, as_potential
from tsmc_widgets.targets.sampling import after_eos, base_samples
from tsmc_widgets.targets.target import Prompt, Target

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
    phi = target.potential
    generator = torch.Generator(lm.device).manual_seed(seed)
    tokens = _texts(target, num_rows, generator)
    values = target.log_phi(tokens)
    _check_words(phi)
    _check_repeatable(phi, target, tokens, values, generator, tolerance)
    _check_bound(phi, target, tokens, values, tolerance)
    _check_next(target, tokens, values, tolerance)
    _check_automaton(phi, tokens, values, tolerance)
    _check_algebra(potential, target, tokens, values, tolerance)


def _texts(target: Target, num_rows: int, generator: torch.Generator) -> Int[Tensor, "rows steps"]:
    lm, steps = target.lm, target.num_steps
    eos = target.context.eos_token_id
    half = max(1, num_rows // 2)
    likely = base_samples(
        lm, target.prompt_tokens, steps, half, generator=generator, eos_token_id=eos
    )
    uniform = torch.randint(lm.vocab_size, (half, steps), generator=generator, device=likely.device)
    if eos is not None:
        uniform = torch.where(after_eos(uniform, eos), eos, uniform)
    return torch.cat([likely, uniform])


def _check_words(phi: Potential) -> None:
    line = phi.describe()
    assert isinstance(line, str), f"describe() must return a text; got {line!r}."
    assert line.strip(), f"describe() of {type(phi).__name__} must not be empty."
    assert "\n" not in line, f"describe() must be one line; got {line!r}."
    parts = phi.factors()
    assert parts, "factors() must give at least one factor."
    assert all(part.describe().strip() for part in parts), "each factor must describe itself."


def _check_repeatable(
    phi: Potential,
    target: Target,
    tokens: Tensor,
    values: Tensor,
    generator: torch.Generator,
    tolerance: float,
) -> None:
    def fresh(rows: Tensor) -> Tensor:
        # A new binding has empty caches, which would hide what we look for.
        return as_numbers(phi.bind(target.context).log_phi(rows)).double()

    before = tokens.clone()
    first = fresh(tokens)
    assert torch.equal(tokens, before), "log_phi must not write into the tokens it is given."
    again = fresh(tokens)
    _same(again, first, tokens, target, tolerance, "log_phi gives another value when asked again")
    order = torch.randperm(len(tokens), generator=generator, device=tokens.device)
    _same(
        fresh(tokens[order]),
        first[order],
        tokens[order],
        target,
        tolerance,
        "log_phi of a row depends on the order of the rows",
    )
    for row in range(min(4, len(tokens))):
        alone = tokens[row : row + 1]
        _same(
            fresh(alone),
            first[row : row + 1],
            alone,
            target,
            tolerance,
            "log_phi of a row depends on its companions",
        )
    _same(first, values, tokens, target, tolerance, "log_phi of a row depends on its companions")


def _check_bound(
    phi: Potential, target: Target, tokens: Tensor, values: Tensor, tolerance: float
) -> None:
    bound = phi.log_phi_max
    if bound is None:
        return
    assert math.isfinite(bound), f"log_phi_max must be finite or None; got {bound!r}."
    highest = int(values.argmax())
    assert values[highest] <= bound + tolerance, (
        f"log_phi = {float(values[highest]):g} exceeds log_phi_max = {bound:g} on "
        f"{target.context.show_row(tokens[highest])}."
    )


def _check_next(target: Target, tokens: Tensor, values: Tensor, tolerance: float) -> None:
    offer = target.log_phi_next
    if offer is None:
        return
    prefixes = tokens[:, :-1]
    table = offer(prefixes)
    chosen = table.gather(1, tokens[:, -1:]).squeeze(1)
    _same(chosen, values, tokens, target, tolerance, "log_phi_next differs from log_phi")
    vocab_size = target.lm.vocab_size
    count = max(1, min(len(prefixes), MOST_CELLS // vocab_size))
    last = torch.arange(vocab_size, device=tokens.device).repeat(count).unsqueeze(1)
    every = torch.cat([prefixes[:count].repeat_interleave(vocab_size, dim=0), last], dim=1)
    eos = target.context.eos_token_id
    possible = torch.ones(len(every), dtype=torch.bool, device=every.device)
    if eos is not None:
        # A text that has ended goes on with EOS only; other rows are no texts of the target.
        possible = ~(after_eos(every, eos) & (every != eos)).any(-1)
    every = every[possible]
    _same(
        table[:count].flatten()[possible],
        target.log_phi(every),
        every,
        target,
        tolerance,
        "log_phi_next differs from log_phi",
    )


def _check_automaton(phi: Potential, tokens: Tensor, values: Tensor, tolerance: float) -> None:
    automaton = phi.automaton()
    if automaton is None:
        return
    read = automaton.log_phi(tokens).double()
    bad = ~_close(read, values, tolerance)
    assert not bad.any(), (
        f"automaton() gives log phi = {float(read[bad][0]):g} and log_phi gives "
        f"{float(values[bad][0]):g} on the tokens {tokens[bad][0].tolist()}."
    )


def _check_algebra(
    potential: Any, target: Target, tokens: Tensor, values: Tensor, tolerance: float
) -> None:
    phi = as_potential(potential)
    for name, composed, expected in [
        ("phi ** 2", phi**2, 2 * values),
        ("phi ** 0", phi**0, torch.zeros_like(values)),
        ("phi * phi", phi * phi, values + values),
    ]:
        got = as_numbers(composed.bind(target.context).log_phi(tokens)).double()
        _same(got, expected, tokens, target, 2 * tolerance, f"{name} is not what it says")


def _same(
    got: Float64[Tensor, " rows"],
    wanted: Float64[Tensor, " rows"],
    tokens: Tensor,
    target: Target,
    tolerance: float,
    problem: str,
) -> None:
    assert got.shape == wanted.shape, f"{problem}: shape {tuple(got.shape)}."
    bad = ~_close(got, wanted, tolerance)
    assert not bad.any(), (
        f"{problem}: {float(got[bad][0]):.12g} against {float(wanted[bad][0]):.12g} on "
        f"{target.context.show_row(tokens[bad][0])}."
    )


def _close(a: Tensor, b: Tensor, tolerance: float) -> Tensor:
    scale = 1.0 + torch.where(b.isfinite(), b.abs(), 0.0)
    return (a == b) | ((a - b).abs() <= tolerance * scale)
