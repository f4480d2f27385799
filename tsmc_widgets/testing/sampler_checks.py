"""Contracts of what a run is made of: potentials, twists, proposals and resampling schemes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from tsmc_widgets.errors import check_integer
from tsmc_widgets.models.protocol import LanguageModel, LMStep, network
from tsmc_widgets.numerics import normalise
from tsmc_widgets.smc.proposals import Proposal, ProposalStep
from tsmc_widgets.targets.checked import as_numbers
from tsmc_widgets.targets.protocol import Potential, as_potential
from tsmc_widgets.targets.target import Prompt, Target
from tsmc_widgets.testing.language_model_checks import (
    Answer,
    Carries,
    SteppingCase,
    flows,
    gradients_of,
    require,
    require_floats,
    require_line,
    require_normalised,
)
from tsmc_widgets.twists.protocol import Twist, TwistStep

MOST_CELLS = 2**12


def check_potential(
    potential: Any,
    lm: LanguageModel,
    *,
    prompt: Prompt,
    num_steps: int = 4,
    eos: Literal["ignore", "absorb"] = "ignore",
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
    likely = target.context.draw(half, generator)
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


LAST_UNIFORM = 1.0 - 2.0**-53
Z_LIMIT = 4.5


def check_twist(
    twist: Any,
    lm: LanguageModel,
    *,
    prompt_length: int = 3,
    num_steps: int = 4,
    batch: int = 4,
    seed: int = 0,
    tolerance: float = 1e-4,
) -> None:
    """Check that a twist is what the sampler and the losses take it for.

    Args:
        twist: a ``Twist``; its methods are called on random tokens.
        lm: its base model, which ``check_language_model`` has passed.
        prompt_length: tokens of the prompt; a twist made for one target needs that target's.
        num_steps: T, at least 4; psi_1 to psi_T are asked for.
        batch: number of prefixes, at least 2.
        seed: of the random tokens.
        tolerance: largest difference in nats between two ways to the same log psi.

    Raises:
        AssertionError: says which part of the contract the twist breaks.
    """
    require(
        isinstance(twist, Twist),
        f"{type(twist).__name__} lacks a method of the Twist protocol: prefill, advance, log_psi.",
    )
    case = _TwistCase(
        lm, prompt_length=prompt_length, num_steps=num_steps, batch=batch, seed=seed,
        tolerance=tolerance,
    )  # fmt: skip
    case.twist = twist
    with torch.no_grad():
        answers = case.check_stepping()
        _check_teacher_forcing(case, answers)
    _check_gradients(case)


def untouched(lm_step: LMStep, twist_step: TwistStep | None, kind: type, ask: Callable) -> Any:
    """Answer of ``ask``, of a kind; AssertionError if ``ask`` writes into what it is given."""
    given = {"base model's log_probs": lm_step.log_probs, "base model's hidden": lm_step.hidden}
    if twist_step is not None:
        given["twist's log_psi_next"] = twist_step.log_psi_next
    kept = {name: None if value is None else value.clone() for name, value in given.items()}
    answer = ask()
    for name, value in given.items():
        same = value is None or torch.equal(value, kept[name])
        require(same, f"prefill or advance wrote into the {name}.")
    require(
        isinstance(answer, kind),
        f"prefill and advance must give a {kind.__name__}; got {type(answer).__name__}.",
    )
    return answer


class _TwistCase(SteppingCase):
    """Base model and twist, as the sampler calls them."""

    twist: Any

    def prefill(self, tokens: Tensor) -> Answer:
        lm_step = self.lm.prefill(tokens)
        return self._answer(lm_step, lambda: self.twist.prefill(tokens, lm_step))

    def advance(self, tokens: Tensor, carry: Carries) -> Answer:
        lm_carry, own = carry.parts
        lm_step = self.lm.advance(tokens, lm_carry)
        return self._answer(lm_step, lambda: self.twist.advance(tokens, own, lm_step))

    def _answer(self, lm_step: LMStep, ask: Callable) -> Answer:
        step = untouched(lm_step, None, TwistStep, ask)
        return Answer({"log_psi_next": step.log_psi_next}, Carries((lm_step.carry, step.carry)))

    def check(self, answer: Answer, rows: int, where: str) -> None:
        shape = (rows, self.lm.vocab_size)
        self.check_values(answer.values["log_psi_next"], shape, f"{where}: log_psi_next")

    def check_values(self, log_psi: Tensor, shape: tuple[int, ...], what: str) -> None:
        require_floats(log_psi, shape, what, self.device)
        require(not bool(log_psi.isnan().any()), f"{what} must not be NaN.")
        require(
            not bool((log_psi == torch.inf).any()),
            f"{what} must be below +inf: psi is finite, and 0 (-inf) where phi must be 0.",
        )


def _check_teacher_forcing(case: _TwistCase, answers: list[Answer]) -> None:
    forced = case.twist.log_psi(case.tokens, case.prompt_length)
    case.check_values(forced, case.chosen.shape, "log_psi")
    for at, answer in enumerate(answers):
        stepped = answer.values["log_psi_next"].gather(1, case.chosen[:, at : at + 1]).squeeze(1)
        what = f"log_psi and log_psi_next must agree on token {at + 1} after the prompt"
        case.require_close(forced[:, at], stepped, what)


def _parameters(module: Any) -> list[Tensor]:
    return list(module.parameters()) if isinstance(module, torch.nn.Module) else []


def _check_gradients(case: _TwistCase) -> None:
    own = [parameter for parameter in _parameters(case.twist) if parameter.requires_grad]
    base = _parameters(network(case.lm) or case.lm)
    shared = {id(parameter) for parameter in own} & {id(parameter) for parameter in base}
    require(
        not shared,
        f"{len(shared)} of the twist's parameters are the base model's own: training the twist "
        "would change p0.",
    )
    with torch.enable_grad():
        log_psi = case.twist.log_psi(case.tokens, case.prompt_length)
    finite = log_psi[log_psi.isfinite()]
    require(
        finite.requires_grad or not own,
        "log_psi must keep gradients of the twist's parameters; it keeps none.",
    )
    if not finite.requires_grad:
        return
    frozen = [parameter for parameter in base if parameter.requires_grad]
    gradients = gradients_of(finite, [*own, *frozen])
    require(
        all(g is None or bool(g.isfinite().all()) for g in gradients),
        "a gradient of log_psi is NaN or infinite.",
    )
    require(
        not own or flows(gradients[: len(own)]),
        "log_psi must keep gradients of the twist's parameters: all of them are zero.",
    )
    require(
        not flows(gradients[len(own) :]),
        "a gradient of log_psi reaches the base model, which is frozen: put no_grad about it.",
    )


def check_proposal(
    proposal: Any,
    lm: LanguageModel,
    twist: Twist | None = None,
    *,
    prompt_length: int = 3,
    num_steps: int = 4,
    batch: int = 4,
    seed: int = 0,
    tolerance: float = 1e-4,
) -> None:
    """Check that a proposal is what the sampler takes it for.

    Args:
        proposal: a ``Proposal``; its methods are called on random tokens.
        lm: the base model, which ``check_language_model`` has passed.
        twist: the sampler's twist; the proposal must cover p0 psi_t, and p0 itself where None.
        prompt_length: tokens read by the first ``prefill``.
        num_steps: T, at least 4.
        batch: number of prefixes, at least 2.
        seed: of the random tokens.
        tolerance: largest difference in nats between two ways to the same log q.

    Raises:
        AssertionError: says which part of the contract the proposal breaks.
    """
    require(
        isinstance(proposal, Proposal),
        f"{type(proposal).__name__} lacks a method of the Proposal protocol: prefill, advance, "
        "describe.",
    )
    require_line(proposal.describe())
    case = _ProposalCase(
        lm, prompt_length=prompt_length, num_steps=num_steps, batch=batch, seed=seed,
        tolerance=tolerance,
    )  # fmt: skip
    case.proposal, case.twist = proposal, twist
    with torch.no_grad():
        case.check_stepping()
        _check_forbidden_rows(case)


class _ProposalCase(SteppingCase):
    """Base model, twist and proposal, one after another, as the sampler calls them."""

    proposal: Any
    twist: Twist | None

    def prefill(self, tokens: Tensor) -> Answer:
        lm_step = self.lm.prefill(tokens)
        twist_step = None if self.twist is None else self.twist.prefill(tokens, lm_step)
        return self._answer(
            lm_step, twist_step, lambda: self.proposal.prefill(tokens, lm_step, twist_step)
        )

    def advance(self, tokens: Tensor, carry: Carries) -> Answer:
        lm_carry, twist_carry, own = carry.parts
        lm_step, twist_step = self.lm.advance(tokens, lm_carry), None
        if self.twist is not None:
            twist_step = self.twist.advance(tokens, twist_carry, lm_step)
        return self._answer(
            lm_step, twist_step, lambda: self.proposal.advance(tokens, own, lm_step, twist_step)
        )

    def _answer(self, lm_step: LMStep, twist_step: TwistStep | None, ask: Callable) -> Answer:
        step = untouched(lm_step, twist_step, ProposalStep, ask)
        log_pi, twist_carry = lm_step.log_probs, None
        if twist_step is not None:
            log_pi, twist_carry = log_pi + twist_step.log_psi_next, twist_step.carry
        carries = Carries((lm_step.carry, twist_carry, step.carry))
        return Answer({"log_q_next": step.log_q_next, "log p0 + log psi": log_pi}, carries)

    def check(self, answer: Answer, rows: int, where: str) -> None:
        log_q, log_pi = answer.values["log_q_next"], answer.values["log p0 + log psi"]
        require_floats(log_q, log_pi.shape, f"{where}: log_q_next", log_pi.device)
        require_normalised(log_q, f"{where}: probabilities exp(log_q_next)")
        missed = (log_pi > -math.inf) & (log_q == -math.inf)
        require(
            not bool(missed.any()),
            f"{where}: q must be above 0 wherever p0 psi is, or texts are lost; it is 0 on "
            f"{int(missed.sum())} of {missed.numel()} next tokens, such as token "
            f"{missed.nonzero()[:1, 1].tolist()}.",
        )


def _check_forbidden_rows(case: _ProposalCase) -> None:
    """A twist may rule out every next token of a dead particle beside live ones."""
    if case.twist is None:
        return
    tokens = case.tokens[:, : case.prompt_length]
    lm_step = case.lm.prefill(tokens)
    twist_step = case.twist.prefill(tokens, lm_step)
    log_psi_next = twist_step.log_psi_next.clone()
    log_psi_next[0] = -math.inf
    twist_step = replace(twist_step, log_psi_next=log_psi_next)
    log_q = case.proposal.prefill(tokens, lm_step, twist_step).log_q_next
    require_normalised(log_q, "where a row of log_psi_next is -inf, probabilities exp(log_q_next)")


def check_resampler(
    scheme: Any, *, num_particles: int = 6, num_rows: int = 40_000, seed: int = 0
) -> None:
    """Check that a resampling scheme is unbiased and never picks a particle of weight zero.

    Args:
        scheme: a function of normalised weights and uniforms, both (runs, particles), that gives
            ancestors, such as those of ``smc.resampling.SCHEMES``.
        num_particles: K, at least 2.
        num_rows: runs that the expected number of copies is measured on.
        seed: of weights and uniforms.

    Raises:
        AssertionError: says which part of the contract the scheme breaks.
    """
    check_integer("num_particles", num_particles, at_least=2)
    check_integer("num_rows", num_rows, at_least=100)
    generator = torch.Generator().manual_seed(seed)
    for size in (1, num_particles, 1000):
        weights = _awkward_weights(size, generator)
        _check_edges(scheme, weights)
        _check_rows(scheme, weights, generator)
    for row in _awkward_weights(num_particles, generator):
        _check_unbiased(scheme, row, num_rows, generator)


def _awkward_weights(size: int, generator: torch.Generator) -> Tensor:
    """Rows of normalised weights: even, one alone, some zero, over hundreds of nats."""
    log_weights = torch.zeros(8, size, dtype=torch.float64)
    log_weights[1, : size // 2] = -math.inf
    log_weights[2, 1:] = -math.inf
    log_weights[3, :-1] = -math.inf
    log_weights[4] = -torch.arange(size) * math.log(2.0)
    log_weights[5:] = torch.randn(3, size, generator=generator, dtype=torch.float64)
    log_weights[6, ::2] = -math.inf if size > 1 else 0.0
    log_weights[7] = (log_weights[7] * 400).clamp(-800, 800)
    return normalise(log_weights)


def _ancestors(scheme: Any, weights: Tensor, uniforms: Tensor) -> Tensor:
    """Ancestors, of the right kind and alive."""
    given = weights.clone(), uniforms.clone()
    ancestors = scheme(weights, uniforms)
    unchanged = torch.equal(weights, given[0]) and torch.equal(uniforms, given[1])
    require(unchanged, "the scheme wrote into the weights or uniforms that it was given.")
    require(
        ancestors.shape == weights.shape,
        f"ancestors must have shape {tuple(weights.shape)}; got {tuple(ancestors.shape)}.",
    )
    require(ancestors.dtype == torch.int64, f"ancestors must be int64; got {ancestors.dtype}.")
    size = weights.shape[1]
    inside = bool(((ancestors >= 0) & (ancestors < size)).all())
    require(
        inside,
        f"ancestors must lie in [0, {size}); they lie in [{int(ancestors.min())}, "
        f"{int(ancestors.max())}].",
    )
    require(
        bool((weights.gather(1, ancestors) > 0).all()),
        "a particle of weight zero must never become an ancestor.",
    )
    return ancestors


def _check_edges(scheme: Any, weights: Tensor) -> None:
    """Uniforms at both ends of [0, 1), and on the edges of the cumulative weights."""
    for value in (0.0, LAST_UNIFORM, 0.5):
        _ancestors(scheme, weights, torch.full_like(weights, value))
    edges = weights.cumsum(1).clamp(max=LAST_UNIFORM)
    _ancestors(scheme, weights, edges)
    _ancestors(scheme, weights, (edges * weights.shape[1]) % 1.0)


def _check_rows(scheme: Any, weights: Tensor, generator: torch.Generator) -> None:
    uniforms = torch.rand(weights.shape, generator=generator, dtype=torch.float64)
    ancestors = _ancestors(scheme, weights, uniforms)
    order = torch.randperm(weights.shape[0], generator=generator)
    require(
        torch.equal(_ancestors(scheme, weights[order], uniforms[order]), ancestors[order]),
        "ancestors of a run must not depend on the order of the runs.",
    )
    alone = torch.cat(
        [_ancestors(scheme, weights[r : r + 1], uniforms[r : r + 1]) for r in range(len(weights))]
    )
    require(torch.equal(alone, ancestors), "ancestors of a run must not depend on other runs.")


def _check_unbiased(
    scheme: Any, weights: Tensor, num_rows: int, generator: torch.Generator
) -> None:
    size = weights.shape[0]
    uniforms = torch.rand(num_rows, size, generator=generator, dtype=torch.float64)
    ancestors = _ancestors(scheme, weights.expand(num_rows, size).contiguous(), uniforms)
    copies = torch.zeros(num_rows, size, dtype=torch.float64)
    copies.scatter_add_(1, ancestors, torch.ones_like(copies))
    part = size * weights % 1.0
    # No count whose mean has this fractional part varies less: rare copies may be seen too seldom.
    variance = torch.maximum(copies.var(0), part * (1.0 - part))
    z = (copies.mean(0) - size * weights).abs() / (variance / num_rows).sqrt().clamp(min=1e-10)
    worst = int(z.argmax())
    require(
        float(z[worst]) < Z_LIMIT,
        f"the expected number of copies must be K w: a particle of weight {weights[worst]:.4g} has "
        f"{copies.mean(0)[worst]:.4f} copies on average, not {size * weights[worst]:.4f} "
        f"(z = {z[worst]:.1f}).",
    )
