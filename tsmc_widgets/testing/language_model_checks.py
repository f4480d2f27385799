"""The contract of a language model, as a check that anyone can run on their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from tsmc_widgets.errors import check_integer
from tsmc_widgets.models.protocol import Carry, LanguageModel, LMStep

MIN_STEPS = 4
MIN_BATCH = 2


@dataclass(frozen=True, slots=True)
class Answer:
    """Named tensors with one row for each prefix, and what the next ``advance`` takes."""

    values: Mapping[str, Tensor | None]
    carry: Any


@dataclass(frozen=True, slots=True)
class Carries:
    """The carries of models that step together; None where one keeps nothing."""

    parts: tuple[Carry | None, ...]

    def select(self, rows: Int[Tensor, " batch"]) -> Carries:
        """Carries of the given rows."""
        return Carries(tuple(None if part is None else part.select(rows) for part in self.parts))


@dataclass(frozen=True, slots=True)
class SteppingCase:
    """Something that reads token by token, and the random tokens that it is tried on.

    Attributes:
        prefill: reads whole prefixes.
        advance: reads one more token for each row.
        check: looks at one answer: (answer, rows, where it was given).
        tokens: the last of each row is predicted and never read.
        prompt_length: tokens read by the first ``prefill``.
        vocab_size: V.
        tolerance: largest difference between two ways to the same answer.
    """

    prefill: Callable[[Tensor], Answer]
    advance: Callable[[Tensor, Any], Answer]
    check: Callable[[Answer, int, str], None]
    tokens: Int[Tensor, "batch length"]
    prompt_length: int
    vocab_size: int
    tolerance: float = field(kw_only=True)

    @property
    def batch(self) -> int:
        """Number of rows."""
        return self.tokens.shape[0]

    def require_close(self, found: Tensor | None, expected: Tensor | None, what: str) -> None:
        """Raise AssertionError unless two answers agree."""
        if found is None or expected is None:
            require(found is expected, f"{what}: one is None and the other is not.")
            return
        require(
            found.shape == expected.shape,
            f"{what}: shapes are {tuple(found.shape)} and {tuple(expected.shape)}.",
        )
        gap = largest_gap(found, expected)
        require(
            gap <= self.tolerance,
            f"{what}: they differ by {gap:.3g}, more than the tolerance {self.tolerance:g}.",
        )

    def require_same(self, found: Answer, expected: Answer, what: str) -> None:
        """Raise AssertionError unless all values of two answers agree."""
        for name, value in found.values.items():
            self.require_close(value, expected.values[name], f"{what} ({name})")


def require(holds: bool, message: str) -> None:
    """Raise AssertionError with a message unless something holds."""
    if not holds:
        raise AssertionError(message)


def largest_gap(found: Tensor, expected: Tensor) -> float:
    """Largest difference; infinite where only one of them is finite, or either is NaN."""
    found, expected = found.detach().double(), expected.detach().double()
    gaps = torch.where(found == expected, 0.0, (found - expected).abs())
    return float(gaps.nan_to_num(nan=float("inf")).max())


def random_tokens(
    lm: LanguageModel, *, prompt_length: int, num_steps: int, batch: int, seed: int
) -> Int[Tensor, "batch length"]:
    """Tokens to try something on; raises where the sizes would check nothing or do not fit."""
    check_integer("prompt_length", prompt_length, at_least=0)
    check_integer("num_steps", num_steps, at_least=MIN_STEPS)
    check_integer("batch", batch, at_least=MIN_BATCH)
    length = prompt_length + num_steps
    require(
        lm.context_length is None or length <= lm.context_length,
        f"The check reads {length} tokens and the model's context holds {lm.context_length}: give "
        "it a smaller prompt_length or num_steps.",
    )
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(lm.vocab_size, (batch, length), generator=generator)
    return tokens.to(lm.device)


def check_stepping(case: SteppingCase) -> list[Answer]:
    """Check one step after another, and give the answers along the tokens."""
    tokens = case.tokens
    given = tokens.clone()
    answer = case.prefill(tokens[:, : case.prompt_length])
    case.check(answer, case.batch, "prefill")
    answers = [answer]
    for at in range(case.prompt_length, tokens.shape[1] - 1):
        answer = case.advance(tokens[:, at], answer.carry)
        require(torch.equal(tokens, given), "advance wrote into the tokens it was given.")
        case.check(answer, case.batch, f"advance to {at + 1} tokens")
        whole = case.prefill(tokens[:, : at + 1])
        case.require_same(answer, whole, f"advance and prefill of {at + 1} tokens must agree")
        require(torch.equal(tokens, given), "prefill wrote into the tokens it was given.")
        answers.append(answer)
    _check_older_carry(case)
    _check_select(case)
    _check_row_order(case)
    return answers


def _check_row_order(case: SteppingCase) -> None:
    rows = torch.arange(case.batch - 1, -1, -1, device=case.tokens.device)
    whole = case.prefill(case.tokens[:, :-1])
    for name, chosen in (("in reverse order", rows), ("alone", rows[:1])):
        some = case.prefill(case.tokens[chosen, :-1])
        for key, value in whole.values.items():
            expected = None if value is None else value[chosen]
            what = f"a row read {name} must answer the same ({key})"
            case.require_close(some.values[key], expected, what)


def _picks(case: SteppingCase) -> list[Tensor]:
    """Selections that reverse, repeat, drop and grow."""
    last = case.batch - 1
    rows = ([last, 0, 0, *range(1, case.batch)], [last], list(range(last, -1, -1)))
    return [torch.tensor(pick, device=case.tokens.device) for pick in rows]


def _check_select(case: SteppingCase) -> None:
    at = case.prompt_length + 1
    answer = case.prefill(case.tokens[:, :at])
    for rows in _picks(case):
        prefix = case.tokens[rows]
        selected = answer.carry.select(rows)
        found = case.advance(prefix[:, at], selected)
        expected = case.prefill(prefix[:, : at + 1])
        what = f"select({rows.tolist()}), then advance, must equal prefill of these rows"
        case.require_same(found, expected, what)
        again = torch.arange(len(rows) - 1, -1, -1, device=rows.device)
        found = case.advance(prefix[again][:, at], selected.select(again))
        expected = case.prefill(prefix[again][:, : at + 1])
        case.require_same(found, expected, f"{what}, also when selected twice")


def _check_older_carry(case: SteppingCase) -> None:
    at = case.prompt_length + 1
    first = case.prefill(case.tokens[:, : at - 1])
    carry, rows = case.advance(case.tokens[:, at - 1], first.carry).carry, _picks(case)[0]
    token, other = case.tokens[:, at], (case.tokens[:, at] + 1) % case.vocab_size
    once, twice = case.advance(token, carry), case.advance(token, carry)
    case.require_same(
        twice, once, "advance must leave an older carry as it was: the same call twice"
    )

    def answers() -> list[Tensor]:
        ahead = [case.advance(token, carry), case.advance(token[rows], carry.select(rows))]
        found = [value for answer in ahead for value in answer.values.values()]
        return [value for value in found if value is not None]

    before = answers()
    kept = [value.clone() for value in before]
    case.advance(token, case.advance(other, carry).carry)
    selected = case.advance(other[rows], carry.select(rows)).carry
    case.advance(token[rows], selected.select(rows.sort()[1]))
    for value, copy in zip(before, kept, strict=True):
        require(torch.equal(value, copy), "later calls wrote into an answer given before.")
    for value, copy in zip(answers(), kept, strict=True):
        gap = largest_gap(value, copy)
        require(
            torch.equal(value, copy),
            f"advance or select changed an older carry: it answers differently by {gap:.3g}.",
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
