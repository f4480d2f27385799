"""The contract of a language model, as a check that anyone can run on their own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tsmc_widgets.models.protocol import LanguageModel, LMStep
from tsmc_widgets.models.stepping import (
    Answer,
    SteppingCase,
    check_stepping,
    random_tokens,
    require,
)


def check_language_model(
    lm: LanguageModel,
    *,
    prompt_length: int = 3,
    num_steps: int = 5,
    batch: int = 4,
    seed: int = 0,
    tolerance: float = 1e-4,
) -> None:
    """Check that a language model is what the sampler takes it for.

    Args:
        lm: the model; its methods are called on random tokens.
        prompt_length: tokens read by the first ``prefill``.
        num_steps: tokens after them, at least 4; the last is predicted and never read.
        batch: number of prefixes, at least 2.
        seed: of the random tokens.
        tolerance: largest difference, in nats and in units of ``hidden``, between two ways to the
            same answer; half-precision models need about 0.1.

    Raises:
        AssertionError: says which part of the contract the model breaks.
    """
    _check_facts(lm)
    tokens = random_tokens(
        lm, prompt_length=prompt_length, num_steps=num_steps, batch=batch, seed=seed
    )
    case = SteppingCase(
        prefill=lambda tokens: _answer(lm.prefill(tokens)),
        advance=lambda tokens, carry: _answer(lm.advance(tokens, carry)),
        check=lambda answer, rows, where: _check_answer(lm, answer, rows, where),
        tokens=tokens,
        prompt_length=prompt_length,
        vocab_size=lm.vocab_size,
        tolerance=tolerance,
    )
    answers = check_stepping(case)
    _check_model_softmax(lm, case, answers[-1])
    _check_teacher_forcing(lm, case, answers)
    _check_gradients(lm, case)
    _check_chunks(lm, case, answers)
    _check_text(lm, case)


def _answer(step: LMStep) -> Answer:
    return Answer({"log_probs": step.log_probs, "hidden": step.hidden}, step.carry)


def _check_facts(lm: LanguageModel) -> None:
    require(
        isinstance(lm, LanguageModel),
        f"{type(lm).__name__} lacks a method or fact of the LanguageModel protocol.",
    )
    require(
        isinstance(lm.vocab_size, int) and lm.vocab_size >= 1,
        f"vocab_size must be a positive integer; got {lm.vocab_size!r}.",
    )
    eos = lm.eos_token_id
    require(
        eos is None or 0 <= eos < lm.vocab_size,
        f"eos_token_id must be None or below vocab_size {lm.vocab_size}; got {eos!r}.",
    )


def _check_answer(lm: LanguageModel, answer: Answer, rows: int, where: str) -> None:
    log_probs, hidden = answer.values["log_probs"], answer.values["hidden"]
    require(
        log_probs.shape == (rows, lm.vocab_size),
        f"{where}: log_probs must have shape ({rows}, {lm.vocab_size}); got "
        f"{tuple(log_probs.shape)}.",
    )
    require(
        log_probs.dtype in (torch.float32, torch.float64),
        f"{where}: log_probs must be float32 or float64; got {log_probs.dtype}.",
    )
    require(not log_probs.requires_grad, f"{where}: log_probs must not carry a gradient.")
    require_normalised(log_probs, f"{where}: probabilities")
    require(
        hidden is None or (hidden.ndim == 2 and hidden.shape[0] == rows),
        f"{where}: hidden must be None or have shape ({rows}, width).",
    )


def require_normalised(log_probs: Tensor, what: str) -> None:
    """Raise AssertionError unless each row is the log of probabilities that sum to 1."""
    total = log_probs.double().exp().sum(-1)
    require(
        bool(((total - 1).abs() < 1e-4).all()),
        f"{what} must sum to 1 over the vocabulary; they sum to {total.min():.6g} to "
        f"{total.max():.6g}.",
    )


def _check_model_softmax(lm: Any, case: SteppingCase, answer: Answer) -> None:
    """Where the model is a transformers one, its own logits say what temperature 1 is."""
    model = getattr(lm, "model", None)
    if not isinstance(model, torch.nn.Module) or not hasattr(model, "get_output_embeddings"):
        return
    with torch.no_grad():
        logits = model(input_ids=case.tokens[:, :-1], use_cache=False).logits[:, -1]
    found = answer.values["log_probs"]
    expected = torch.log_softmax(logits.to(found.dtype), dim=-1)
    case.require_close(found, expected, "log_probs must be the model's full softmax, temperature 1")


def _check_teacher_forcing(lm: LanguageModel, case: SteppingCase, answers: list[Answer]) -> None:
    chosen = case.tokens[:, case.prompt_length :]
    with torch.no_grad():
        forced = lm.teacher_force(case.tokens, case.prompt_length)
        log_prob = lm.log_prob(case.tokens, case.prompt_length)
    for at, answer in enumerate(answers):
        hidden = None if forced.hidden is None else forced.hidden[:, at]
        found = Answer({"log_probs": forced.log_probs[:, at], "hidden": hidden}, None)
        what = f"teacher_force and stepping must agree on token {at + 1} after the prompt"
        case.require_same(found, answer, what)
    case.require_close(
        log_prob, forced.chosen(chosen), "log_prob must be teacher_force's at the given tokens"
    )


def _check_gradients(lm: Any, case: SteppingCase) -> None:
    model = getattr(lm, "model", None)
    if not isinstance(model, torch.nn.Module):
        return
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        return
    with torch.enable_grad():
        forced = lm.teacher_force(case.tokens, case.prompt_length)
        log_prob = lm.log_prob(case.tokens, case.prompt_length)
    answers = {"teacher_force": forced.log_probs[..., 0], "log_prob": log_prob}
    if forced.hidden is not None:
        answers["teacher_force(...).hidden"] = forced.hidden[..., 0]
    for name, values in answers.items():
        require(values.requires_grad, f"{name} must keep gradients of the model's parameters.")
        gradients = torch.autograd.grad(
            values.sum(), parameters, allow_unused=True, retain_graph=True
        )
        flows = any(g is not None and bool((g != 0).any()) for g in gradients)
        require(flows, f"{name} must keep gradients: all of them are zero.")


def _check_chunks(lm: Any, case: SteppingCase, answers: list[Answer]) -> None:
    if not hasattr(lm, "max_rows"):
        return
    before = lm.max_rows
    forced = lm.log_prob(case.tokens, case.prompt_length)
    try:
        for max_rows in (1, case.batch - 1):
            lm.max_rows = max_rows
            answer = case.prefill(case.tokens[:, : case.prompt_length])
            for at, expected in enumerate(answers):
                what = f"with max_rows={max_rows} answers must stay the same"
                case.require_same(answer, expected, what)
                if at + 1 < len(answers):
                    every = torch.arange(case.batch, device=case.tokens.device)
                    carry = answer.carry.select(every) if at % 2 else answer.carry
                    answer = case.advance(case.tokens[:, case.prompt_length + at], carry)
            case.require_close(lm.log_prob(case.tokens, case.prompt_length), forced, what)
    finally:
        lm.max_rows = before


def _check_text(lm: LanguageModel, case: SteppingCase) -> None:
    texts = lm.decode(case.tokens)
    require(
        len(texts) == case.batch and all(isinstance(text, str) for text in texts),
        f"decode must give one text for each row; got {texts!r}.",
    )
    for token in {0, lm.vocab_size - 1, *case.tokens.flatten().tolist()}:
        text = lm.token_text(token)
        require(isinstance(text, str), f"token_text({token}) must be a text; got {text!r}.")
