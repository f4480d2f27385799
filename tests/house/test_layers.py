"""Imports go down the list of rooms only, and never round in a circle."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "tsmc_widgets"
RANKS = {
    "errors": 0,
    "files": 1,
    "numerics": 1,
    "models": 2,
    "targets": 3,
    "twists": 4,
    "smc": 5,
    "testing": 6,
    "course": 6,
    "learning": 7,
    "evaluation": 8,
    "experiments": 9,
    "figures": 10,
    "widgets": 11,
    "__main__": 12,
}
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def absolute(node, module):
    """Name of the module that `from ... import` starts from, relative dots resolved."""
    if not node.level:
        return node.module
    is_package = MODULES[module].name == "__init__.py"
    parents = module.split(".")[: len(module.split(".")) - node.level + is_package]
    return ".".join([*parents, *([node.module] if node.module else [])])


def imports(module):
    """The package's own modules that a module imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = absolute(node, module)
            names = {f"{base}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else base for name in names}
    return {name for name in found if name.split(".")[0] == PACKAGE.name}


def room(module):
    return [*module.split("."), ""][1]


def may_import(importer, imported):
    if importer == imported:
        return True
    # The package's top level may import every room, so nothing inside may import it.
    return imported not in ("testing", "") and RANKS[imported] < RANKS[importer]


INNER = [module for module in MODULES if module != PACKAGE.name]


@pytest.mark.parametrize("module", INNER)
def test_imports_go_down_only(module):
    assert room(module) in RANKS, f"{module} stands in a room that the table does not know"
    upward = [name for name in imports(module) if not may_import(room(module), room(name))]
    assert not upward, f"{module} may not import {upward}"


def test_no_import_cycles():
    try:
        TopologicalSorter({module: imports(module) for module in INNER}).prepare()
    except CycleError as error:
        pytest.fail(f"these modules import each other in a circle: {error.args[1]}")


def test_the_table_tells_up_from_down():
    assert may_import("smc", "models")
    assert may_import("testing", "smc")
    assert not may_import("models", "smc")
    assert not may_import("learning", "evaluation")
    assert not may_import("widgets", "testing")
