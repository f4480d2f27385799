"""How arguments of potentials read in formulas and in Python code."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any


def code_value(value: Any) -> str:
    """A value of JSON's types as a Python expression, texts in double quotes where that is safe."""
    if isinstance(value, list):
        return f"[{', '.join(map(code_value, value))}]"
    if isinstance(value, Mapping):
        items = (f"{code_value(key)}: {code_value(each)}" for key, each in value.items())
        return f"{{{', '.join(items)}}}"
    plain = isinstance(value, str) and '"' not in value and "'" not in value
    return f'"{repr(value)[1:-1]}"' if plain else repr(value)


def call(name: str, maker: Callable[..., Any], given: Mapping[str, Any]) -> str:
    """A call of ``maker`` with arguments that are expressions, the required ones without names."""
    parameters = inspect.signature(maker).parameters
    options = dict(given)
    args = [*options.pop("args", ())]
    for key, parameter in parameters.items():
        required = parameter.default is inspect.Parameter.empty
        if (
            parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
            and required
            and key in options
        ):
            args.append(options.pop(key))
    return f"{name}({', '.join([*args, *(f'{key}={value}' for key, value in options.items())])})"


def in_quotes(value: Any) -> str:
    """A word, or tokens in a row, in typographic quotes; ids of tokens as ``#7``."""
    if isinstance(value, list | tuple):
        words = all(isinstance(token, str) for token in value)
        return " then ".join(f"“{t}”" if words else f"#{t}" for t in value)
    return f"“{value}”"


def any_of(part: Mapping[str, Any]) -> str:
    """The words or tokens of a description with "or" between them."""
    return " or ".join(map(in_quotes, part.get("args", ())))


def scope_of(part: Mapping[str, Any]) -> str:
    """Which text a description looks at: s, or the prompt and s."""
    return "s₀ s" if part.get("scope") == "full" else "s"


def number(value: Any) -> str:
    """A number with a minus sign of its own width."""
    return f"{value:g}".replace("-", "−")


def times(beta: Any) -> str:
    """A factor in front of a term; nothing for 1."""
    return "" if beta == 1 else f"{number(beta)} "


def between(what: str, part: Mapping[str, Any]) -> str:
    """``2 ≤ what ≤ 9``, from ``at_least`` and ``at_most`` of a description."""
    low, high = part.get("at_least"), part.get("at_most")
    left = "" if low is None else f"{number(low)} ≤ "
    right = "" if high is None else f" ≤ {number(high)}"
    if left and not right:
        return f"{what} ≥ {number(low)}"
    return f"{left}{what}{right}"


def short_name(model: Any) -> str:
    """The last part of a classifier's name or folder."""
    return str(model or "?").rstrip("/").rpartition("/")[2]
