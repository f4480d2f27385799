"""The contract of a twist, as a check that anyone can run on their own."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tsmc_widgets.errors import check_integer
from tsmc_widgets.models.protocol import LanguageModel, LMStep
from tsmc_widgets.numerics import normalise
from tsmc_widgets.smc.proposals import Proposal, ProposalStep
from tsmc_widgets.testing.language_model_checks import (
    Answer,
    Carries,
    SteppingCase,
    check_stepping,
    random_tokens,
    require,
    require_normalised,
)
from tsmc_widgets.twists.protocol import Twist, TwistStep


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
    tokens = random_tokens(
        lm, prompt_length=prompt_length, num_steps=num_steps, batch=batch, seed=seed
    )

    def prefill(tokens: Tensor) -> Answer:
        lm_step = lm.prefill(tokens)
        return _answer(lm_step, untouched(lm_step, None, lambda: twist.prefill(tokens, lm_step)))

    def advance(tokens: Tensor, carry: Carries) -> Answer:
        lm_carry, own = carry.parts
        lm_step = lm.advance(tokens, lm_carry)
        return _answer(
            lm_step, untouched(lm_step, None, lambda: twist.advance(tokens, own, lm_step))
        )

    case = SteppingCase(
        prefill=prefill,
        advance=advance,
        check=lambda answer, rows, where: _check_twist_answer(lm, answer, rows, where),
        tokens=tokens,
        prompt_length=prompt_length,
        vocab_size=lm.vocab_size,
        tolerance=tolerance,
    )
    with torch.no_grad():
        answers = check_stepping(case)
        _check_teacher_forcing(twist, lm, case, answers)
    _check_gradients(twist, lm, case)


def untouched(lm_step: LMStep, twist_step: TwistStep | None, ask: Callable[[], Any]) -> Any:
    """Answer of ``ask``; raises AssertionError if it writes into what it is given."""
    given = {"base model's log_probs": lm_step.log_probs, "base model's hidden": lm_step.hidden}
    if twist_step is not None:
        given["twist's log_psi_next"] = twist_step.log_psi_next
    kept = {name: None if value is None else value.clone() for name, value in given.items()}
    answer = ask()
    for name, value in given.items():
        same = value is None or torch.equal(value, kept[name])
        require(same, f"prefill or advance wrote into the {name}.")
    return answer


def _answer(lm_step: LMStep, step: Any) -> Answer:
    require(
        isinstance(step, TwistStep),
        f"prefill and advance must give a TwistStep; got {type(step).__name__}.",
    )
    return Answer({"log_psi_next": step.log_psi_next}, Carries((lm_step.carry, step.carry)))


def _check_twist_answer(lm: LanguageModel, answer: Answer, rows: int, where: str) -> None:
    log_psi = answer.values["log_psi_next"]
    require(
        log_psi.shape == (rows, lm.vocab_size),
        f"{where}: log_psi_next must have shape ({rows}, {lm.vocab_size}); got "
        f"{tuple(log_psi.shape)}.",
    )
    _check_values(log_psi, lm, f"{where}: log_psi_next")


def _check_values(log_psi: Tensor, lm: LanguageModel, what: str) -> None:
    require(
        log_psi.dtype in (torch.float32, torch.float64),
        f"{what} must be float32 or float64; got {log_psi.dtype}.",
    )
    device = torch.empty(0, device=lm.device).device
    require(
        log_psi.device == device,
        f"{what} must lie on the base model's device {device}; it lies on {log_psi.device}.",
    )
    require(not bool(log_psi.isnan().any()), f"{what} must not be NaN.")
    require(
        not bool((log_psi == torch.inf).any()),
        f"{what} must be below +inf: psi is finite, and 0 (-inf) where phi must be 0.",
    )


def _check_teacher_forcing(
    twist: Any, lm: LanguageModel, case: SteppingCase, answers: list[Answer]
) -> None:
    chosen = case.tokens[:, case.prompt_length :]
    forced = twist.log_psi(case.tokens, case.prompt_length)
    require(
        forced.shape == chosen.shape,
        f"log_psi must have shape {tuple(chosen.shape)}, one value for each token after the "
        f"prompt; got {tuple(forced.shape)}.",
    )
    _check_values(forced, lm, "log_psi")
    for at, answer in enumerate(answers):
        stepped = answer.values["log_psi_next"].gather(1, chosen[:, at : at + 1]).squeeze(1)
        case.require_close(
            forced[:, at],
            stepped,
            f"log_psi and log_psi_next must agree on token {at + 1} after the prompt",
        )


def _parameters(module: Any) -> list[Tensor]:
    return list(module.parameters()) if callable(getattr(module, "parameters", None)) else []


def _check_gradients(twist: Any, lm: LanguageModel, case: SteppingCase) -> None:
    own = [parameter for parameter in _parameters(twist) if parameter.requires_grad]
    base = _parameters(getattr(lm, "model", lm))
    shared = {id(parameter) for parameter in own} & {id(parameter) for parameter in base}
    require(
        not shared,
        f"{len(shared)} of the twist's parameters are the base model's own: training the twist "
        "would change p0.",
    )
    with torch.enable_grad():
        log_psi = twist.log_psi(case.tokens, case.prompt_length)
    finite = log_psi[log_psi.isfinite()]
    require(
        finite.requires_grad or not own,
        "log_psi must keep gradients of the twist's parameters; it keeps none.",
    )
    if not finite.requires_grad:
        return
    frozen = [parameter for parameter in base if parameter.requires_grad]
    gradients = torch.autograd.grad(finite.sum(), [*own, *frozen], allow_unused=True)
    require(
        all(g is None or bool(g.isfinite().all()) for g in gradients),
        "a gradient of log_psi is NaN or infinite.",
    )
    flows = [g is not None and bool((g != 0).any()) for g in gradients]
    require(
        not own or any(flows[: len(own)]),
        "log_psi must keep gradients of the twist's parameters: all of them are zero.",
    )
    require(
        not any(flows[len(own) :]),
        "a gradient of log_psi reaches the base model, which is frozen: put no_grad about it.",
    )


LAST_UNIFORM = 1.0 - 2.0**-53
Z_LIMIT = 4.5


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
    _check_words(proposal)
    tokens = random_tokens(
        lm, prompt_length=prompt_length, num_steps=num_steps, batch=batch, seed=seed
    )
    stepper = _Stepper(proposal, lm, twist)
    case = SteppingCase(
        prefill=stepper.prefill,
        advance=stepper.advance,
        check=_check_answer,
        tokens=tokens,
        prompt_length=prompt_length,
        vocab_size=lm.vocab_size,
        tolerance=tolerance,
    )
    with torch.no_grad():
        check_stepping(case)
        _check_forbidden_rows(proposal, lm, twist, case)


class _Stepper:
    """Base model, twist and proposal, one after another, as the sampler calls them."""

    def __init__(self, proposal: Any, lm: LanguageModel, twist: Twist | None) -> None:
        self.proposal, self.lm, self.twist = proposal, lm, twist

    def prefill(self, tokens: Tensor) -> Answer:
        lm_step = self.lm.prefill(tokens)
        twist_step = None if self.twist is None else self.twist.prefill(tokens, lm_step)
        step = untouched(
            lm_step, twist_step, lambda: self.proposal.prefill(tokens, lm_step, twist_step)
        )
        return self._answer(lm_step, twist_step, step)

    def advance(self, tokens: Tensor, carry: Carries) -> Answer:
        lm_carry, twist_carry, own = carry.parts
        lm_step = self.lm.advance(tokens, lm_carry)
        twist_step = None
        if self.twist is not None:
            twist_step = self.twist.advance(tokens, twist_carry, lm_step)
        step = untouched(
            lm_step, twist_step, lambda: self.proposal.advance(tokens, own, lm_step, twist_step)
        )
        return self._answer(lm_step, twist_step, step)

    def _answer(self, lm_step: LMStep, twist_step: TwistStep | None, step: Any) -> Answer:
        require(
            isinstance(step, ProposalStep),
            f"prefill and advance must give a ProposalStep; got {type(step).__name__}.",
        )
        log_pi = lm_step.log_probs
        if twist_step is not None:
            log_pi = log_pi + twist_step.log_psi_next
        twist_carry = None if twist_step is None else twist_step.carry
        carries = Carries((lm_step.carry, twist_carry, step.carry))
        return Answer({"log_q_next": step.log_q_next, "log p0 + log psi": log_pi}, carries)


def _check_words(proposal: Any) -> None:
    line = proposal.describe()
    require(
        isinstance(line, str) and bool(line.strip()) and "\n" not in line,
        f"describe() must give one line of text; got {line!r}.",
    )


def _check_answer(answer: Answer, rows: int, where: str) -> None:
    log_q, log_pi = answer.values["log_q_next"], answer.values["log p0 + log psi"]
    require(
        log_q.shape == log_pi.shape,
        f"{where}: log_q_next must have shape {tuple(log_pi.shape)}; got {tuple(log_q.shape)}.",
    )
    require(
        log_q.dtype in (torch.float32, torch.float64),
        f"{where}: log_q_next must be float32 or float64; got {log_q.dtype}.",
    )
    require(
        log_q.device == log_pi.device,
        f"{where}: log_q_next must lie on the base model's device {log_pi.device}; it lies on "
        f"{log_q.device}.",
    )
    require_normalised(log_q, f"{where}: probabilities exp(log_q_next)")
    missed = (log_pi > -math.inf) & (log_q == -math.inf)
    require(
        not bool(missed.any()),
        f"{where}: q must be above 0 wherever p0 psi is, or texts are lost; it is 0 on "
        f"{int(missed.sum())} of {missed.numel()} next tokens, such as token "
        f"{missed.nonzero()[:1, 1].tolist()}.",
    )


def _check_forbidden_rows(
    proposal: Any, lm: LanguageModel, twist: Twist | None, case: SteppingCase
) -> None:
    """A twist may rule out every next token of a dead particle beside live ones."""
    if twist is None:
        return
    tokens = case.tokens[:, : case.prompt_length]
    lm_step = lm.prefill(tokens)
    twist_step = twist.prefill(tokens, lm_step)
    log_psi_next = twist_step.log_psi_next.clone()
    log_psi_next[0] = -math.inf
    twist_step = replace(twist_step, log_psi_next=log_psi_next)
    log_q = proposal.prefill(tokens, lm_step, twist_step).log_q_next
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
