import subprocess
import sys

import numpy as np
import pytest
import torch
from targets.toys import every, letters, words

from tsmc_widgets.errors import ContextLengthError, UnknownTokenError, UnsupportedModelError
from tsmc_widgets.models.tabular import TabularLM
from tsmc_widgets.targets import AvoidsToken, Constant, ContainsToken, Continuation, Target


def test_log_sigma_tilde_is_log_p0_plus_log_phi():
    lm = letters()
    target = Target(lm, ContainsToken("c"), prompt="b", num_steps=3)
    tokens = every(3, 3)
    chain = lm.transition.log()
    previous = torch.cat([torch.ones(27, 1, dtype=torch.int64), tokens[:, :-1]], dim=1)
    log_p = chain[previous, tokens].sum(-1)
    torch.testing.assert_close(target.log_p(tokens), log_p)
    torch.testing.assert_close(target.log_sigma_tilde(tokens), log_p + target.log_phi(tokens))
    assert target.log_p(tokens).dtype == torch.float64
    assert abs(target.log_p(tokens).exp().sum() - 1) < 1e-12


def test_log_p_is_the_same_in_small_pieces(monkeypatch):
    target = Target(letters(), ContainsToken("c"), prompt="b", num_steps=3)
    tokens = every(3, 3)
    whole = target.log_p(tokens)
    monkeypatch.setattr("tsmc_widgets.targets.context.PIECE", 50)
    assert torch.equal(target.log_p(tokens), whole)
    assert target.log_p(tokens[:0]).shape == (0,)


def test_absorbing_eos():
    lm = letters(eos="c")
    target = Target(lm, AvoidsToken("bb"), prompt="c", num_steps=3, eos="absorb")
    tokens = every(3, 3)
    assert target.absorbs_eos
    assert target.eos_token_id == 2
    assert abs(target.log_p(tokens).exp().sum() - 1) < 1e-12
    short = torch.tensor([[0, 2, 2]])
    step = lm.transition.log()
    assert target.log_p(short).item() == pytest.approx((step[2, 0] + step[0, 2]).item())
    assert target.log_p(torch.tensor([[0, 2, 1]])).item() == -torch.inf
    ignoring = Target(lm, AvoidsToken("bb"), prompt="c", num_steps=3)
    assert not ignoring.absorbs_eos
    assert ignoring.log_p(torch.tensor([[0, 2, 1]])).isfinite().all()


@pytest.mark.parametrize("prompt", ["ab", [0, 1], (0, 1), torch.tensor([0, 1])])
def test_prompts(prompt):
    target = Target(letters(), ContainsToken("c"), prompt=prompt, num_steps=2)
    assert target.prompt_tokens.tolist() == [0, 1]
    assert target.prompt_tokens.dtype == torch.int64


@pytest.mark.parametrize("prompt", ["", [], torch.tensor([], dtype=torch.int64)])
def test_empty_prompts(prompt):
    target = Target(letters(), ContainsToken("c"), prompt=prompt, num_steps=2)
    assert target.prompt_tokens.shape == (0,)
    lm = letters()
    lm.allows_empty_prompt = False
    with pytest.raises(ValueError, match=r"prompt is empty.*BOS"):
        Target(lm, ContainsToken("c"), prompt=prompt, num_steps=2)


def test_chat_messages_go_through_the_models_template():
    lm = letters()
    messages = [{"role": "user", "content": "ab"}]
    with pytest.raises(UnsupportedModelError, match="no chat template"):
        Target(lm, ContainsToken("c"), prompt=messages, num_steps=2)
    lm.apply_chat_template = lambda given: lm.encode("c" + given[0]["content"] + "c")
    target = Target(lm, ContainsToken("c"), prompt=messages, num_steps=2)
    assert target.prompt_tokens.tolist() == [2, 0, 1, 2]
    with pytest.raises(ValueError, match="'role' and 'content'"):
        Target(lm, ContainsToken("c"), prompt=[{"text": "ab"}], num_steps=2)


def test_a_text_prompt_begins_as_the_model_wants():
    lm = letters()
    lm.encode_prompt = lambda text: [2, *lm.encode(text)]
    assert Target(lm, ContainsToken("c"), prompt="a", num_steps=1).prompt_tokens.tolist() == [2, 0]


def test_texts():
    target = Target(words(), ContainsToken(0), prompt="art", num_steps=2)
    tokens = torch.tensor([[0, 1], [2, 2]])
    assert target.texts(tokens) == [" cat Cat.", " art art"]
    assert target.full_texts(tokens) == ["art cat Cat.", "art art art"]
    assert target.describe() == 'contains token "cat", 2 tokens after "art"'
    assert repr(target) == f"<Target: {target.describe()}>"


def test_targets_do_not_change():
    target = Target(letters(), ContainsToken("c"), prompt="", num_steps=2)
    with pytest.raises(AttributeError):
        target.num_steps = 3


@pytest.mark.parametrize("steps", [0, -1, True])
def test_no_steps_are_refused(steps):
    with pytest.raises(ValueError, match="num_steps must be an integer of at least 1"):
        Target(letters(), ContainsToken("c"), prompt="", num_steps=steps)


def test_prompts_that_are_refused():
    def build(prompt, lm=None, num_steps=3):
        return Target(lm or letters(), ContainsToken("c"), prompt=prompt, num_steps=num_steps)

    with pytest.raises(UnknownTokenError, match="'z' at position 1"):
        build("az")
    for bad in ([0, 3], [-1], torch.tensor([7])):
        with pytest.raises(UnknownTokenError, match="ids are 0 to 2"):
            build(bad)
    with pytest.raises(ValueError, match="one axis"):
        build(torch.tensor([[0, 1]]))
    with pytest.raises(ValueError, match=r"torch\.float32"):
        build(torch.tensor([0.5]))
    with pytest.raises(TypeError, match="integer token ids; got True"):
        build([True])
    with pytest.raises(ContextLengthError, match="prompt's 3 tokens and num_steps=3 make 6"):
        build("abc", TabularLM.random(3, 5, seed=0))
    build("ab", TabularLM.random(3, 5, seed=0))
    with pytest.raises(ValueError, match="eos='ignore'"):
        Target(letters(), ContainsToken("c"), prompt="", num_steps=2, eos="absorb")


def test_tokens_of_the_wrong_width_are_refused():
    target = Target(letters(), ContainsToken("c"), prompt="a", num_steps=3)
    for method in (target.log_phi, target.log_p, target.log_sigma_tilde):
        with pytest.raises(ValueError, match=r"shape \(rows, 3\).*got \(9, 2\)"):
            method(every(3, 2))
    with pytest.raises(ValueError, match=r"shape \(rows, 2\)"):
        target.log_phi_next(every(3, 3))
    continued = Target(letters(), Continuation("a"), prompt="a", num_steps=3)
    assert continued.log_phi_next is None


WRONG_TYPES = """
import sys
from tsmc_widgets.models.tabular import TabularLM
from tsmc_widgets.targets import *
assert "transformers" not in sys.modules
lm = TabularLM.markov([0.5, 0.5], [[0.5, 0.5]] * 2)
phi = ContainsToken("a")
def expect(error, part, **changes):
    arguments = dict(lm=lm, potential=phi, prompt="a", num_steps=2) | changes
    try:
        Target(arguments.pop("lm"), arguments.pop("potential"), **arguments)
    except error as raised:
        assert part in str(raised), raised
    else:
        raise AssertionError(changes)
expect(TypeError, "load_language_model", lm="gpt2")
expect(TypeError, "lacks an instance", lm=TabularLM)
expect(TypeError, "lacks vocab_size, prefill", lm=None)
expect(TypeError, "TextFunction or TokenFunction", potential=len)
expect(TypeError, "got None", potential=None)
expect(TypeError, "prompt must be text", prompt=None)
expect(TypeError, "integer token ids; got 'a'", prompt=["a"])
expect(TypeError, "integer token ids; got 0.5", prompt=[0.5])
expect(ValueError, "num_steps must be", num_steps="2")
expect(ValueError, "num_steps must be", num_steps=2.0)
expect(ValueError, "eos must be one of ignore, absorb; got 'stop'", eos="stop")
def refused(error, part, build):
    try:
        build()
    except error as raised:
        assert part in str(raised), raised
    else:
        raise AssertionError(part)
refused(TypeError, "labels and a method logits(texts)", lambda: ClassProbability(3, label=1))
refused(TypeError, "must be callable; got 3", lambda: TextFunction(3))
refused(ValueError, "takes must be one of text, texts", lambda: TextFunction(len, takes="all"))
refused(ValueError, "scope must be one of", lambda: ContainsWord("a", scope="all"))
refused(ValueError, "case must be one of", lambda: ContainsWord("a", case="lower"))
refused(ValueError, "non-empty text, an id", lambda: ContainsToken(1.5))
refused(ValueError, "non-empty text, an id", lambda: ContainsToken(None))
target = Target(lm, phi, prompt="a", num_steps=2)
for seed in (None, 1.5, True, "1"):
    refused(ValueError, f"seed must be an integer of at least 0; got {seed!r}",
            lambda: target.exact_samples(1, seed=seed))
refused(ValueError, "power of a potential must be", lambda: phi ** "2")
assert "transformers" not in sys.modules
"""


def test_wrong_types_have_clear_errors_and_transformers_stays_unloaded():
    # In a process of its own: under pytest the annotations are checked before our own checks.
    done = subprocess.run([sys.executable, "-c", WRONG_TYPES], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, ">i4"])
def test_a_prompt_may_be_an_array_of_ids(dtype):
    given = Target(letters(), Constant(), prompt=np.array([0, 2], dtype=dtype), num_steps=2)
    assert given.prompt_tokens.tolist() == [0, 2]
    with pytest.raises(ValueError, match="prompt must hold token ids; got dtype"):
        Target(letters(), Constant(), prompt=np.array([0.0]), num_steps=2)


@pytest.mark.parametrize("prompt", [b"\x00", bytearray(b"\x00"), memoryview(b"\x00")])
def test_bytes_are_no_prompt(prompt):
    with pytest.raises(TypeError, match=r"prompt must be text.*got (bytes|bytearray|memoryview)"):
        Target(letters(), Constant(), prompt=prompt, num_steps=2)
