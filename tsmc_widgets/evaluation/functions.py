"""Python functions that descriptions name: JSON has the name, this process has the function.

A description may come from a stranger, and a function called on text can do anything, so a name is
never followed by itself: whoever runs the process registers the functions that it may call.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from typing import Any, Literal

from tsmc_widgets.targets.functions import TextFunction, check_callable, function_name
from tsmc_widgets.targets.text import Scope

_REGISTERED: dict[str, Callable[..., Any]] = {}
_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def register_function(function: Callable[..., Any] | str, *, name: str = "") -> str:
    """Let descriptions name a function that gives log phi of a text, in nats.

    Args:
        function: any function, or where to import one from, as ``"module:function"``.
        name: what descriptions call it; that text, or the function's own name, if empty. The same
            name again replaces what it named.

    Returns:
        The name, for ``{"kind": "TextFunction", "function": name}``.

    Raises:
        ValueError: there is no such module or function.
    """
    if isinstance(function, str):
        name, function = name or function, _imported(function)
    name = name or function_name(function)
    _REGISTERED[name] = check_callable(function)
    return name


def find_function(name: str) -> Callable[..., Any]:
    """The function that was registered under a name.

    Raises:
        ValueError: there is none; says how to bring it back.
    """
    if name in _REGISTERED:
        return _REGISTERED[name]
    if not isinstance(name, str) or not name:
        raise ValueError(f"function must be the name of a registered function; got {name!r}.")
    how = (
        f"tw.register_function({name!r}), if you trust it"
        if _PATH.fullmatch(name)
        else f"tw.register_function(your_function, name={name!r})"
    )
    raise ValueError(
        f"The description names the Python function {name!r}, which JSON alone can not bring back "
        f"and which is not registered here: run {how}."
    )


def importable(name: str) -> bool:
    """Whether a name says where to import the function from."""
    return _PATH.fullmatch(name) is not None


def named_text_function(
    function: str,
    *,
    takes: Literal["text", "texts"] = "text",
    scope: Scope = "full",
    log_phi_max: float | int | None = None,
) -> TextFunction:
    """The potential of a registered function, under the name that it is registered by."""
    found = find_function(function)
    shown = function.rpartition(":")[2]
    return TextFunction(found, takes=takes, scope=scope, log_phi_max=log_phi_max, name=shown)


def _imported(path: str) -> Callable[..., Any]:
    if not importable(path):
        raise ValueError(
            f"a function is named by where to import it from, as 'module:function'; got {path!r}."
        )
    module, _, inside = path.partition(":")
    try:
        found: Any = importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"There is no module {module!r} to import: {error}.") from error
    for part in inside.split("."):
        if not hasattr(found, part):
            raise ValueError(f"{path!r} names nothing: {module!r} has no {inside!r}.")
        found = getattr(found, part)
    return found
