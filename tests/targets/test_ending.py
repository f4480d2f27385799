"""Where texts end: several EOS tokens, stops across tokens, a function of a token; all absorb."""

import itertools
import math

import pytest
import torch
from smc.enumeration import expected_inverse_z, expected_z
from smc.toys import chain

import tsmc_widgets as tw
from tsmc_widgets.evaluation.baselines import beam_search
from tsmc_widgets.learning import Samples, score
from tsmc_widgets.models import load_language_model
from tsmc_widgets.smc.exact import ChainOracle, EnumeratedOracle
from tsmc_widgets.targets.ending import ending_of, token_bytes, token_texts
from tsmc_widgets.testing import check_potential
from tsmc_widgets.twists import TableTwist

ROWS = chain().transition.tolist()
WORTH = [-0.4, 0.7, 0.9]
ENDINGS = {
    "two EOS": (("c", "b"), None, lambda text: text[-1] in "bc"),
    "stop over two tokens": ("c", "ab", lambda text: text.endswith(("c", "ab"))),
    "two stops": ("c", ["aab", "ba"], lambda text: text.endswith(("c", "aab", "ba"))),
    "function": ("c", lambda text: text == "b", lambda text: text[-1] in "bc"),
}


def weigh(tokens):
    worth = torch.tensor(WORTH, dtype=torch.float64)
    return (worth[tokens] * (1 + torch.arange(tokens.shape[1]))).sum(-1)


def target(name, num_steps=4, potential=None):
    eos, stop, _ = ENDINGS[name]
    phi = potential or tw.TokenFunction(weigh)
    lm = chain(eos=eos)
    return tw.Target(lm, phi, prompt="a", num_steps=num_steps, eos="absorb", stop=stop)


def by_hand(name, num_steps=4):
    """p0 of every text, token by token: after its end a text is filled up with the first EOS."""
    eos, _, ends = ENDINGS[name]
    fill, found = "abc".index(eos[0]), {}
    for row in itertools.product(range(3), repeat=num_steps):
        p, last, ended = 1.0, 0, False
        for t, token in enumerate(row):
            p *= float(token == fill) if ended else ROWS[last][token]
            ended, last = ended or ends("".join("abc"[v] for v in row[: t + 1])), token
        if p:
            found[row] = p
    return found


@pytest.mark.parametrize("name", ENDINGS)
def test_p0_and_both_oracles_are_those_by_hand(name):
    t, known = target(name), by_hand(name)
    assert math.fsum(known.values()) == pytest.approx(1.0)
    tokens = torch.tensor(list(known))
    log_p = torch.tensor(list(known.values()), dtype=torch.float64).log()
    torch.testing.assert_close(t.log_p(tokens), log_p, rtol=0, atol=1e-12)
    oracle = EnumeratedOracle(t)
    assert {tuple(row) for row in oracle.tokens.tolist()} == set(known)
    log_z = float((log_p + weigh(tokens)).logsumexp(0))
    assert oracle.log_z == pytest.approx(log_z, abs=1e-12)
    finite = target(name, potential=tw.ContainsToken("b"))
    by_chain, by_tree = tw.exact(finite), EnumeratedOracle(finite)
    assert isinstance(by_chain, ChainOracle)
    assert by_chain.log_z == pytest.approx(by_tree.log_z, abs=1e-12)
    torch.testing.assert_close(by_chain.marginals(), by_tree.marginals(), rtol=0, atol=1e-12)
    bracket = tw.bracket_log_z(finite)
    assert bracket.lower <= by_tree.log_z <= bracket.upper < by_tree.log_z + 1e-9


@pytest.mark.parametrize("name", ENDINGS)
def test_the_algorithm_is_unbiased(name):
    t = target(name, num_steps=3)
    oracle = EnumeratedOracle(t)
    how = {
        "num_particles": 2,
        "twist": TableTwist.random(3, 3, seed=2, prompt_length=1),
        "proposal": tw.TwistInduced(),
    }
    z = expected_z(t, resampler="systematic", **how)
    assert z == pytest.approx(math.exp(oracle.log_z), rel=1e-12)
    if name == "two stops":
        inverse = expected_inverse_z(t, oracle, **how)
        assert inverse == pytest.approx(math.exp(-oracle.log_z), rel=1e-12)


@pytest.mark.parametrize("name", ENDINGS)
def test_draws_scores_and_learning_know_the_end(name):
    t, known = target(name), by_hand(name)
    drawn = t.context.draw(500, torch.Generator().manual_seed(0))
    assert {tuple(row) for row in drawn.tolist()} <= set(known)
    trace = tw.run_smc(t, num_particles=200, rule="never", seed=1)
    assert {tuple(row) for row in trace.tokens.tolist()} <= set(known)
    samples = Samples.of_trace(trace)
    scored = score(t, tw.TableHeadTwist(t.lm, num_steps=4, prompt_length=1), samples)
    torch.testing.assert_close(scored.log_p, samples.log_q, rtol=0, atol=1e-12)
    assert torch.equal(~scored.live, t.ending.after(samples.tokens))
    beam = beam_search(t, num_samples=100)
    assert beam.log_z == pytest.approx(EnumeratedOracle(t).log_z, abs=1e-12)
    assert len(beam.tokens) == len(known)
    check_potential(tw.TokenFunction(weigh), t.lm, prompt="a", eos="absorb")
    goes_on = torch.tensor([[1, 0, 0, 0]] if name != "stop over two tokens" else [[0, 1, 0, 0]])
    if name != "two stops":
        with pytest.raises(ValueError, match="retained goes on after its EOS"):
            tw.run_conditional_smc(t, retained=goes_on, num_particles=2)


def test_length_counts_up_to_any_eos():
    t = tw.Target(
        chain(eos=("c", "b")), tw.Length(at_most=1), prompt="a", num_steps=3, eos="absorb"
    )
    tokens = torch.tensor([[0, 1, 2], [1, 2, 2], [0, 0, 1]])
    assert t.log_phi(tokens).tolist() == [0.0, 0.0, -math.inf]
    torch.testing.assert_close(t.potential.automaton().log_phi(tokens), t.log_phi(tokens))


def test_stops_of_a_tokenizer_and_an_eos_of_its_config():
    lm = load_language_model("storybook")
    assert lm.eos_token_ids == (lm.eos_token_id,)
    texts = token_texts(lm)
    assert texts[lm.eos_token_id] == ""
    row = torch.tensor([lm.encode("Once upon a time there was a")])
    ending = ending_of(lm, "upon a t")
    assert ending.over(row).tolist() == [[False] * 3 + [True] * (row.shape[1] - 3)]
    assert ending_of(lm, "never seen").over(row).sum() == 0
    assert token_bytes("<0xE2><0x80>") == b"\xe2\x80"
    assert token_bytes(" é") == " é".encode()


def test_what_is_no_stop_is_refused():
    lm = chain(eos="c")
    with pytest.raises(ValueError, match="give eos='absorb'"):
        tw.Target(lm, tw.Constant(), prompt="a", num_steps=2, stop="b")
    for stop in ("", ["a", ""]):
        with pytest.raises(ValueError, match="stop must be a non-empty text"):
            tw.Target(lm, tw.Constant(), prompt="a", num_steps=2, eos="absorb", stop=stop)
