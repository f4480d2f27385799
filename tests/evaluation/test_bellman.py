"""The Bellman error: by enumeration, with ends, powers and observations, for large V."""

import itertools
import math

import pytest
import torch
from planting import planted
from smc.observed import ConditionalTables, infilling
from smc.observed import every as every_text
from smc.test_power import powered
from smc.toys import eos_target, table_target

import tsmc_widgets as tw
from tsmc_widgets.errors import ModelOutputError
from tsmc_widgets.evaluation import bellman
from tsmc_widgets.smc import prefixes
from tsmc_widgets.twists import TableTwist


def random_twist(target, seed=5):
    length = len(target.prompt_tokens)
    return TableTwist.random(3, target.num_steps, seed=seed, prompt_length=length)


@torch.no_grad()
def by_hand(target, twist):
    """Error of each prefix: psi of the prefix against the sum over its next tokens, one by one."""
    prompt = target.prompt_tokens.tolist()
    ends = None if target.ending is None else target.eos_token_id

    def log_psi(tokens):
        over = ends in tokens
        if over or len(tokens) == target.num_steps:
            filled = tokens + [ends] * (target.num_steps - len(tokens))
            return float(target.log_phi(torch.tensor([filled])))
        return float(twist.log_psi(torch.tensor([prompt + tokens]), len(prompt))[0, -1])

    found = {}
    for t in range(1, target.num_steps):
        for tokens in itertools.product(range(3), repeat=t):
            if ends in tokens:
                continue
            total = 0.0
            for token in range(3):
                row = torch.tensor([[*prompt, *tokens, token]])
                log_p = target.power * float(target.lm.log_prob(row, len(prompt) + t)[0, 0])
                total += math.exp(log_p + log_psi([*tokens, token]))
            value = math.log(total) if total else -math.inf
            own = log_psi(list(tokens))
            found[tokens] = 0.0 if own == value == -math.inf else own - value
    for tokens in itertools.product(range(3), repeat=target.num_steps):
        if ends not in tokens[:-1]:
            row = torch.tensor([[*prompt, *tokens]])
            own = float(twist.log_psi(row, len(prompt))[0, -1])
            log_phi = float(target.log_phi(row[:, len(prompt) :]))
            found[tokens] = 0.0 if own == log_phi == -math.inf else own - log_phi
    return found


def differences(found, expected):
    """Largest difference over the prefixes of an enumeration, of which every one is met."""
    met, largest = set(), 0.0
    for run, t, particle in (~found.error.isnan()).nonzero().tolist():
        key = tuple(found.population.prefix(run, t + 1, particle))
        own = float(found.error[run, t, particle])
        met.add(key)
        largest = max(largest, 0.0 if own == expected[key] else abs(own - expected[key]))
    assert met == set(expected)
    return largest


CASES = {
    "fixed T": lambda: table_target(3, 4, seed=11),
    "zeros": lambda: table_target(3, 4, seed=11, zeros=0.4),
    "ends": eos_target,
    "power": lambda: powered(table_target(3, 3, seed=2), 0.5),
    "ends and power": lambda: powered(eos_target(3), 2.5),
}


@pytest.mark.parametrize("case", CASES)
def test_every_prefix_is_as_by_hand(case):
    target = CASES[case]()
    twist = random_twist(target)
    every = every_text(target.num_steps)
    if target.ending is not None:
        every = torch.unique(target.ending.filled(every), dim=0)
    found = tw.bellman_error(target, twist, every)
    assert differences(found, by_hand(target, twist)) < 1e-10
    assert (found.value_error.nan_to_num() == 0).all()
    best = tw.bellman_error(target, tw.exact(target).optimal_twist(), every)
    assert float(best.error.nan_to_num().abs().max()) < 1e-10
    assert (best.frame["spread"] < 1e-10).all()
    assert (best.frame["one_zero"] == 0).all()


def test_each_observation_has_its_own_error():
    target = infilling(3, 1)
    twist = ConditionalTables(3, 1, seed=4)
    every = every_text(3)
    observed = torch.arange(3).repeat_interleave(len(every)).unsqueeze(1)
    found = tw.bellman_error(target, twist, every.repeat(3, 1), observed=observed)
    for o in range(3):
        one = torch.tensor([o])
        alone = by_hand(target.condition(one), twist.condition(one))
        part = slice(o * len(every), (o + 1) * len(every))
        for tokens, row in zip(every.tolist(), found.error[part, :, 0].tolist(), strict=True):
            for t, value in enumerate(row, start=1):
                assert value == pytest.approx(alone[tuple(tokens[:t])], abs=1e-10)
    best = tw.bellman_error(target, ConditionalTables.optimal(target), observed=observed[:8])
    assert float(best.error.abs().max()) < 1e-10
    with pytest.raises(ValueError, match="waits for an observation"):
        tw.bellman_error(target, twist, every)


def test_pieces_of_the_vocabulary_change_nothing(monkeypatch):
    target = eos_target()
    whole = tw.bellman_error(target, random_twist(target))
    monkeypatch.setattr(prefixes, "_CELLS", 6)
    pieces = tw.bellman_error(target, random_twist(target))
    assert torch.equal(whole.error.nan_to_num(), pieces.error.nan_to_num())


def test_the_last_expectation_is_unbiased_where_phi_is_sampled(monkeypatch):
    monkeypatch.setattr(bellman, "LEAST_DRAWS", 2)
    target, twist = table_target(3, 3, seed=11), random_twist(table_target(3, 3, seed=11))
    every = every_text(3)
    exact = tw.bellman_error(target, twist, every)
    scores = []
    for seed in range(30):
        drawn = tw.bellman_error(target, twist, every, max_phi=20, seed=seed)
        assert torch.equal(drawn.error[:, 0], exact.error[:, 0])
        gap = (drawn.log_value - exact.log_value).exp() - 1
        scores.append(gap[::3, 1, 0])
    scores = torch.cat(scores)
    assert abs(float(scores.mean() / scores.std()) * len(scores) ** 0.5) < 4.5
    assert float(drawn.value_error[:, 1].mean()) > 0.01


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("log_psi = self._ended(prefixes[rows], seen, log_psi)", "pass"),
        ("if t == self.num_steps:\n                part", "if False:\n                part"),
        ("self.live = before & ~ends", "self.live = before"),
    ],
)
def test_planted_bugs_are_seen(old, new):
    target, twist = eos_target(3), random_twist(eos_target(3))
    every = torch.unique(target.ending.filled(every_text(3)), dim=0)
    broken = planted(bellman, old, new)
    try:
        found = broken.bellman_error(target, twist, every)
        assert differences(found, by_hand(target, twist)) > 1e-3
    except (AssertionError, KeyError):
        pass


def test_a_run_lends_its_particles():
    target, twist = table_target(3, 4, seed=11), random_twist(table_target(3, 4, seed=11))
    trace = tw.run_smc(target, num_particles=8, num_runs=5, twist=twist, seed=3)
    found = tw.bellman_error(target, twist, trace)
    expected = by_hand(target, twist)
    for run, t, particle in (~found.error.isnan()).nonzero().tolist():
        key = tuple(found.population.prefix(run, t + 1, particle))
        assert float(found.error[run, t, particle]) == pytest.approx(expected[key], abs=1e-10)
    frame = found.frame
    assert frame["bound"].tolist() == [0.25] * 4
    of_runs = found.error[:, 1].mean(1)
    assert frame["mean"][1] == pytest.approx(float(of_runs.mean()))
    table = found.prefixes()
    assert table["particles"].sum() == 5 * 4 * 8
    assert (table["error"].abs().diff().dropna() <= 1e-12).all()
    last = float(trace.columns.log_psi[0, 1, 0])
    assert float(found.log_psi[0, 1, 0]) == pytest.approx(last, abs=1e-12)


def test_a_nan_is_named_with_its_prefix():
    target = table_target(3, 3, seed=11)
    twist = random_twist(target)
    twist.log_tables[2][4, 1] = math.nan
    every = every_text(3)
    with pytest.raises(
        ModelOutputError, match=r"The twist gave NaN at step 3, after the text 'bb'"
    ):
        tw.bellman_error(target, twist, every)
    with pytest.raises(ValueError, match="the twist has 4 tokens and the base model 3"):
        tw.bellman_error(target, TableTwist.random(4, 3, seed=0), every)


@pytest.mark.slow
def test_a_vocabulary_of_fifty_thousand():
    """A random transformer: the walk agrees with one pass over whole rows."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=50_000,
        n_embd=16,
        n_layer=1,
        n_head=2,
        n_positions=16,
        bos_token_id=0,
        eos_token_id=0,
    )
    lm = tw.HuggingFaceLM(transformers.GPT2LMHeadModel(config).eval())
    worth = torch.randn(50_000, dtype=torch.float64)
    target = tw.Target(
        lm, tw.TokenFunction(lambda tokens: worth[tokens].sum(1)), prompt=[1, 2], num_steps=3
    )
    twist = tw.LinearHeadTwist(lm)
    torch.nn.init.normal_(next(iter(twist.parameters())), std=0.05)
    found = tw.bellman_error(target, twist, max_phi=2000)
    paths = found.along(found.population.tokens)[:, 0]
    whole = torch.cat([target.prompt_tokens.expand(16, -1), paths], 1)
    log_p = lm.teacher_force(whole, 2).log_probs.double()
    log_psi = twist.log_psi_next(whole, 2).double()
    value = torch.logsumexp(log_p[:, 1] + log_psi[:, 1], -1)
    assert torch.allclose(found.along(found.log_value)[:, 0, 0], value, atol=1e-4)
