"""The contract of a twist, as a check that anyone can run on their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tsmc_widgets.models.protocol import LanguageModel, LMStep
from tsmc_widgets.models.stepping import (
    Answer,
    Carries,
    SteppingCase,
    check_stepping,
    random_tokens,
    require,
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
        check=lambda answer, rows, where: _check_answer(lm, answer, rows, where),
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


def _check_answer(lm: LanguageModel, answer: Answer, rows: int, where: str) -> None:
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
