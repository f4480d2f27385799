"""A table that learns: any twist at all, over a tiny vocabulary."""

import copy

import pytest
import torch
from twists.forms import stir

import tsmc_widgets as tw
from tsmc_widgets.errors import BudgetError
from tsmc_widgets.smc.proposals import TwistInduced
from tsmc_widgets.testing import check_twist
from tsmc_widgets.twists import TableHeadTwist, TableTwist

LM = tw.TabularLM.random(3, 6, seed=0)
TOKENS = torch.randint(3, (20, 6), generator=torch.Generator().manual_seed(0))


def make(**options):
    return TableHeadTwist(LM, num_steps=4, prompt_length=2, **options)


@pytest.mark.parametrize("link", ["log", "sigmoid"])
def test_contract(link):
    check_twist(make(link=link), LM, prompt_length=2, tolerance=0.0)
    check_twist(stir(make(link=link)), LM, prompt_length=2, tolerance=0.0)


def test_a_transformer_may_be_the_base_model(checkpoint):
    lm = tw.load_language_model(checkpoint("gpt2"))
    twist = stir(TableHeadTwist(lm, num_steps=2, prompt_length=3))
    lm_step = lm.prefill(torch.tensor([[4, 5, 6, 7]]))
    step = twist.prefill(torch.tensor([[4, 5, 6, 7]]), lm_step)
    assert torch.equal(step.log_psi_next[0], twist.log_tables[1][7])


def test_a_new_table_is_psi_1():
    twist = make()
    assert torch.equal(twist.log_psi(TOKENS, 2), torch.zeros(20, 4, dtype=torch.float64))
    half = make(link="sigmoid").log_psi(TOKENS, 2)
    torch.testing.assert_close(half.exp(), torch.full_like(half, 0.5), rtol=1e-15, atol=0)
    lm_step = LM.prefill(TOKENS[:, :2])
    step = twist.prefill(TOKENS[:, :2], lm_step)
    log_q = TwistInduced().prefill(TOKENS[:, :2], lm_step, step).log_q_next
    torch.testing.assert_close(log_q, lm_step.log_probs, rtol=0, atol=1e-15)


def test_it_steps_as_the_table_it_holds():
    twist = stir(make())
    tables = [table.detach().reshape((3,) * t) for t, table in enumerate(twist.log_tables, 1)]
    fixed = TableTwist(tables, prompt_length=2)
    assert torch.equal(twist.log_psi(TOKENS, 2), fixed.log_psi(TOKENS, 2))
    every = twist.log_psi_next(TOKENS, 2)
    for length in range(2, 6):
        lm_step = LM.prefill(TOKENS[:, :length])
        expected = fixed.prefill(TOKENS[:, :length], lm_step).log_psi_next
        assert torch.equal(every[:, length - 2], expected)
    settings = {"num_particles": 8, "proposal": TwistInduced(), "seed": 4, "rule": "always"}
    favoured = tw.TokenFunction(lambda tokens: (tokens == 0).sum(-1).double())
    target = tw.Target(LM, favoured, prompt=[0, 1], num_steps=4)
    runs = [tw.run_smc(target, twist=each, **settings) for each in (twist, fixed)]
    assert torch.equal(runs[0].columns.log_weights, runs[1].columns.log_weights)


def test_every_prefix_has_entries_of_its_own():
    twist = make()
    assert [tuple(table.shape) for table in twist.log_tables] == [(3**t, 3) for t in range(4)]
    text = torch.tensor([[2, 2, 1, 0, 2, 1]])
    twist.log_psi(text, 2).sum().backward()
    touched = [table.grad.nonzero().tolist() for table in twist.log_tables]
    assert touched == [[[0, 1]], [[1, 0]], [[3, 2]], [[3 * 3 + 2, 1]]]


def test_it_can_become_the_optimal_twist():
    phi = tw.TokenFunction(lambda tokens: (tokens == 0).sum(-1).double())
    target = tw.Target(LM, phi, prompt=[1, 2], num_steps=4)
    oracle = tw.exact(target)
    twist = make()
    optimizer = torch.optim.LBFGS(
        twist.parameters(), max_iter=200, tolerance_grad=1e-12, tolerance_change=0
    )
    texts = torch.cartesian_prod(*[torch.arange(3)] * 4)
    tokens = torch.cat([torch.tensor([[1, 2]]).expand(81, -1), texts], dim=1)
    goal = oracle.optimal_twist().log_psi(tokens, 2)

    def loss():
        optimizer.zero_grad()
        value = (twist.log_psi(tokens, 2) - goal).square().mean()
        value.backward()
        return value

    optimizer.step(loss)
    torch.testing.assert_close(twist.log_psi(tokens, 2), goal, rtol=0, atol=1e-4)


def test_copies_share_the_base_model_alone():
    twist = stir(make())
    twin = copy.deepcopy(twist)
    assert twin.lm is LM
    stir(twin, seed=3)
    assert not torch.equal(twin.log_psi(TOKENS, 2), twist.log_psi(TOKENS, 2))


def test_what_the_tables_do_not_hold_is_refused():
    twist = make()
    assert isinstance(twist, tw.TrainableTwist)
    longer = torch.cat([TOKENS, TOKENS[:, :1]], dim=1)
    with pytest.raises(ValueError, match="tables for 4 steps and step 5 is asked for"):
        twist.log_psi(longer, 2)
    with pytest.raises(ValueError, match="after a prompt of 2 tokens; got prompt_length=1"):
        twist.log_psi(TOKENS, 1)
    with pytest.raises(ValueError, match="does not depend on an observation"):
        twist.log_psi(TOKENS, 2, observed=TOKENS[:, 0])


def test_sizes_are_checked():
    with pytest.raises(BudgetError, match=r"3\*\*16 entries.*use LinearHeadTwist"):
        TableHeadTwist(LM, num_steps=16)
    with pytest.raises(ValueError, match="num_steps must be an integer of at least 1; got 0"):
        TableHeadTwist(LM, num_steps=0)
    with pytest.raises(ValueError, match="prompt_length must be an integer of at least 0; got -1"):
        TableHeadTwist(LM, num_steps=2, prompt_length=-1)
