"""Twists with a body of their own: whole copies and low-rank adapters."""

import sys

import pytest
import torch
from models.checkpoints import ARCHITECTURES, make_checkpoint
from twists.forms import PROMPT_LENGTH, base_values, random_texts, stepped, stir

import tsmc_widgets as tw
from tsmc_widgets.errors import MissingExtraError, UnsupportedModelError
from tsmc_widgets.models import HuggingFaceLM
from tsmc_widgets.testing import check_twist

OTHERS = sorted(set(ARCHITECTURES) - {"gpt2", "llama", "mistral"})


@pytest.mark.parametrize("architecture", OTHERS)
@pytest.mark.parametrize("make", [tw.BodyTwist, tw.LoRATwist], ids=["body", "lora"])
def test_other_architectures(architecture, make, checkpoint):
    lm = HuggingFaceLM.from_pretrained(checkpoint(architecture))
    tokens, twist = random_texts(lm), stir(make(lm))
    with torch.no_grad():
        forced = twist.log_psi_next(tokens, PROMPT_LENGTH)
    expected = stepped(twist, lm, tokens, PROMPT_LENGTH)
    torch.testing.assert_close(forced, expected, rtol=0, atol=1e-4)


def test_a_new_body_has_the_states_of_the_base_model(lm):
    """A head put on it gives what the same head gives on the base model."""
    tokens = random_texts(lm)
    head = stir(tw.LinearHeadTwist(lm))
    expected = head.log_psi_next(tokens, PROMPT_LENGTH)
    for make in (tw.BodyTwist, tw.LoRATwist):
        twist = make(lm)
        twist.head.load_state_dict(head.head.state_dict())
        found = twist.log_psi_next(tokens, PROMPT_LENGTH)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_the_body_is_a_copy_without_the_output_embedding(lm):
    body = tw.BodyTwist(lm).body
    own = dict(body.named_parameters())
    assert all(p.dtype == torch.float32 and p.requires_grad for p in own.values())
    vocab_sized = [name for name, p in own.items() if p.shape[0] == lm.vocab_size]
    assert len(vocab_sized) == 1
    places = {p.data_ptr() for p in lm.model.parameters()}
    assert not places & {p.data_ptr() for p in own.values()}


def test_a_half_precision_body_learns_in_single(checkpoint):
    lm = HuggingFaceLM.from_pretrained(checkpoint("gpt2"), dtype=torch.float16)
    twist = tw.BodyTwist(lm)
    assert {p.dtype for p in twist.parameters()} == {torch.float32}
    assert lm.model.dtype == torch.float16


def test_adapters_take_no_second_copy_of_the_weights(lm):
    twist = tw.LoRATwist(lm, rank=2)
    body = twist._states.reader.model
    places = {p.data_ptr() for p in lm.model.parameters()}
    own = {p.data_ptr() for p in twist.parameters()}
    assert {p.data_ptr() for p in body.parameters()} <= places | own
    assert not places & own
    assert {p.data_ptr() for p in body.parameters() if p.requires_grad} <= own
    named = {name for name, _ in twist.named_parameters()}
    assert set(twist.state_dict()) == named | {"constants"}


def test_adapters_follow_what_changes_in_the_base_model(checkpoint):
    lm = HuggingFaceLM.from_pretrained(checkpoint("llama"))
    tokens, twist = random_texts(lm), stir(tw.LoRATwist(lm))
    before = twist.log_psi(tokens, PROMPT_LENGTH)
    with torch.no_grad():
        lm.model.model.norm.weight.mul_(2.0)
    assert not torch.equal(twist.log_psi(tokens, PROMPT_LENGTH), before)


@pytest.mark.parametrize("scale", [1, 2.0])
def test_alpha_scales_what_the_adapters_add(gpt2, scale):
    """With W' = W + (alpha / rank) B A, twice alpha is the same as twice B."""
    tokens = random_texts(gpt2)
    one = stir(tw.LoRATwist(gpt2, rank=2, alpha=2 * scale))
    other = stir(tw.LoRATwist(gpt2, rank=2, alpha=2))
    with torch.no_grad():
        for name, adapter in other.adapters.items():
            adapter.mul_(scale if "lora_B" in name else 1)
    found = one.log_psi_next(tokens, PROMPT_LENGTH)
    expected = other.log_psi_next(tokens, PROMPT_LENGTH)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_which_layers_are_adapted(lm, gpt2):
    assert len(tw.LoRATwist(gpt2).adapters) == 2 * 2
    every = tw.LoRATwist(lm, target_modules="all-linear")
    assert len(every.adapters) > 2 * 2
    check_twist(stir(every), lm)
    named = tw.LoRATwist(gpt2, target_modules=["c_fc"])
    assert all("c_fc" in name for name in named.adapters)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rank": 0}, ValueError, "rank must be an integer of at least 1; got 0"),
        ({"alpha": 0.0}, ValueError, "alpha must be a number in .0, inf.; got 0.0"),
        ({"target_modules": ["nowhere"]}, UnsupportedModelError, "cannot adapt .*nowhere"),
    ],
    ids=["rank", "alpha", "targets"],
)
def test_adapters_that_cannot_be_made_are_refused(gpt2, options, error, message):
    before = base_values(gpt2)
    with pytest.raises(error, match=message):
        tw.LoRATwist(gpt2, **options)
    assert all(map(torch.equal, base_values(gpt2), before))


def test_without_peft_the_extra_is_named(gpt2, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtraError, match=r"LoRATwist needs peft.*tsmc-widgets\[hf\]"):
        tw.LoRATwist(gpt2)


def test_unknown_heads_are_refused(gpt2):
    with pytest.raises(ValueError, match="head must be one of linear, mlp; got 'deep'"):
        tw.BodyTwist(gpt2, head="deep")


@pytest.mark.parametrize("make", [tw.BodyTwist, tw.LoRATwist], ids=["body", "lora"])
def test_older_carries_stay_as_they_were(make, lm):
    """Two continuations of one carry, with rows chosen and repeated, do not see each other."""
    tokens, twist = random_texts(lm), stir(make(lm))
    lm_step = lm.prefill(tokens)
    carry = twist.prefill(tokens, lm_step).carry
    rows, token = torch.tensor([3, 0, 3, 4]), torch.tensor([7, 8, 9, 10])
    picked = twist.advance(token, carry.select(rows), lm_step).log_psi_next
    same = torch.tensor([1, 2, 3, 4, 5])
    first = twist.advance(same, carry, lm_step)
    second = twist.advance(same + 20, carry, lm_step)
    again = twist.advance(same, carry, lm_step)
    assert torch.equal(again.log_psi_next, first.log_psi_next)
    assert not torch.equal(second.log_psi_next, first.log_psi_next)
    whole = torch.cat([tokens[rows], token.unsqueeze(1)], dim=1)
    expected = twist.prefill(whole, lm_step).log_psi_next
    torch.testing.assert_close(picked, expected, rtol=0, atol=1e-4)


def test_prompts_longer_than_the_context_are_refused(checkpoint, tmp_path):
    lm = HuggingFaceLM.from_pretrained(make_checkpoint("gpt2", tmp_path, n_positions=6))
    with pytest.raises(ValueError, match="context holds 6"):
        tw.BodyTwist(lm).log_psi(random_texts(lm, length=8), 2)
