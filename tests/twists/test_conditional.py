"""Twists that are told an observation."""

import copy

import pytest
import torch
from targets.toys import ThreeTones
from twists.forms import (
    CONDITIONAL,
    PROMPT_LENGTH,
    base_values,
    observations,
    random_texts,
    stir,
)

import tsmc_widgets as tw
from tsmc_widgets.smc.proposals import TwistInduced
from tsmc_widgets.testing import check_twist


@pytest.fixture(params=CONDITIONAL)
def name(request):
    return request.param


def per_row(observed, rows):
    """One observation for each row, as a trainer gives them."""
    return torch.tensor(observed).reshape(1, -1).expand(rows, -1)


def test_contract(name, lm):
    check_twist(stir(CONDITIONAL[name](lm)).condition(observations(name)[0]), lm, batch=2)


def test_a_new_twist_is_psi_1_for_every_observation(name, gpt2):
    tokens, twist = random_texts(gpt2), CONDITIONAL[name](gpt2)
    for observed in observations(name):
        given = twist.condition(observed)
        assert not bool(given.log_psi(tokens, PROMPT_LENGTH).any())
        lm_step = gpt2.prefill(tokens)
        step = given.prefill(tokens, lm_step)
        log_q = TwistInduced().prefill(tokens, lm_step, step).log_q_next
        torch.testing.assert_close(log_q, lm_step.log_probs, rtol=0, atol=1e-6)


def test_observations_matter_and_a_condition_is_a_row_of_its_own(name, gpt2):
    tokens, twist = random_texts(gpt2), stir(CONDITIONAL[name](gpt2))
    first, second = observations(name)
    one = twist.condition(first).log_psi_next(tokens, PROMPT_LENGTH)
    two = twist.condition(second).log_psi_next(tokens, PROMPT_LENGTH)
    assert bool(((one - two).abs() > 0.01).any(-1).all())
    every = twist.log_psi_next(tokens, PROMPT_LENGTH, observed=per_row(first, len(tokens)))
    assert torch.equal(every, one)
    mixed = per_row(first, len(tokens)).clone()
    mixed[1] = mixed[4] = torch.tensor(second)
    found = twist.log_psi_next(tokens, PROMPT_LENGTH, observed=mixed)
    rows = torch.tensor([0, 2, 3])
    torch.testing.assert_close(found[rows], one[rows], rtol=0, atol=1e-5)
    torch.testing.assert_close(found[[1, 4]], two[[1, 4]], rtol=0, atol=1e-5)


def test_runs_under_different_observations_record_it_too(name, gpt2):
    lm, twist = gpt2, stir(CONDITIONAL[name](gpt2))
    tokens_follow = name.startswith("tokens")
    potential = tw.Infilling(num_tokens=2) if tokens_follow else tw.ClassConditional(ThreeTones())
    target = tw.Target(lm, potential, prompt="once upon a", num_steps=7)
    observed = torch.tensor(observations(name)).reshape(2, -1)[[1, 0, 1]]
    trace = tw.run_smc(
        target,
        num_particles=6,
        observed=observed,
        twist=twist,
        proposal=TwistInduced(),
        ess_threshold=0.99,
        seed=2,
    )
    assert bool(trace.columns.resampled.any())
    texts, rows = trace.tokens.reshape(18, 7), observed.repeat_interleave(6, dim=0)
    tokens = torch.cat([target.prompt_tokens.expand(18, -1), texts], dim=1)
    with torch.no_grad():
        forced = twist.log_psi(tokens, PROMPT_LENGTH, observed=rows)
    recorded = trace.paths("log_psi").reshape(18, 7)
    torch.testing.assert_close(recorded[:, :-1].float(), forced[:, :-1], rtol=0, atol=1e-4)
    log_phi = target.log_phi_given(texts, rows)
    torch.testing.assert_close(recorded[:, -1], log_phi, rtol=0, atol=1e-4)
    wrong = target.log_phi_given(texts, rows.roll(6, dims=0))
    assert float((recorded[:, -1] - wrong).abs().max()) > 0.05


def test_only_the_twist_learns(name, gpt2):
    tokens, twist = random_texts(gpt2), stir(CONDITIONAL[name](gpt2))
    before = base_values(gpt2)
    observed = torch.tensor(observations(name)).reshape(2, -1)[[0, 1, 1, 0, 1]]
    twist.train()
    twist.log_psi(tokens, PROMPT_LENGTH, observed=observed).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in twist.parameters())
    assert all(p.grad is None for p in gpt2.model.parameters())
    assert all(map(torch.equal, base_values(gpt2), before))
    given = twist.condition(observations(name)[0])
    assert [id(p) for p in given.parameters()] == [id(p) for p in twist.parameters()]


def test_the_value_is_the_head_of_state_and_code(gpt2):
    tokens = random_texts(gpt2)
    with torch.no_grad():
        hidden = gpt2.teacher_force(tokens, PROMPT_LENGTH).hidden
        state = gpt2.prefill(torch.tensor([[5, 9]])).hidden
    codes = {
        "class, head": (2, torch.tensor([[0.0, 0.0, gpt2.prefill(tokens).hidden.shape[1] ** 0.5]])),
        "tokens, head": ([5, 9], state),
    }
    for name, (observed, code) in codes.items():
        twist = stir(CONDITIONAL[name](gpt2))
        code = code.expand(*hidden.shape[:-1], -1)
        expected = twist.head(torch.cat([hidden, code], dim=-1))
        found = twist.condition(observed).log_psi_next(tokens, PROMPT_LENGTH)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_each_distinct_observation_is_read_once(gpt2, monkeypatch):
    twist = CONDITIONAL["tokens, head"](gpt2)
    read, prefill = [], type(gpt2).prefill
    monkeypatch.setattr(
        type(gpt2),
        "prefill",
        lambda lm, tokens: (read.append(tokens.tolist()), prefill(lm, tokens))[1],
    )
    tokens = random_texts(gpt2)
    observed = torch.tensor([[5, 9], [4, 4], [5, 9], [4, 4], [5, 9]])
    twist.log_psi(tokens, PROMPT_LENGTH, observed=observed)
    assert read == [[[4, 4], [5, 9]]]
    twist.log_psi(tokens, PROMPT_LENGTH, observed=observed + torch.tensor([0, 1]))
    twist.log_psi(tokens, PROMPT_LENGTH, observed=observed)
    twist.condition([5, 9])
    assert read[1:] == [[[4, 5], [5, 10]]]


def test_ways_to_name_one_observation(gpt2):
    tokens = random_texts(gpt2)
    classes = stir(CONDITIONAL["class, head"](gpt2))
    found = [classes.condition(o) for o in (1, [1], torch.tensor(1), torch.tensor([1]))]
    values = [each.log_psi(tokens, PROMPT_LENGTH) for each in found]
    flat = classes.log_psi(tokens, PROMPT_LENGTH, observed=torch.ones(5, dtype=torch.int64))
    assert all(torch.equal(each, flat) for each in values)
    texts = stir(CONDITIONAL["tokens, head"](gpt2))
    ids = gpt2.encode("kind fox")
    values = [texts.condition(o).log_psi(tokens, 2) for o in ("kind fox", ids, torch.tensor(ids))]
    assert all(torch.equal(each, values[0]) for each in values)
    assert texts.condition(ids).observed.tolist() == ids


def test_views_follow_their_twist(gpt2):
    twist = CONDITIONAL["class, head"](gpt2, link="sigmoid")
    given = twist.condition(0)
    assert isinstance(given, tw.TrainableTwist)
    twist.method = "dpg"
    assert (given.method, given.proposal_only, given.link) == ("dpg", True, "sigmoid")
    assert given.lm is gpt2
    with pytest.raises(ValueError, match="stands under one observation already"):
        given.log_psi(random_texts(gpt2), 2, observed=torch.zeros(5, dtype=torch.int64))
    before = given.log_psi(random_texts(gpt2), 2)
    stir(twist)
    assert not torch.equal(given.log_psi(random_texts(gpt2), 2), before)


def test_copies_share_the_base_model(name, gpt2):
    tokens, twist = random_texts(gpt2), stir(CONDITIONAL[name](gpt2))
    observed = observations(name)[0]
    expected = twist.condition(observed).log_psi(tokens, PROMPT_LENGTH)
    twin = copy.deepcopy(twist)
    assert twin.lm is gpt2
    stir(twin, seed=4)
    assert torch.equal(twist.condition(observed).log_psi(tokens, PROMPT_LENGTH), expected)
    assert not torch.equal(twin.condition(observed).log_psi(tokens, PROMPT_LENGTH), expected)


def test_without_an_observation_there_is_no_psi(name, gpt2):
    twist, tokens = CONDITIONAL[name](gpt2), random_texts(gpt2)
    lm_step = gpt2.prefill(tokens)
    for ask in (
        lambda: twist.log_psi(tokens, 1),
        lambda: twist.prefill(tokens, lm_step),
        lambda: twist.advance(tokens[:, 0], None, lm_step),
        lambda: twist.advance(tokens[:, 0], lm_step.carry, lm_step),
    ):
        with pytest.raises(ValueError, match="depends on an observation"):
            ask()


@pytest.mark.parametrize(
    ("kind", "observed", "message"),
    [
        ("class", [3, 0, 0, 0, 0], "class indices from 0 to 2; got 0 to 3"),
        ("class", [-1, 0, 0, 0, 0], "class indices from 0 to 2; got -1 to 0"),
        ("class", [[0, 1]] * 5, r"one class index for each row.*got \(5, 2\)"),
        ("tokens", [[1, 2, 3]] * 5, r"2 token ids for each row; got shape \(5, 3\)"),
        ("tokens", [1] * 5, r"2 token ids for each row; got shape \(5,\)"),
    ],
)
def test_rows_of_another_kind_are_refused(gpt2, kind, observed, message):
    twist = CONDITIONAL[f"{kind}, head"](gpt2)
    with pytest.raises(ValueError, match=message):
        twist.log_psi(random_texts(gpt2), 1, observed=torch.tensor(observed))


@pytest.mark.parametrize(
    ("kind", "observed", "message"),
    [
        ("class", 3, "class indices from 0 to 2"),
        ("class", [0, 1], r"one class index; got \[0, 1\]"),
        ("tokens", [1, 2, 3], r"2 token ids.*got \[1, 2, 3\]"),
        ("tokens", "fox", r"2 token ids.*got 'fox'"),
    ],
)
def test_conditions_of_another_kind_are_refused(gpt2, kind, observed, message):
    with pytest.raises(ValueError, match=message):
        CONDITIONAL[f"{kind}, head"](gpt2).condition(observed)


@pytest.mark.parametrize("options", [{}, {"num_classes": 2, "observed_length": 2}], ids=str)
def test_what_is_observed_must_be_said_once(gpt2, options):
    with pytest.raises(ValueError, match=r"give num_classes .* or observed_length .* not both"):
        tw.ConditionalHeadTwist(gpt2, **options)


def test_sizes_are_checked(gpt2):
    with pytest.raises(ValueError, match="num_classes must be an integer of at least 2; got 1"):
        tw.ConditionalHeadTwist(gpt2, num_classes=1)
    with pytest.raises(ValueError, match="observed_length must be an integer of at least 1; got 0"):
        tw.ConditionalHeadTwist(gpt2, observed_length=0)
    with pytest.raises(ValueError, match="TabularLM has no hidden state"):
        tw.ConditionalHeadTwist(tw.TabularLM.random(2, 3, seed=0), num_classes=2)
