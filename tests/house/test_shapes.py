"""A wrong shape or type is found in the first calls of a function in each test."""

import ast
import dataclasses
from pathlib import Path

import jaxtyping
import pytest
import shapes
import torch

import tsmc_widgets
from tsmc_widgets import numerics
from tsmc_widgets.evaluation.estimates import Bracket

PACKAGE = Path(tsmc_widgets.__file__).parent
COLUMNS = torch.zeros(3, 2, dtype=torch.float64)


@pytest.mark.parametrize("test", ["one", "another"])
def test_the_next_test_is_checked_too(test):
    with pytest.raises(jaxtyping.TypeCheckError):
        numerics.group_logsumexp(COLUMNS, torch.zeros(4, dtype=torch.int64))
    for _ in range(shapes.CALLS):
        numerics.group_logsumexp(COLUMNS, torch.zeros(3, dtype=torch.int64))


def test_so_are_dataclasses():
    wrong = {field.name: object() for field in dataclasses.fields(Bracket) if field.init}
    with pytest.raises(jaxtyping.TypeCheckError):
        Bracket(**wrong)


def test_every_shape_is_a_string():
    """Of any other the name is not known, and jaxtyping checks nothing without a word."""
    kinds = {"Bool", "Float", "Float32", "Float64", "Int", "Int64", "Shaped"}
    found = [
        f"{path.name}:{node.lineno}: {ast.unparse(node)}"
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Subscript)
        and isinstance(node.value, ast.Name)
        and node.value.id in kinds
        and not isinstance(getattr(node.slice.elts[1], "value", None), str)
    ]
    assert not found
    assert kinds <= set(dir(jaxtyping))
