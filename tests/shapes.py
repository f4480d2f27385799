"""Types and shapes of annotated functions are checked, each in its first calls of a test.

jaxtyping checks every call, and makes a check again whenever a function is defined inside another:
two thirds of the time of the tests of learning. What a function is given late in a test is seldom
of another type than what it was given first.
"""

import dataclasses
import functools
import inspect
import sys
from collections import Counter

import jaxtyping

CALLS = 5
_jaxtyped = jaxtyping.jaxtyped
_calls = Counter()


def forget_calls():
    """Check the next calls of every function again."""
    _calls.clear()


def check_first_calls(package):
    """Have the functions and dataclasses of a package checked that is still to be imported."""
    # The hook decorates them with `jaxtyping.jaxtyped(typechecker=...)`.
    jaxtyping.jaxtyped = functools.partial(functools.partial, _checked_at_first)
    jaxtyping.install_import_hook(package, "beartype.beartype")


def _checked_at_first(made, typechecker):
    if inspect.isfunction(made):
        return _first_calls(made, typechecker)
    if dataclasses.is_dataclass(made) and "__init__" in vars(made):
        made.__init__ = _first_calls(made.__init__, typechecker)
    return made


def _first_calls(function, typechecker):
    code, checked = function.__code__, None

    @functools.wraps(function)
    def call(*args, **kwargs):
        nonlocal checked
        if _calls[code] >= CALLS or sys.is_finalizing():
            return function(*args, **kwargs)
        _calls[code] += 1
        checked = checked or _jaxtyped(function, typechecker=typechecker)
        return checked(*args, **kwargs)

    return call
