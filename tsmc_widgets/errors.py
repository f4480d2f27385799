"""Named errors, and the checks that raise them with the value, what is allowed and what to do."""

from __future__ import annotations

import contextlib
import importlib
import numbers
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path, PurePath
from typing import Any

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
    """A text that spells a control token of the model, such as the one that ends a text."""


class UnsupportedModelError(TsmcError, TypeError):
    """A model, cache or tokenizer that the package cannot use correctly."""


class NoTokenizerError(UnsupportedModelError):
    """Text is needed from a model that has no tokenizer."""


class BudgetError(TsmcError, RuntimeError):
    """An exact computation would need, or has used up, more than its budget.

    Attributes:
        samples: those that rejection found until then; None for what draws none.
    """

    def __init__(self, message: str, samples: Any = None) -> None:
        super().__init__(message)
        self.samples = samples


class MemoryLimitError(TsmcError, MemoryError):
    """A run would, by estimate, take more memory than it is allowed; nothing was begun."""


class NoSignalError(TsmcError, ValueError):
    """No text of a batch has positive weight, so that there is nothing to learn from."""


class CheckpointError(TsmcError, ValueError):
    """A file is no checkpoint of the training that is to go on from it."""


class TraceFormatError(TsmcError, ValueError):
    """A file is not a trace of this package, is damaged, or is of a newer version."""


class TwistFormatError(TsmcError, ValueError):
    """Files are no twist of this package, are damaged or newer, or belong to another base model."""


class PageFormatError(TsmcError, ValueError):
    """A file is no saved page of this package, is damaged, or is of a newer version."""


class SpecFormatError(TsmcError, ValueError):
    """JSON that describes no run."""


class MissingExtraError(TsmcError, ImportError):
    """An optional package is needed and not installed."""


class Stopped(KeyboardInterrupt):
    """An interrupt that the program itself asked for, with ``stop_when``."""


_STOPPING: ContextVar[Callable[[], bool]] = ContextVar("stopping", default=lambda: False)


@contextlib.contextmanager
def stop_when(stopping: Callable[[], bool]) -> Iterator[None]:
    """Let models in the block end a pass between two chunks of rows once ``stopping()``."""
    token = _STOPPING.set(stopping)
    try:
        yield
    finally:
        _STOPPING.reset(token)


def check_stop() -> None:
    """Raise ``Stopped`` where the work in progress is no longer wanted."""
    if _STOPPING.get()():
        raise Stopped


QUOTED_CHARACTERS = 200
"""As many of a value are quoted in a message."""
MESSAGE_CHARACTERS = 1000
"""As many of a message are shown on a page."""


def shortened(text: str, most: int) -> str:
    """A text with its middle left out where it is longer than ``most`` characters."""
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-(most // 2) :]}"


def quoted(value: Any) -> str:
    """A value as messages quote it: its ``repr``, short."""
    if isinstance(value, str):
        return repr(shortened(value, QUOTED_CHARACTERS))
    try:
        return shortened(repr(value), QUOTED_CHARACTERS)
    except ValueError:  # Python shows no integer of so many digits.
        return f"an integer of {value.bit_length()} bits"


def listed(values: Iterable[object], most: int = 50) -> str:
    """Values with commas between them; of very many, the first and how many more there are."""
    names = [shortened(str(value), QUOTED_CHARACTERS) for value in values]
    more = [f"and {len(names) - most} more"] if len(names) > most else []
    return ", ".join([*names[:most], *more])


def message_of(error: BaseException) -> str:
    """What an error says, short enough for a page; its name where it says nothing."""
    return shortened(str(error), MESSAGE_CHARACTERS) or type(error).__name__


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
    # Values of one type alone are compared: arrays have no single answer, and 1 is not True.
    if not any(isinstance(value, type(choice)) and value == choice for choice in allowed):
        raise ValueError(f"{name} must be one of {listed(allowed)}; got {quoted(value)}.")


def check_kind(name: str, value: Any, kind: type | tuple[str, ...], wanted: str) -> None:
    """Raise TypeError unless a value is of a type, or has these methods and is no class."""
    if isinstance(kind, type):
        fits = isinstance(value, kind)
    else:
        methods = (getattr(value, each, None) for each in kind)
        fits = not isinstance(value, type) and all(map(callable, methods))
    if not fits:
        raise TypeError(f"{name} must be {wanted}; got {quoted(value)}.")


def check_callable(name: str, value: Any) -> None:
    """Raise TypeError unless a value can be called."""
    if not callable(value):
        raise TypeError(f"{name} must be callable; got {quoted(value)}.")


def check_flag(name: str, value: Any) -> None:
    """Raise TypeError unless a value is True or False."""
    check_kind(name, value, bool, "True or False")


def check_path(name: str, value: Any) -> Path:
    """The value as a path, or an error unless it is one that a file can have."""
    if not isinstance(value, str | PurePath):
        raise TypeError(f"{name} must be a path, as text or pathlib.Path; got {quoted(value)}.")
    try:
        with contextlib.suppress(OSError):  # It may be made yet.
            Path(value).stat()
    except ValueError as error:
        raise ValueError(f"{name} is no path: {error}; got {quoted(value)}.") from error
    return Path(value)


def as_list(name: str, value: Any, *, at_least: int = 1) -> list[Any]:
    """One value or several as a list; texts, bytes and mappings are one. ValueError for too few."""
    one = isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable)
    try:
        values = [value] if one else list(value)
    except TypeError:  # An array without axes.
        values = [value]
    if len(values) < at_least:
        raise ValueError(f"{name} must hold at least one choice; got none.")
    return values


def whole_number(value: Any) -> int | None:
    """The integer that a value is, NumPy's included; None for all else, truth values too."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def check_integer(name: str, value: Any, *, at_least: int = 1, below: int = 2**63) -> int:
    """The value as Python's integer, or ValueError unless it is one in [at_least, below)."""
    whole = whole_number(value)
    if whole is None or whole < at_least:
        raise ValueError(f"{name} must be an integer of at least {at_least}; got {quoted(value)}.")
    if whole >= below:
        power = below.bit_length() - 1
        raise ValueError(f"{name} must be an integer below 2**{power}; got {quoted(value)}.")
    return whole


def check_number(name: str, value: Any, interval: str) -> float:
    """The value as a float, or ValueError unless it is a number in one such as "(0, inf)"."""
    low, high = (float(end) for end in interval[1:-1].split(","))
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    closed = [end for end, bracket in ((low, interval[0]), (high, interval[-1])) if bracket in "[]"]
    if not number or not (low < value < high or value in closed):
        raise ValueError(f"{name} must be a number in {interval}; got {quoted(value)}.")
    return float(value)


def set_integers(holder: Any, **least: int) -> None:
    """Check the named attributes as integers of at least so much, and keep Python's of them."""
    for name, at_least in least.items():
        value = check_integer(name, getattr(holder, name), at_least=at_least)
        object.__setattr__(holder, name, value)


def set_numbers(holder: Any, **intervals: str) -> None:
    """Check the named attributes as numbers in intervals, and keep them as floats."""
    for name, interval in intervals.items():
        object.__setattr__(holder, name, check_number(name, getattr(holder, name), interval))


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
