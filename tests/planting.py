"""A copy of a module with one piece of its source replaced: a test of the tests."""

import sys
import types
from pathlib import Path


def planted(module, old, new):
    """The module with ``old``, which stands there once, replaced by ``new``."""
    source = Path(module.__file__).read_text()
    assert source.count(old) == 1, f"{old!r} stands there {source.count(old)} times, not once"
    copy = types.ModuleType(f"{module.__name__}_planted")
    copy.__file__ = module.__file__
    sys.modules[copy.__name__] = copy
    exec(compile(source.replace(old, new), copy.__file__, "exec"), vars(copy))
    return copy
