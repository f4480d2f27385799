"""Contract checks for what a user plugs in: each raises AssertionError and says what is broken."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tsmc_widgets.errors import check_integer
from tsmc_widgets.models.protocol import LanguageModel, LMStep


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
    check_integer("prompt_length", prompt_length, at_least=0)
    check_integer("num_steps", num_steps, at_least=4)
    check_integer("batch", batch, at_least=2)
    _check_facts(lm, prompt_length + num_steps)
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, prompt_length + num_steps)
    tokens = torch.randint(lm.vocab_size, shape, generator=generator).to(lm.device)
    case = _Case(lm, tokens, prompt_length, tolerance)
    steps = _check_stepping(case)
    _check_model_softmax(case, steps)
    _check_row_order(case)
    _check_older_carry(case)
    _check_select(case)
    _check_teacher_forcing(case, steps)
    _check_gradients(case)
    _check_chunks(case, steps)
    _check_text(case)


@dataclass(frozen=True, slots=True)
class _Case:
    lm: Any
    tokens: Tensor
    prompt_length: int
    tolerance: float

    @property
    def batch(self) -> int:
        return self.tokens.shape[0]

    @property
    def middle(self) -> int:
        return self.prompt_length + 1

    def require_close(self, found: Tensor | None, expected: Tensor | None, what: str) -> None:
        if found is None or expected is None:
            _require(found is expected, f"{what}: one is None and the other is not.")
            return
        _require(
            found.shape == expected.shape,
            f"{what}: shapes are {tuple(found.shape)} and {tuple(expected.shape)}.",
        )
        gap = _gap(found, expected)
        _require(
            gap <= self.tolerance,
            f"{what}: they differ by {gap:.3g}, more than the tolerance {self.tolerance:g}.",
        )

    def require_same_step(self, found: LMStep, expected: LMStep, what: str) -> None:
        self.require_close(found.log_probs, expected.log_probs, f"{what} (log_probs)")
        self.require_close(found.hidden, expected.hidden, f"{what} (hidden)")


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise AssertionError(message)


def _gap(found: Tensor, expected: Tensor) -> float:
    """Largest difference; infinite where only one of them is finite, or either is NaN."""
    found, expected = found.detach().double(), expected.detach().double()
    gaps = torch.where(found == expected, 0.0, (found - expected).abs())
    return float(gaps.nan_to_num(nan=float("inf")).max())


def _check_facts(lm: LanguageModel, length: int) -> None:
    _require(
        isinstance(lm, LanguageModel),
        f"{type(lm).__name__} lacks a method or fact of the LanguageModel protocol.",
    )
    _require(
        isinstance(lm.vocab_size, int) and lm.vocab_size >= 1,
        f"vocab_size must be a positive integer; got {lm.vocab_size!r}.",
    )
    eos = lm.eos_token_id
    _require(
        eos is None or 0 <= eos < lm.vocab_size,
        f"eos_token_id must be None or below vocab_size {lm.vocab_size}; got {eos!r}.",
    )
    _require(
        lm.context_length is None or length <= lm.context_length,
        f"The check reads {length} tokens and the model's context holds {lm.context_length}: give "
        "check_language_model a smaller prompt_length or num_steps.",
    )


def _check_step(case: _Case, step: LMStep, rows: int, where: str) -> None:
    log_probs, hidden = step.log_probs, step.hidden
    _require(
        log_probs.shape == (rows, case.lm.vocab_size),
        f"{where}: log_probs must have shape ({rows}, {case.lm.vocab_size}); got "
        f"{tuple(log_probs.shape)}.",
    )
    _require(
        log_probs.dtype in (torch.float32, torch.float64),
        f"{where}: log_probs must be float32 or float64; got {log_probs.dtype}.",
    )
    _require(not log_probs.requires_grad, f"{where}: log_probs must not carry a gradient.")
    total = log_probs.double().exp().sum(-1)
    _require(
        bool(((total - 1).abs() < 1e-4).all()),
        f"{where}: probabilities must sum to 1 over the vocabulary; they sum to "
        f"{total.min():.6g} to {total.max():.6g}.",
    )
    _require(
        hidden is None or (hidden.ndim == 2 and hidden.shape[0] == rows),
        f"{where}: hidden must be None or have shape ({rows}, width).",
    )


def _check_stepping(case: _Case) -> list[LMStep]:
    lm, tokens = case.lm, case.tokens
    step = lm.prefill(tokens[:, : case.prompt_length])
    _check_step(case, step, case.batch, "prefill")
    steps = [step]
    for at in range(case.prompt_length, tokens.shape[1] - 1):
        step = lm.advance(tokens[:, at], step.carry)
        _check_step(case, step, case.batch, f"advance to {at + 1} tokens")
        whole = lm.prefill(tokens[:, : at + 1])
        case.require_same_step(step, whole, f"advance and prefill of {at + 1} tokens must agree")
        steps.append(step)
    return steps


def _check_model_softmax(case: _Case, steps: list[LMStep]) -> None:
    """Where the model is a transformers one, its own logits say what temperature 1 is."""
    model = getattr(case.lm, "model", None)
    if not isinstance(model, torch.nn.Module) or not hasattr(model, "get_output_embeddings"):
        return
    with torch.no_grad():
        logits = model(input_ids=case.tokens[:, :-1], use_cache=False).logits[:, -1]
    expected = torch.log_softmax(logits.to(steps[-1].log_probs.dtype), dim=-1)
    case.require_close(
        steps[-1].log_probs, expected, "log_probs must be the model's full softmax, temperature 1"
    )


def _check_row_order(case: _Case) -> None:
    rows = torch.arange(case.batch - 1, -1, -1, device=case.tokens.device)
    whole = case.lm.prefill(case.tokens[:, :-1])
    for name, chosen in (("in reverse order", rows), ("alone", rows[:1])):
        some = case.lm.prefill(case.tokens[chosen, :-1])
        case.require_close(
            some.log_probs, whole.log_probs[chosen], f"a row read {name} must answer the same"
        )


def _picks(case: _Case) -> list[Tensor]:
    """Selections that reverse, repeat, drop and grow."""
    last = case.batch - 1
    rows = ([last, 0, 0, *range(1, case.batch)], [last], list(range(last, -1, -1)))
    return [torch.tensor(pick, device=case.tokens.device) for pick in rows]


def _check_select(case: _Case) -> None:
    lm, at = case.lm, case.middle
    step = lm.prefill(case.tokens[:, :at])
    for rows in _picks(case):
        prefix = case.tokens[rows]
        selected = step.carry.select(rows)
        found = lm.advance(prefix[:, at], selected)
        expected = lm.prefill(prefix[:, : at + 1])
        what = f"select({rows.tolist()}), then advance, must equal prefill of these rows"
        case.require_same_step(found, expected, what)
        again = torch.arange(len(rows) - 1, -1, -1, device=rows.device)
        found = lm.advance(prefix[again][:, at], selected.select(again))
        expected = lm.prefill(prefix[again][:, : at + 1])
        case.require_same_step(found, expected, f"{what}, also when selected twice")


def _check_older_carry(case: _Case) -> None:
    lm, at = case.lm, case.middle
    first = lm.prefill(case.tokens[:, : at - 1])
    step = lm.advance(case.tokens[:, at - 1], first.carry)
    carry, rows = step.carry, _picks(case)[0]
    token, other = case.tokens[:, at], (case.tokens[:, at] + 1) % lm.vocab_size

    def answers() -> list[Tensor]:
        ahead = [lm.advance(token, carry), lm.advance(token[rows], carry.select(rows))]
        found = [value for step in ahead for value in (step.log_probs, step.hidden)]
        return [value for value in found if value is not None]

    before = answers()
    kept = [value.clone() for value in before]
    lm.advance(token, lm.advance(other, carry).carry)
    selected = lm.advance(other[rows], carry.select(rows)).carry
    lm.advance(token[rows], selected.select(rows.sort()[1]))
    for value, copy in zip(before, kept, strict=True):
        _require(torch.equal(value, copy), "later calls wrote into an answer given before.")
    for value, copy in zip(answers(), kept, strict=True):
        gap = _gap(value, copy)
        _require(
            torch.equal(value, copy),
            f"advance or select changed an older carry: it answers differently by {gap:.3g}.",
        )


def _check_teacher_forcing(case: _Case, steps: list[LMStep]) -> None:
    lm, prompt_length = case.lm, case.prompt_length
    chosen = case.tokens[:, prompt_length:]
    with torch.no_grad():
        forced = lm.teacher_force(case.tokens, prompt_length)
        log_prob = lm.log_prob(case.tokens, prompt_length)
    for at, step in enumerate(steps):
        what = f"teacher_force and stepping must agree on token {at + 1} after the prompt"
        case.require_close(forced.log_probs[:, at], step.log_probs, f"{what} (log_probs)")
        hidden = None if forced.hidden is None else forced.hidden[:, at]
        case.require_close(hidden, step.hidden, f"{what} (hidden)")
    case.require_close(
        log_prob, forced.chosen(chosen), "log_prob must be teacher_force's at the given tokens"
    )


def _check_gradients(case: _Case) -> None:
    model = getattr(case.lm, "model", None)
    if not isinstance(model, torch.nn.Module):
        return
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        return
    with torch.enable_grad():
        forced = case.lm.teacher_force(case.tokens, case.prompt_length)
        log_prob = case.lm.log_prob(case.tokens, case.prompt_length)
    answers = {"teacher_force": forced.log_probs[..., 0], "log_prob": log_prob}
    if forced.hidden is not None:
        answers["teacher_force(...).hidden"] = forced.hidden[..., 0]
    for name, values in answers.items():
        _require(values.requires_grad, f"{name} must keep gradients of the model's parameters.")
        gradients = torch.autograd.grad(
            values.sum(), parameters, allow_unused=True, retain_graph=True
        )
        flows = any(g is not None and bool((g != 0).any()) for g in gradients)
        _require(flows, f"{name} must keep gradients: all of them are zero.")


def _check_chunks(case: _Case, steps: list[LMStep]) -> None:
    lm = case.lm
    if not hasattr(lm, "max_rows"):
        return
    before = lm.max_rows
    forced = lm.log_prob(case.tokens, case.prompt_length)
    try:
        for max_rows in (1, case.batch - 1):
            lm.max_rows = max_rows
            step = lm.prefill(case.tokens[:, : case.prompt_length])
            for at, expected in enumerate(steps):
                what = f"with max_rows={max_rows} answers must stay the same"
                case.require_same_step(step, expected, what)
                if at + 1 < len(steps):
                    every = torch.arange(case.batch, device=case.tokens.device)
                    carry = step.carry.select(every) if at % 2 else step.carry
                    step = lm.advance(case.tokens[:, case.prompt_length + at], carry)
            case.require_close(lm.log_prob(case.tokens, case.prompt_length), forced, what)
    finally:
        lm.max_rows = before


def _check_text(case: _Case) -> None:
    texts = case.lm.decode(case.tokens)
    _require(
        len(texts) == case.batch and all(isinstance(text, str) for text in texts),
        f"decode must give one text for each row; got {texts!r}.",
    )
    for token in {0, case.lm.vocab_size - 1, *case.tokens.flatten().tolist()}:
        text = case.lm.token_text(token)
        _require(isinstance(text, str), f"token_text({token}) must be a text; got {text!r}.")
