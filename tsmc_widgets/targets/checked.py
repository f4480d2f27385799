"""Checked evaluation of potentials: shapes, NaN and +inf refused with the text that caused them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from tsmc_widgets.errors import ModelOutputError, PotentialError, TsmcError, check_number, quoted

ShowRow = Callable[[Tensor], str]
"""Says what a row of tokens is, in words: ``the text 'a b c'``."""


class FailedOnText(Exception):
    """Carries the text on which other people's code raised; its cause is what they raised."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


def show_text(text: str) -> str:
    """A text as error messages quote it, cut in the middle where it is long."""
    return f"the text {quoted(text)}"


def show_tokens(row: Int[Tensor, " steps"]) -> str:
    """A row of tokens where no text is at hand."""
    return f"the tokens {row.tolist()}"


def log_phi_checked(
    log_phi: Callable[[Tensor], Any],
    tokens: Int[Tensor, "batch steps"],
    *,
    name: str,
    show_row: ShowRow = show_tokens,
) -> Float64[Tensor, " batch"]:
    """Log phi of each row as float64, or PotentialError that says what is wrong and where."""
    values = call_checked(log_phi, tokens, name=name, show_row=show_row)
    return as_log_phi(
        values, tokens.shape[:1], name=name, show=lambda i: show_row(tokens[i[0]])
    ).to(tokens.device)


def log_phi_next_checked(
    log_phi_next: Callable[[Tensor], Any],
    prefixes: Int[Tensor, "batch shorter"],
    vocab_size: int,
    *,
    name: str,
    show_row: ShowRow = show_tokens,
) -> Float64[Tensor, "batch vocab"]:
    """Log phi of every row with every last token, checked like ``log_phi_checked``."""

    def show(index: tuple[int, ...]) -> str:
        return f"{show_row(prefixes[index[0]])} followed by token {index[1]}"

    values = call_checked(log_phi_next, prefixes, name=name, show_row=show_row)
    shape = (prefixes.shape[0], vocab_size)
    return as_log_phi(values, shape, name=name, show=show).to(prefixes.device)


def call_checked(
    function: Callable[[Tensor], Any],
    tokens: Int[Tensor, "batch steps"],
    *,
    name: str,
    show_row: ShowRow,
) -> Any:
    """``call_on`` of rows of tokens: a copy, so that what is written there is nobody else's."""
    return call_on(lambda rows: function(rows.clone()), tokens, name, tokens.shape[1], show_row)


def call_on(
    function: Callable[[Any], Any],
    items: Any,
    name: str,
    step: int,
    show: Callable[[Any], str],
    kind: str = "rows",
) -> Any:
    """Call other people's code without gradients; what it raises becomes a PotentialError.

    ``SystemExit`` and its like too, which would end a thread in silence; not an interrupt.
    """

    def raised(error: BaseException | None, where: str) -> PotentialError:
        what = f"{type(error).__name__}: {error}"
        return PotentialError(f"{name} raised {what} at step {step} on {where}.")

    try:
        with torch.no_grad():
            return function(items)
    except (TsmcError, KeyboardInterrupt):
        raise
    except FailedOnText as failure:
        raise raised(failure.__cause__, show_text(failure.text)) from failure.__cause__
    except BaseException as error:
        where = show(items[0]) if len(items) else "no rows at all"
        others = f" (the first of {len(items)} {kind})" if len(items) > 1 else ""
        raise raised(error, f"{where}{others}") from error


def as_log_phi(
    values: Any,
    shape: Sequence[int],
    *,
    name: str,
    show: Callable[[tuple[int, ...]], str],
) -> Float64[Tensor, "*shape"]:
    """What a potential returned as a float64 tensor of ``shape``: finite numbers or -inf."""
    tensor = _as_tensor(values, name)
    if tuple(tensor.shape) != tuple(shape):
        raise PotentialError(
            f"{name} must return log phi of shape {tuple(shape)}, one number for each row; "
            f"got shape {tuple(tensor.shape)}."
        )
    bad = tensor.isnan() | (tensor == math.inf)
    if bool(bad.any()):
        index = tuple(int(i) for i in bad.nonzero()[0])
        raise PotentialError(
            f"{name} gave log phi = {float(tensor[index])} for {show(index)}. log phi must be a "
            "number in nats, or -inf for a text that is ruled out: look for a division by zero or "
            "the log of a negative number."
        )
    return tensor


def check_answer(
    values: Float[Tensor, "batch n"],
    who: str,
    tokens: Callable[[], Int[Tensor, "batch t"]],
    show_row: ShowRow,
    *,
    weighs: bool = False,
) -> None:
    """Raise ModelOutputError where a model or twist gave what nothing can be drawn or weighed by.

    Args:
        values: log probabilities of all V next tokens, or log psi.
        who: gave them, in words that begin a sentence.
        tokens: gives the generated tokens that each row was read after.
        show_row: says what a row of tokens is.
        weighs: whether these are log psi, which may be -inf for all of V.
    """
    top = values.amax(-1)  # NaN where there is one
    good = top < math.inf if weighs else torch.isfinite(top)
    if bool(good.all()):
        return
    row = int((~good).nonzero()[0, 0])
    after, worst = tokens()[row], float(top[row])
    what = "NaN" if math.isnan(worst) else "+inf" if worst > 0 else "-inf for all tokens"
    raise ModelOutputError(
        f"{who} gave {what} at step {len(after) + 1}, after {show_row(after)}. Look for weights "
        "that are not finite, or a number format that is too narrow."
    )


def as_numbers(values: Any) -> Tensor:
    """Tensors as they are, without gradients; all else in float64, as Python counts, or bool."""
    if isinstance(values, Tensor):
        return values.detach()
    if isinstance(values, list | tuple) and any(isinstance(each, np.ndarray) for each in values):
        values = np.asarray(values)
    if isinstance(values, np.ndarray):
        plain = values.dtype.kind in "bc"
        # A copy: arrays may be read-only, backwards, of another byte order, or of objects.
        return torch.tensor(values if plain else values.astype(np.float64))
    tensor = torch.as_tensor(values)
    if tensor.dtype == torch.bool or tensor.is_complex():
        return tensor
    # By itself torch reads a list of Python's numbers in float32.
    return torch.as_tensor(values, dtype=torch.float64).detach()


def as_ids(
    name: str, values: Any, *, ndim: int | None = None, device: torch.device | None = None
) -> Int[Tensor, " ..."]:
    """Integers such as token ids, of a tensor, an array or lists; an error for anything else."""
    try:
        ids = torch.as_tensor(values, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{name} must hold token ids, in a tensor, an array or lists; got {quoted(values)}."
        ) from error
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ValueError(f"{name} must hold token ids; got dtype {ids.dtype}.")
    if ids.ndim != (ids.ndim if ndim is None else ndim):
        axes = "one axis" if ndim == 1 else f"{ndim} axes"
        raise ValueError(f"{name} must have {axes}; got shape {tuple(ids.shape)}.")
    return ids.long()


def check_bound(name: str, value: Any) -> float | None:
    """An upper bound on log phi or on a reward as a float, or PotentialError."""
    if value is None:
        return None
    try:
        return check_number(name, value, "(-inf, inf)")
    except ValueError as error:
        raise PotentialError(
            f"{name} must be a finite number in nats or None; got {quoted(value)}."
        ) from error


def _as_tensor(values: Any, name: str) -> Float64[Tensor, "*shape"]:
    try:
        tensor = as_numbers(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise PotentialError(
            f"{name} must return a tensor of log phi, one number for each row; "
            f"got {type(values).__name__}."
        ) from error
    if tensor.dtype == torch.bool or tensor.is_complex():
        raise PotentialError(
            f"{name} must return log phi in nats as floating point numbers; got {tensor.dtype}. "
            "For an indicator return 0.0 where it holds and -inf where it does not."
        )
    return tensor.double()
