"""Any Python function of text or of tokens as a potential."""

from __future__ import annotations

import hashlib
import importlib
import re
import traceback
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from tsmc_widgets.errors import check_callable, check_kind, check_one_of, listed, quoted
from tsmc_widgets.targets.checked import call_checked, check_bound, log_phi_checked
from tsmc_widgets.targets.notation import call, code_value
from tsmc_widgets.targets.protocol import BoundOnly
from tsmc_widgets.targets.text import Scope, TextPotential, each_text


class NamedFunction(BoundOnly, kind=False):
    """Log phi = f(.) for a Python function, which a description names as it is registered.

    A description without a name of its own shows the last part of the function's.
    """

    function: Callable[..., Any]
    name: str
    log_phi_max: float | None

    def _take(
        self, function: Callable[..., Any] | str, log_phi_max: float | int | None, name: str | None
    ) -> None:
        if name is None:
            named = isinstance(function, str)
            name = str(function).rpartition(":")[2] if named else function_name(function)
        check_kind("name", name, str, "a text")
        self.function = find_function(function) if isinstance(function, str) else function
        check_callable("function", self.function)
        self.log_phi_max = check_bound("log_phi_max", log_phi_max)
        self.name = name

    @property
    def arguments(self) -> dict[str, Any]:
        """The constructor's, with the function by the name that it is registered under."""
        given = super().arguments
        if isinstance(given["function"], str):
            return given
        for name, function in _REGISTERED.items():
            if function is self.function:
                return {**given, "function": name}
        raise ValueError(
            f"the function {self.name!r} is not registered, and JSON can hold nothing but a name: "
            f"run tw.register_function(your_function, name={self.name!r})."
        )

    @classmethod
    def code(cls, arguments: Mapping[str, Any]) -> str:
        """A call with the function itself, imported or looked up by its name."""
        given = {name: code_value(value) for name, value in arguments.items()}
        name = arguments["function"]
        inside = name.rpartition(":")[2]
        given["function"] = inside if importable(name) else f"tw.find_function({code_value(name)})"
        given.setdefault("name", code_value(inside))
        return call(f"tw.{cls.__name__}", cls, given)

    @classmethod
    def formula(cls, part: Mapping[str, Any]) -> str:
        """``f(s)``."""
        return f"{str(part['function']).rpartition(':')[2] or 'f'}(s)"


class TextFunction(TextPotential, NamedFunction):
    """Log phi from any Python function of text, called once for each distinct text.

    Args:
        function: gives log phi in nats; -inf rules a text out. Or the name of a registered one.
        takes: "text" for a function of one text that returns a number, "texts" for one of a list
            of texts that returns as many numbers.
        scope: "full" gives it prompt and generated part, "continuation" the generated part.
        log_phi_max: an upper bound on what it returns, in nats; exact samples need it.
        name: what to call it; the function's own name if None.
    """

    def __init__(
        self,
        function: Callable[..., Any] | str,
        *,
        takes: Literal["text", "texts"] = "text",
        scope: Scope = "full",
        log_phi_max: float | int | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(scope=scope)
        check_one_of("takes", takes, ("text", "texts"))
        self.takes = takes
        self._take(function, log_phi_max, name)

    def log_phi_of_texts(self, texts: Sequence[str]) -> Any:
        """What the function returns."""
        return call_on_texts(self.function, self.takes, texts)

    def describe(self) -> str:
        """``exp(name(text))``."""
        return f"exp({self.name}(text))"


class TokenFunction(NamedFunction):
    """Log phi from any Python function of the generated tokens.

    Args:
        function: gives log phi in nats; -inf rules a sequence out. Or the name of a registered one.
        takes: "batch" for a function of a tensor (rows, T) that returns one number a row, "row"
            for one of a list of T ids that returns a number.
        log_phi_max: an upper bound on what it returns, in nats; exact samples need it.
        name: what to call it; the function's own name if None.
    """

    def __init__(
        self,
        function: Callable[..., Any] | str,
        *,
        takes: Literal["batch", "row"] = "batch",
        log_phi_max: float | int | None = None,
        name: str | None = None,
    ) -> None:
        check_one_of("takes", takes, ("batch", "row"))
        self.takes = takes
        self._take(function, log_phi_max, name)

    def log_phi(self, tokens: Int[Tensor, "batch steps"]) -> Float[Tensor, " batch"]:
        """What the function returns, checked."""
        call = self.function if self.takes == "batch" else self._call_each
        show_row = self.context.show_row
        return log_phi_checked(call, tokens, name=self.describe(), show_row=show_row)

    def describe(self) -> str:
        """``exp(name(tokens))``."""
        return f"exp({self.name}(tokens))"

    def _call_each(self, tokens: Tensor) -> list[float]:
        def value(row: Tensor) -> float:
            return float(unwrapped(self.function(row[0].tolist())))

        show_row, name = self.context.show_row, self.describe()
        rows = tokens.split(1)
        return [call_checked(value, row, name=name, show_row=show_row) for row in rows]


_TYPED = "<log_phi>"
"""Where tracebacks say that typed code stands."""


class TypedFunction:
    """``log_phi(text)`` from its source: making one runs that source. Pickled as the source.

    Args:
        source: Python that defines ``log_phi``, complete with its imports.

    Attributes:
        source: as above.
        name: what descriptions call it: another text, another name.

    Raises:
        ValueError: the source cannot be run, or defines no such function; names the line.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self.name = f"log_phi_{hashlib.sha256(source.encode()).hexdigest()[:6]}"
        namespace: dict[str, Any] = {"__name__": self.name}
        self._run(lambda _: exec(compile(source, _TYPED, "exec"), namespace), "")
        self._log_phi = namespace.get("log_phi")
        if not callable(self._log_phi):
            raise ValueError("Define a function log_phi(text), such as def log_phi(text): return 0")

    def __call__(self, text: str) -> Any:
        """Log phi of a text in nats; an error names its line."""
        return self._run(self._log_phi, text)

    def __reduce__(self) -> tuple[Any, ...]:
        """Its source is all that there is to send."""
        return TypedFunction, (self.source,)

    def _run(self, function: Callable[[str], Any], text: str) -> Any:
        try:
            return function(text)
        except SyntaxError as error:
            raise ValueError(f"Line {error.lineno}: {error.msg}.") from error
        except (Exception, SystemExit) as error:
            frames = traceback.extract_tb(error.__traceback__)
            lines = [frame.lineno for frame in frames if frame.filename == _TYPED]
            place = f"Line {lines[-1]}: " if lines else ""
            raise ValueError(f"{place}{type(error).__name__}: {error}") from error


def call_on_texts(function: Callable[..., Any], takes: str, texts: Sequence[str]) -> Any:
    """Call a function of one text on each, or a function of many on all."""
    if takes == "texts":
        values = function(list(texts))
        several = isinstance(values, list | tuple) or (
            isinstance(values, Array) and values.ndim > 1
        )
        return [unwrapped(value) for value in values] if several else values
    return each_text(lambda text: float(unwrapped(function(text))), texts)


Array = np.ndarray | Tensor


def unwrapped(value: Any) -> Any:
    """The number in an array or list that holds nothing else; anything else as it is."""
    while isinstance(value, list | tuple) or (isinstance(value, Array) and value.ndim):
        if len(value) != 1:
            break
        value = value[0]
    return value


def function_name(function: Any) -> str:
    """What people call a function."""
    name = getattr(function, "__name__", type(function).__name__)
    return "f" if name == "<lambda>" else name


_REGISTERED: dict[str, Callable[..., Any]] = {}
_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def register_function(function: Callable[..., Any] | str, *, name: str = "") -> str:
    """Let descriptions name a function that gives log phi of a text, in nats.

    Nothing else brings a name to a function: no page, file, spec or worker imports by name.

    Args:
        function: any function, or where to import one from, as ``"module:function"``.
        name: what descriptions call it; that text, or the function's own name, if empty. The same
            name again replaces what it named.

    Returns:
        The name, for ``{"kind": "TextFunction", "function": name}``.

    Raises:
        ValueError: there is no such module or function.
    """
    check_kind("name", name, str, "a text")
    if isinstance(function, str):
        name, function = name or function, _imported(function)
    check_callable("function", function)
    name = name or function_name(function)
    _REGISTERED[name] = function
    return name


def find_function(name: str) -> Callable[..., Any]:
    """The function that was registered under a name.

    Raises:
        ValueError: there is none; says how to bring it back.
    """
    if not isinstance(name, str) or not name:
        raise ValueError(
            f"function must be the name of a registered function; got {quoted(name)}, and there "
            f"are {listed(registered_functions()) or 'none: run tw.register_function first'}."
        )
    if name in _REGISTERED:
        return _REGISTERED[name]
    how = (
        f"tw.register_function({quoted(name)}), if you trust it"
        if importable(name)
        else f"tw.register_function(your_function, name={quoted(name)})"
    )
    raise ValueError(
        f"The description names the Python function {quoted(name)}, which JSON alone cannot bring "
        f"back and which is not registered here: run {how}."
    )


def registered_functions() -> tuple[str, ...]:
    """Names that descriptions may give to functions, in the order of their registration."""
    return tuple(_REGISTERED)


def registered_function(name: str) -> Callable[..., Any] | None:
    """What a name stands for here; None where it stands for nothing."""
    return _REGISTERED.get(name)


def importable(name: str) -> bool:
    """Whether a name says where to import the function from."""
    return _PATH.fullmatch(name) is not None


def _imported(path: str) -> Callable[..., Any]:
    if not importable(path):
        raise ValueError(
            f"a function is named by where to import it from, as 'module:function'; got "
            f"{quoted(path)}."
        )
    module, _, inside = path.partition(":")
    try:
        found: Any = importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"There is no module {quoted(module)} to import: {error}.") from error
    try:
        return attrgetter(inside)(found)
    except AttributeError as error:
        raise ValueError(
            f"{quoted(path)} names nothing: {quoted(module)} has no {quoted(inside)}."
        ) from error
