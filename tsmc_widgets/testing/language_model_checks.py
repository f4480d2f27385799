"""Contract of a language model, and what all checks of stepping objects share."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from tsmc_widgets.errors import check_integer
from tsmc_widgets.models.protocol import Carry, LanguageModel, LMStep, network, optional, readable
from tsmc_widgets.models.tempered import Tempered

MIN_STEPS = 4
MIN_BATCH = 2


def require(holds: bool, message: str) -> None:
    """Raise AssertionError with a message unless something holds."""
    if not holds:
        raise AssertionError(message)


def largest_gap(found: Tensor, expected: Tensor) -> float:
    """Largest difference; infinite where only one of them is finite, or either is NaN."""
    found, expected = found.detach().double(), expected.detach().double()
    gaps = torch.where(found == expected, 0.0, (found - expected).abs())
    return float(gaps.nan_to_num(nan=float("inf")).max())


def require_floats(
    values: Tensor, shape: tuple[int, ...], what: str, device: torch.device | None = None
) -> None:
    """Raise AssertionError unless values are of a shape, float32 or float64, and on a device."""
    require(
        values.shape == shape,
        f"{what} must have shape {tuple(shape)}; got {tuple(values.shape)}.",
    )
    require(
        values.dtype in (torch.float32, torch.float64),
        f"{what} must be float32 or float64; got {values.dtype}.",
    )
    require(
        device is None or values.device == device,
        f"{what} must lie on the base model's device {device}; it lies on {values.device}.",
    )


def require_normalised(log_probs: Tensor, what: str) -> None:
    """Raise AssertionError unless each row is the log of probabilities that sum to 1."""
    total = log_probs.double().exp().sum(-1)
    require(
        bool(((total - 1).abs() < 1e-4).all()),
        f"{what} must sum to 1 over the vocabulary; they sum to {total.min():.6g} to "
        f"{total.max():.6g}.",
    )


def require_line(described: Any) -> None:
    """Raise AssertionError unless ``describe()`` gave one line of text."""
    require(
        isinstance(described, str) and bool(described.strip()) and "\n" not in described,
        f"describe() must give one line of text; got {described!r}.",
    )


def gradients_of(values: Tensor, parameters: Sequence[Tensor]) -> list[Tensor | None]:
    """Gradients of the sum of values; None where a parameter has no part in it."""
    return list(torch.autograd.grad(values.sum(), parameters, allow_unused=True, retain_graph=True))


def flows(gradients: list[Tensor | None]) -> bool:
    """Whether any gradient is not zero."""
    return any(gradient is not None and bool((gradient != 0).any()) for gradient in gradients)


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


class SteppingCase:
    """Something that reads token by token, tried on random tokens.

    A subclass gives ``prefill``, ``advance`` and ``check``.

    Args:
        lm: the base model.
        prompt_length: tokens read by the first ``prefill``.
        num_steps: tokens after them; the last is predicted and never read.
        batch: number of prefixes.
        seed: of the random tokens.
        tolerance: largest difference between two ways to the same answer.
    """

    def __init__(
        self,
        lm: LanguageModel,
        *,
        prompt_length: int,
        num_steps: int,
        batch: int,
        seed: int,
        tolerance: float,
    ) -> None:
        check_integer("prompt_length", prompt_length, at_least=0)
        check_integer("num_steps", num_steps, at_least=MIN_STEPS)
        check_integer("batch", batch, at_least=MIN_BATCH)
        length = prompt_length + num_steps
        require(
            lm.context_length is None or length <= lm.context_length,
            f"The check reads {length} tokens and the model's context holds {lm.context_length}: "
            "give it a smaller prompt_length or num_steps.",
        )
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.randint(lm.vocab_size, (batch, length), generator=generator)
        self.lm, self.tokens = lm, tokens.to(lm.device)
        self.batch, self.prompt_length, self.tolerance = batch, prompt_length, tolerance
        self.device = self.tokens.device

    def prefill(self, tokens: Tensor) -> Answer:
        """Read whole prefixes."""
        raise NotImplementedError

    def advance(self, tokens: Tensor, carry: Any) -> Answer:
        """Read one more token for each row."""
        raise NotImplementedError

    def check(self, answer: Answer, rows: int, where: str) -> None:
        """Look at one answer for so many rows."""
        raise NotImplementedError

    @property
    def chosen(self) -> Int[Tensor, "batch steps"]:
        """The tokens after the prompt."""
        return self.tokens[:, self.prompt_length :]

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

    def check_stepping(self) -> list[Answer]:
        """Check one step after another, and give the answers along the tokens."""
        tokens, given = self.tokens, self.tokens.clone()
        answer = self.prefill(tokens[:, : self.prompt_length])
        self.check(answer, self.batch, "prefill")
        answers = [answer]
        for at in range(self.prompt_length, tokens.shape[1] - 1):
            answer = self.advance(tokens[:, at], answer.carry)
            require(torch.equal(tokens, given), "advance wrote into the tokens it was given.")
            self.check(answer, self.batch, f"advance to {at + 1} tokens")
            whole = self.prefill(tokens[:, : at + 1])
            self.require_same(answer, whole, f"advance and prefill of {at + 1} tokens must agree")
            require(torch.equal(tokens, given), "prefill wrote into the tokens it was given.")
            answers.append(answer)
        self._check_older_carry()
        self._check_select()
        self._check_row_order()
        return answers

    def _check_row_order(self) -> None:
        rows = torch.arange(self.batch - 1, -1, -1, device=self.device)
        whole = self.prefill(self.tokens[:, :-1])
        for name, chosen in (("in reverse order", rows), ("alone", rows[:1])):
            some = self.prefill(self.tokens[chosen, :-1])
            for key, value in whole.values.items():
                expected = None if value is None else value[chosen]
                what = f"a row read {name} must answer the same ({key})"
                self.require_close(some.values[key], expected, what)

    def _picks(self) -> list[Tensor]:
        """Selections that reverse, repeat, drop and grow."""
        last = self.batch - 1
        rows = ([last, 0, 0, *range(1, self.batch)], [last], list(range(last, -1, -1)))
        return [torch.tensor(pick, device=self.device) for pick in rows]

    def _check_select(self) -> None:
        at = self.prompt_length + 1
        answer = self.prefill(self.tokens[:, :at])
        for rows in self._picks():
            what = f"select({rows.tolist()}), then advance, must equal prefill of these rows"
            prefix, selected = self.tokens[rows], answer.carry.select(rows)
            found = self.advance(prefix[:, at], selected)
            self.require_same(found, self.prefill(prefix[:, : at + 1]), what)
            again = torch.arange(len(rows) - 1, -1, -1, device=rows.device)
            prefix = prefix[again]
            found = self.advance(prefix[:, at], selected.select(again))
            expected = self.prefill(prefix[:, : at + 1])
            self.require_same(found, expected, f"{what}, also when selected twice")

    def _check_older_carry(self) -> None:
        at = self.prompt_length + 1
        first = self.prefill(self.tokens[:, : at - 1])
        carry, rows = self.advance(self.tokens[:, at - 1], first.carry).carry, self._picks()[0]
        token, other = self.tokens[:, at], (self.tokens[:, at] + 1) % self.lm.vocab_size
        once, twice = self.advance(token, carry), self.advance(token, carry)
        self.require_same(
            twice, once, "advance must leave an older carry as it was: the same call twice"
        )

        def answers() -> list[Tensor]:
            ahead = [self.advance(token, carry), self.advance(token[rows], carry.select(rows))]
            found = [value for answer in ahead for value in answer.values.values()]
            return [value for value in found if value is not None]

        before = answers()
        kept = [value.clone() for value in before]
        self.advance(token, self.advance(other, carry).carry)
        selected = self.advance(other[rows], carry.select(rows)).carry
        self.advance(token[rows], selected.select(rows.sort()[1]))
        for value, clone in zip(before, kept, strict=True):
            require(torch.equal(value, clone), "later calls wrote into an answer given before.")
        for value, clone in zip(answers(), kept, strict=True):
            require(
                torch.equal(value, clone),
                "advance or select changed an older carry: it answers differently by "
                f"{largest_gap(value, clone):.3g}.",
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
            same answer.

    Raises:
        AssertionError: says which part of the contract the model breaks.
    """
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
    case = _ModelCase(
        lm, prompt_length=prompt_length, num_steps=num_steps, batch=batch, seed=seed,
        tolerance=tolerance,
    )  # fmt: skip
    answers = case.check_stepping()
    model = network(lm)
    if hasattr(model, "get_output_embeddings"):
        _check_softmax(case, model, answers[-1])
    _check_teacher_forcing(case, answers)
    if model is not None:
        _check_gradients(case, model)
    if optional(lm, "max_rows") is not None:
        _check_chunks(case, answers)
    _check_text(case)


class _ModelCase(SteppingCase):
    def prefill(self, tokens: Tensor) -> Answer:
        return self._answer(self.lm.prefill(tokens))

    def advance(self, tokens: Tensor, carry: Any) -> Answer:
        return self._answer(self.lm.advance(tokens, carry))

    def _answer(self, step: LMStep) -> Answer:
        return Answer({"log_probs": step.log_probs, "hidden": step.hidden}, step.carry)

    def check(self, answer: Answer, rows: int, where: str) -> None:
        log_probs, hidden = answer.values["log_probs"], answer.values["hidden"]
        require_floats(log_probs, (rows, self.lm.vocab_size), f"{where}: log_probs")
        require(not log_probs.requires_grad, f"{where}: log_probs must not carry a gradient.")
        require_normalised(log_probs, f"{where}: probabilities")
        require(
            hidden is None or (hidden.ndim == 2 and hidden.shape[0] == rows),
            f"{where}: hidden must be None or have shape ({rows}, width).",
        )


def _check_teacher_forcing(case: SteppingCase, answers: list[Answer]) -> None:
    with torch.no_grad():
        forced = case.lm.teacher_force(case.tokens, case.prompt_length)
        log_prob = case.lm.log_prob(case.tokens, case.prompt_length)
    for at, answer in enumerate(answers):
        hidden = None if forced.hidden is None else forced.hidden[:, at]
        found = Answer({"log_probs": forced.log_probs[:, at], "hidden": hidden}, None)
        what = f"teacher_force and stepping must agree on token {at + 1} after the prompt"
        case.require_same(found, answer, what)
    case.require_close(
        log_prob, forced.chosen(case.chosen), "log_prob must be teacher_force's at the given tokens"
    )


def _check_softmax(case: SteppingCase, model: Any, answer: Answer) -> None:
    """The model's own logits, in float32 at least, say what temperature 1 is.

    A model may answer in half precision: as near to them as its logits are, but for a factor of 2.
    """
    found, own = answer.values["log_probs"], model
    textless = getattr(case.lm, "_textless", [])
    require(bool((found[:, textless] == -torch.inf).all()), "ids without a text must have p0 = 0.")
    if next(model.parameters()).dtype.itemsize < 4:
        own = copy.deepcopy(model).float()
    with torch.no_grad():
        expected, rough = (
            each(input_ids=case.tokens[:, :-1], use_cache=False).logits[:, -1].to(found.dtype)
            for each in (own, model)
        )
    for logits in (expected, rough):
        logits[:, textless] = -torch.inf
    expected, rough = expected.log_softmax(-1), rough.log_softmax(-1)
    what = "the model's full softmax, temperature 1"
    if isinstance(case.lm, Tempered):
        expected, rough = case.lm.tempered(expected), case.lm.tempered(rough)
        what = "what temperature and cuts leave of the model's softmax"
    rounding = 2 * largest_gap(rough, expected)
    gap = largest_gap(found, expected)
    require(
        gap <= case.tolerance + rounding,
        f"log_probs must be {what}: they differ by "
        f"{gap:.3g}, more than the tolerance {case.tolerance + rounding:g}.",
    )


def _check_gradients(case: SteppingCase, model: torch.nn.Module) -> None:
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
        require(values.requires_grad, f"{name} must keep gradients of the model's parameters.")
        kept = flows(gradients_of(values, parameters))
        require(kept, f"{name} must keep gradients: all of them are zero.")


def _check_chunks(case: SteppingCase, answers: list[Answer]) -> None:
    lm: Any = case.lm.lm if isinstance(case.lm, Tempered) else case.lm
    before = lm.max_rows
    forced = case.lm.log_prob(case.tokens, case.prompt_length)
    try:
        for max_rows in (1, case.batch - 1):
            lm.max_rows = max_rows
            what = f"with max_rows={max_rows} answers must stay the same"
            answer = case.prefill(case.tokens[:, : case.prompt_length])
            for at, expected in enumerate(answers):
                case.require_same(answer, expected, what)
                if at + 1 < len(answers):
                    every = torch.arange(case.batch, device=case.device)
                    carry = answer.carry.select(every) if at % 2 else answer.carry
                    answer = case.advance(case.chosen[:, at], carry)
            found = case.lm.log_prob(case.tokens, case.prompt_length)
            case.require_close(found, forced, what)
    finally:
        lm.max_rows = before


def _check_text(case: SteppingCase) -> None:
    texts = readable(case.lm, case.tokens)
    require(
        len(texts) == case.batch and all(isinstance(text, str) for text in texts),
        f"decode must give one text for each row; got {texts!r}.",
    )
    for token in {0, case.lm.vocab_size - 1, *case.tokens.flatten().tolist()}:
        text = case.lm.token_text(token)
        require(isinstance(text, str), f"token_text({token}) must be a text; got {text!r}.")
