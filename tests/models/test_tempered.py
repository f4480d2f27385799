"""A tempered model is a language model of its own: exact, the same on both paths, ties included."""

import math
import pickle

import pytest
import torch
from scipy import stats

import tsmc_widgets as tw
from tsmc_widgets.models import load_language_model
from tsmc_widgets.smc.exact import ChainOracle, EnumeratedOracle
from tsmc_widgets.testing import check_language_model

SETTINGS = [
    {"temperature": 0.5},
    {"temperature": 2.0, "top_k": 20},
    {"top_p": 0.8},
    {"min_p": 0.3},
    {"temperature": 0.7, "top_k": 30, "top_p": 0.9, "min_p": 0.1},
]


def by_hand(row, *, temperature=1.0, top_k=None, top_p=1.0, min_p=0.0):
    """What is left of one row of probabilities, ties kept."""
    left = {token: p ** (1 / temperature) for token, p in enumerate(row)}

    def keep(cut):
        kept = {token: p for token, p in left.items() if p >= cut * (1 - 1e-9)}
        return {token: p / math.fsum(kept.values()) for token, p in kept.items()}

    left = keep(0.0)
    if top_k is not None:
        left = keep(sorted(left.values(), reverse=True)[:top_k][-1])
    above, cut = 0.0, 1.0
    for p in sorted(left.values(), reverse=True):
        if above < top_p - 1e-9:
            cut = p
        above += p
    left = keep(cut)
    left = keep(min_p * max(left.values()))
    return [left.get(token, 0.0) for token in range(len(row))]


ROWS = [[0.4, 0.3, 0.2, 0.1], [0.25] * 4, [0.5, 0.25, 0.25, 0.0], [0.1, 0.2, 0.2, 0.5]]


@pytest.mark.parametrize(
    "given",
    [{"temperature": 0.5}, {"temperature": 3.0}, {"top_k": 1}, {"top_k": 2}, {"top_k": 9},
     {"top_p": 0.5}, {"top_p": 0.75}, {"top_p": 1.0}, {"min_p": 0.5}, {"min_p": 1.0},
     {"temperature": 0.5, "top_k": 3, "top_p": 0.8, "min_p": 0.2}],
    ids=str,
)  # fmt: skip
def test_every_row_is_what_the_definition_says(given):
    """With 0.5, 0.25, 0.25 both of the tied tokens stay wherever one of them does."""
    lm = tw.Tempered(tw.TabularLM.markov([0.25] * 4, ROWS), **given)
    found = lm.prefill(torch.arange(4).unsqueeze(1)).log_probs.exp()
    expected = torch.tensor([by_hand(row, **given) for row in ROWS], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("given", SETTINGS, ids=str)
@pytest.mark.parametrize("architecture", ["gpt2", "mistral"])
def test_the_contract_of_a_language_model(architecture, given, checkpoint):
    check_language_model(tw.Tempered(load_language_model(checkpoint(architecture)), **given))


def test_a_cut_that_is_other_on_the_two_paths_breaks_the_contract(checkpoint, monkeypatch):
    lm = tw.Tempered(load_language_model(checkpoint("gpt2")), top_k=5)
    check_language_model(lm)
    monkeypatch.setattr(
        tw.Tempered, "teacher_force", lambda lm, *given: lm.lm.teacher_force(*given)
    )
    with pytest.raises(AssertionError, match="teacher_force and stepping must agree"):
        check_language_model(lm)


def test_rounding_does_not_part_tied_tokens():
    """Two tokens with one output embedding differ by rounding alone, and stay or go together."""
    row = torch.tensor([0.4, 0.3, 0.3]).log()
    lm = tw.Tempered(tw.TabularLM.random(3, 1, seed=0), top_k=2)
    for shift in (-1e-6, 0.0, 1e-6):
        assert bool((lm.tempered(row + torch.tensor([0.0, shift, 0.0])) > -math.inf).all())
    assert int((lm.tempered(row + torch.tensor([0.0, 0.01, 0.0])) > -math.inf).sum()) == 2


@pytest.mark.parametrize("potential", [tw.ContainsToken("b"), tw.MatchesRegex("aba")])
def test_both_oracles_know_it_and_smc_agrees(potential):
    chain = tw.TabularLM.markov(
        [0.7, 0.2, 0.1], [[0.7, 0.2, 0.1], [0.5, 0.4, 0.1], [0.1, 0.3, 0.6]], symbols="abc"
    )
    lm = tw.Tempered(chain, temperature=0.6, top_p=0.95)
    target = tw.Target(lm, potential, prompt="b", num_steps=4)
    by_chain, by_tree = tw.exact(target), EnumeratedOracle(target)
    assert isinstance(by_chain, ChainOracle)
    assert by_chain.log_z == pytest.approx(by_tree.log_z, abs=1e-12)
    assert len(by_tree.tokens) < 81
    plain = tw.exact(tw.Target(chain, potential, prompt="b", num_steps=4)).log_z
    assert abs(by_tree.log_z - plain) > 0.05
    torch.testing.assert_close(target.log_p(by_tree.tokens), by_tree.log_p, rtol=0, atol=1e-12)
    trace = tw.run_smc(target, num_particles=8, num_runs=2000, seed=1, dead_runs="keep")
    z = trace.log_z.exp()
    assert abs(float((z.mean() - math.exp(by_tree.log_z)) / (z.std() / 2000**0.5))) < 4.5


def test_prompts_texts_hidden_states_and_twists_are_those_of_the_model(storybook_once):
    lm = tw.Tempered(storybook_once, temperature=0.7, top_k=50)
    assert lm.encode_prompt("Once upon") == storybook_once.encode_prompt("Once upon")
    target = tw.Target(lm, tw.ContainsWord("fox"), prompt="Once upon a time", num_steps=4)
    same = tw.Target(
        tw.Tempered(storybook_once, temperature=0.7, top_k=50),
        tw.ContainsWord("fox"),
        prompt="Once upon a time",
        num_steps=4,
    )
    assert target.lm == same.lm
    tokens = target.prompt_tokens.unsqueeze(0)
    assert torch.equal(lm.prefill(tokens).hidden, storybook_once.prefill(tokens).hidden)
    trainer = tw.TwistTrainer(target, tw.LinearHeadTwist(lm), batch_size=32)
    trainer.update()
    trace = tw.run_smc(target, num_particles=16, twist=trainer.twist, proposal=tw.TwistInduced())
    assert trace.done
    found = target.log_p(trace.tokens)
    torch.testing.assert_close(found, trace.paths("log_p")[0].sum(1), rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def storybook_once():
    return load_language_model("storybook")


def test_a_twist_remembers_the_settings_and_loads_for_others(storybook_once, tmp_path):
    twist = tw.LinearHeadTwist(tw.Tempered(storybook_once, temperature=0.5))
    tw.save_twist(twist, tmp_path)
    loaded = tw.load_twist(tmp_path, tw.Tempered(storybook_once, temperature=0.8))
    assert loaded.card["base_model"]["tempered"] == {"temperature": 0.5}
    assert tw.load_twist(tmp_path, storybook_once).lm is storybook_once


def test_what_is_no_setting_is_refused_and_the_rest_is_kept():
    lm = tw.TabularLM.random(3, 2, seed=0)
    for given in ({"temperature": 0.0}, {"top_p": 1.5}, {"min_p": 0.0}, {"top_k": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(given))} must be"):
            tw.Tempered(lm, **given)
    assert tw.Tempered(lm, top_k=1).settings == {"top_k": 1}
    again = pickle.loads(pickle.dumps(tw.Tempered(lm, temperature=0.5)))
    assert again.temperature == 0.5
    assert again.vocab_size == 3


def test_draws_have_the_frequencies_of_the_model():
    lm = tw.Tempered(tw.TabularLM.markov([0.25] * 4, ROWS), temperature=0.5, top_k=3)
    target = tw.Target(lm, tw.Constant(), prompt="a", num_steps=1)
    drawn = target.exact_samples(4000, seed=0, progress=False).tokens[:, 0]
    counts = torch.bincount(drawn, minlength=4)
    expected = torch.tensor(by_hand(ROWS[0], temperature=0.5, top_k=3), dtype=torch.float64)
    assert int(counts[3]) == 0
    assert stats.chisquare(counts[:3], 4000 * expected[:3] / expected[:3].sum()).pvalue > 1e-6
