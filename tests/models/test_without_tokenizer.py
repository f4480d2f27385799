"""A model without a tokenizer: everything works on token ids, and what needs text says so."""

import pytest
import torch
import transformers

import tsmc_widgets as tw
from tsmc_widgets.errors import NoTokenizerError
from tsmc_widgets.testing import check_language_model, check_potential

PROMPT = [3, 4]


@pytest.fixture(scope="module")
def lm():
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=11, n_embd=16, n_layer=2, n_head=2, n_positions=24, bos_token_id=0,
        eos_token_id=1, initializer_range=0.3,
    )  # fmt: skip
    return tw.HuggingFaceLM(transformers.GPT2LMHeadModel(config))


@pytest.fixture(scope="module")
def target(lm):
    return tw.Target(lm, tw.ContainsToken(7), prompt=PROMPT, num_steps=3)


@pytest.fixture(scope="module")
def trace(target):
    return tw.run_smc(target, num_particles=256, num_runs=3, seed=0, top_k=3)


def test_it_keeps_the_contract(lm):
    assert (lm.bos_token_id, lm.eos_token_id) == (0, 1)
    check_language_model(lm)
    check_potential(tw.ContainsToken(7), lm, prompt=PROMPT)


@pytest.mark.parametrize(
    "ask",
    [
        lambda lm: lm.encode("a word"),
        lambda lm: lm.encode_prompt("a word"),
        lambda lm: lm.decode(torch.tensor([PROMPT])),
        lambda lm: lm.apply_chat_template([{"role": "user", "content": "hello"}]),
        lambda lm: tw.Target(lm, tw.Constant(), prompt="a word", num_steps=2),
        lambda lm: tw.Target(lm, tw.ContainsToken("word"), prompt=PROMPT, num_steps=2),
        lambda lm: tw.run_smc(
            tw.Target(lm, tw.ContainsWord("word"), prompt=PROMPT, num_steps=2), num_particles=2
        ),
        lambda lm: tw.run_smc(
            tw.Target(lm, tw.TextFunction(len), prompt=PROMPT, num_steps=2), num_particles=2
        ),
    ],
)
def test_what_needs_text_says_what_to_do(ask, lm):
    with pytest.raises(NoTokenizerError, match=r"token ids.*HuggingFaceLM\(model, tokenizer\)"):
        ask(lm)


def test_a_trace_has_tokens_and_labels_and_no_texts(trace, tmp_path):
    for each in (trace, tw.SMCTrace.load(trace.save(tmp_path / "run.trace"))):
        with pytest.raises(NoTokenizerError, match=r"trace\.tokens"):
            each.texts()
        labels = [[" ".join(f"#{t}" for t in row) for row in run] for run in each.tokens.tolist()]
        assert [list(row) for row in each.final_texts] == labels
        assert each.to_frame().text.tolist() == [label for run in labels for label in run]
        assert each.prompt == "#3 #4"
        assert each.token_texts[3] == "#3"
        assert each.run(0).prompt == "#3 #4"


def test_views_label_tokens_by_their_ids(target, trace):
    view = tw.ParticleView(trace)
    assert view.header["prompt"] == "#3 #4"
    sample = view.header["samples"][0]["text"]
    assert set(sample) <= set("#0123456789 ")
    assert '"#3 #4"' in target.describe()
    tw.RunPanels(trace)


def test_errors_show_the_tokens(lm):
    broken = tw.TokenFunction(lambda tokens: torch.full(tokens.shape[:1], torch.nan))
    target = tw.Target(lm, broken, prompt=PROMPT, num_steps=2)
    with pytest.raises(ValueError, match=r"the tokens \["):
        tw.run_smc(target, num_particles=2)
    never = tw.Target(lm, tw.Constant() * tw.Length(at_most=0), prompt=PROMPT, num_steps=2)
    with pytest.raises(RuntimeError, match=r"last tokens: '#\d+'"):
        tw.run_smc(never, num_particles=2)
    contains = tw.Target(lm, tw.ContainsToken(7), prompt=PROMPT, num_steps=2)
    with pytest.raises(ValueError, match=r"'#5 #6', has phi = 0"):
        tw.run_conditional_smc(contains, retained=[[5, 6]], num_particles=2)


def test_bounds_twists_and_learning(target, tmp_path):
    exact = tw.exact(target)
    look = tw.LookAheadTwist(target)
    bounds = tw.log_z_bounds(
        target, twist=look, proposal=tw.TwistInduced(), num_particles=8, num_runs=40, seed=0,
        exact_samples=exact.sample(40),
    )  # fmt: skip
    assert bounds.lower.mean < exact.log_z + 0.1
    twist = tw.MLPHeadTwist(target.lm, seed=0)
    training = tw.TwistTrainer(target, twist, method="ctl", batch_size=16, seed=0)
    assert len(list(training.updates(3))) == 3
    folder = tw.save_twist(twist, tmp_path / "twist", target=target)
    loaded = tw.load_twist(folder, target.lm)
    runs = [tw.run_smc(target, twist=each, num_particles=256, seed=1) for each in (twist, loaded)]
    assert runs[0].log_z == runs[1].log_z
