"""Named errors, and the checks that raise them with the value, what is allowed and what to do."""

from __future__ import annotations

import contextlib
import importlib
import operator
from collections.abc import Callable, Iterable, Iterator
from typing import Any, SupportsIndex

import lazy_loader

# Optional packages that modules import at their head, and the extra that brings each.
_EXTRA_OF = {
    **dict.fromkeys(("IPython", "anywidget", "ipywidgets", "pandas", "plotly", "traitlets"), "lab"),
    "transformers": "hf",
}


class TsmcError(Exception):
    """Base of every error that this package raises on purpose.

    ``trace`` holds what a run had recorded when it stopped, or None.
    """

    trace: Any = None


class AllParticlesDeadError(TsmcError, RuntimeError):
    """Every particle of a run has weight zero, so the run cannot go on.

    ``record`` holds the step at which it happened.
    """

    record: Any = None


class PotentialError(TsmcError, ValueError):
    """A potential raised, or returned NaN, +inf or a wrong shape."""


class ModelOutputError(TsmcError, ValueError):
    """A model, twist or proposal gave NaN or +inf, or no next token any probability."""


class ContextLengthError(TsmcError, ValueError):
    """Prompt and generated tokens together do not fit the model's context."""


class UnknownTokenError(TsmcError, ValueError):
    """A text, word or token that the model's vocabulary does not have."""


class ControlTokenError(TsmcError, ValueError):
    """A text that the tokenizer would read as a control token, such as the one that ends texts."""


class UnsupportedModelError(TsmcError, TypeError):
    """A model, cache or tokenizer that the package cannot use correctly."""


class NoTokenizerError(UnsupportedModelError):
    """Text is needed from a model that has no tokenizer."""


class BudgetError(TsmcError, RuntimeError):
    """An exact computation would need, or has used up, more than its budget."""


class NoSignalError(TsmcError, ValueError):
    """No text of a batch has positive weight, so that there is nothing to learn from."""


class CheckpointError(TsmcError, ValueError):
    """A file is no checkpoint of the training that is to go on from it."""


class TraceFormatError(TsmcError, ValueError):
    """A file is not a trace of this package, is damaged, or is of a newer version."""


class TwistFormatError(TsmcError, ValueError):
    """Files are no twist of this package, are damaged or newer, or belong to another base model."""


class MissingExtraError(TsmcError, ImportError):
    """An optional package is needed and not installed."""


def message_of(error: BaseException) -> str:
    """What an error says, or its name where it says nothing."""
    return str(error) or type(error).__name__


def as_exception(error: BaseException) -> Exception:
    """The error itself, or one that says that code raised ``SystemExit`` or its like."""
    if isinstance(error, Exception):
        return error
    wrapped = RuntimeError(f"{type(error).__name__} was raised: {error}")
    wrapped.__cause__ = error
    return wrapped


def check_one_of(name: str, value: object, allowed: Iterable[object]) -> None:
    """Raise ValueError unless ``value`` is one of ``allowed``."""
    allowed = tuple(allowed)
    if value not in allowed:
        names = ", ".join(str(choice) for choice in allowed)
        raise ValueError(f"{name} must be one of {names}; got {value!r}.")


def check_integer(name: str, value: Any, *, at_least: int = 1) -> None:
    """Raise ValueError unless ``value`` is an integer of at least ``at_least``."""
    whole = isinstance(value, SupportsIndex) and not isinstance(value, bool)
    if not whole or operator.index(value) < at_least:
        raise ValueError(f"{name} must be an integer of at least {at_least}; got {value!r}.")


def check_number(name: str, value: Any, interval: str) -> None:
    """Raise ValueError unless ``value`` is a number in an interval such as "(0, inf)"."""
    low, high = (float(end) for end in interval[1:-1].split(","))
    number = isinstance(value, float | int) and not isinstance(value, bool)
    closed = [end for end, bracket in ((low, interval[0]), (high, interval[-1])) if bracket in "[]"]
    if not number or not (low < value < high or value in closed):
        raise ValueError(f"{name} must be a number in {interval}; got {value!r}.")


def missing_extra(package: str, extra: str, purpose: str) -> MissingExtraError:
    """Build the error for an optional ``package`` that ``purpose`` needs."""
    return MissingExtraError(
        f"{purpose} needs {package}, which is not installed: pip install 'tsmc-widgets[{extra}]'."
    )


def import_extra(module: str, extra: str, purpose: str) -> Any:
    """An optional module that ``purpose`` needs.

    Raises:
        MissingExtraError: it is not installed; says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0].replace("_", "-")
        raise missing_extra(package, extra, purpose) from error


@contextlib.contextmanager
def extras_named(purpose: str) -> Iterator[None]:
    """Raise MissingExtraError where an import in the block lacks an optional package."""
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _EXTRA_OF:
            raise
        raise missing_extra(missing, _EXTRA_OF[missing], purpose) from error


def attach_lazy_names(
    package: str, file: str
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """``__getattr__``, ``__dir__`` and ``__all__`` of a package whose stub lists its public names.

    Like ``lazy_loader.attach_stub``, but a name whose module needs an optional package that is not
    installed raises MissingExtraError.
    """
    load, list_names, public = lazy_loader.attach_stub(package, file)

    def load_name(name: str) -> Any:
        if name not in public:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        with extras_named(name):
            return load(name)

    return load_name, list_names, public
