"""Twists written down as tables."""

import pytest
import torch

from tsmc_widgets.models.tabular import TabularLM
from tsmc_widgets.testing import check_twist
from tsmc_widgets.twists import TableTwist


@pytest.mark.parametrize("prompt_length", [0, 2])
def test_contract(prompt_length):
    lm = TabularLM.random(3, prompt_length + 4, seed=0)
    twist = TableTwist.random(3, 4, seed=1, prompt_length=prompt_length)
    for seed in range(3):
        check_twist(twist, lm, prompt_length=prompt_length, seed=seed, tolerance=0.0)


def test_contract_holds_where_psi_is_zero():
    generator = torch.Generator().manual_seed(0)
    tables = [torch.randn(*(2,) * t, generator=generator) for t in range(1, 5)]
    tables = [table.masked_fill(table < -0.5, -torch.inf) for table in tables]
    check_twist(TableTwist(tables), TabularLM.random(2, 4, seed=0), prompt_length=0, tolerance=0.0)


def test_each_prefix_has_the_entry_of_its_tokens():
    tables = [torch.tensor([0.0, 1.0]), torch.tensor([[2.0, 3.0], [4.0, 5.0]])]
    tokens = torch.tensor([[1, 0, 0], [1, 0, 1], [0, 1, 0], [0, 1, 1]])
    log_psi = TableTwist(tables, prompt_length=1).log_psi(tokens, 1)
    assert log_psi.tolist() == [[0, 2], [0, 3], [1, 4], [1, 5]]
    assert log_psi.dtype == torch.float64


def test_random_tables_depend_on_seed_and_scale_only():
    tokens = torch.tensor([[0, 1, 2], [2, 2, 1]])
    once = TableTwist.random(3, 3, seed=4).log_psi(tokens, 0)
    assert torch.equal(TableTwist.random(3, 3, seed=4).log_psi(tokens, 0), once)
    assert torch.equal(TableTwist.random(3, 3, seed=4, scale=2.0).log_psi(tokens, 0), 2 * once)
    assert not torch.equal(TableTwist.random(3, 3, seed=5).log_psi(tokens, 0), once)


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ([], "at least log psi_1; got none"),
        (
            [torch.zeros(2, 2)],
            r"log_tables\[0\] must have 1 axes of one size V; got shape \(2, 2\)",
        ),
        ([torch.zeros(2), torch.zeros(2, 3)], r"log_tables\[1\] must have 2 axes .* \(2, 3\)"),
        ([torch.tensor([0.0, torch.inf])], r"log_tables\[0\] holds NaN or \+inf"),
        ([torch.zeros(2), torch.full((2, 2), torch.nan)], r"log_tables\[1\] holds NaN or \+inf"),
    ],
)
def test_wrong_tables_are_refused(tables, message):
    with pytest.raises(ValueError, match=message):
        TableTwist(tables)


def test_a_step_without_a_table_is_named():
    lm, twist = TabularLM.random(2, 4, seed=0), TableTwist.random(2, 1, seed=0)
    tokens = torch.tensor([[0]])
    with pytest.raises(ValueError, match="tables for 1 steps and step 2 is asked for"):
        twist.prefill(tokens, lm.prefill(tokens))
