"""Models of half precision: one log p0, whatever is read together and in whichever way."""

import copy

import pytest
import torch
from models.checkpoints import ARCHITECTURES, CLASSIFIERS, make_checkpoint, make_classifier

import tsmc_widgets as tw
from tsmc_widgets.models import HuggingFaceLM, load_classifier, storybook
from tsmc_widgets.models.classifier import TextClassifier
from tsmc_widgets.models.precision import float32_arithmetic
from tsmc_widgets.twists import MLPHeadTwist

HALF = [torch.float16, torch.bfloat16]
PROMPT = "Once upon a time"


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_answers_are_those_of_a_float32_copy(architecture, dtype, tmp_path):
    lm = HuggingFaceLM.from_pretrained(make_checkpoint(architecture, tmp_path), dtype=dtype)
    wide = HuggingFaceLM(copy.deepcopy(lm.model).float(), lm.tokenizer)
    ids = torch.randint(40, (5, 12), generator=torch.Generator().manual_seed(0))
    forced, expected = lm.teacher_force(ids, 3), wide.teacher_force(ids, 3)
    assert torch.equal(forced.log_probs, expected.log_probs)
    assert torch.equal(forced.hidden, expected.hidden)
    assert torch.equal(lm.log_prob(ids, 3), wide.log_prob(ids, 3))
    step, other = lm.prefill(ids[:, :3]), wide.prefill(ids[:, :3])
    for at in range(3, 11):
        step, other = lm.advance(ids[:, at], step.carry), wide.advance(ids[:, at], other.carry)
        assert torch.equal(step.log_probs, other.log_probs)
        assert torch.equal(step.hidden, other.hidden)
    assert {p.dtype for p in lm.model.parameters()} == {dtype}
    assert lm.model(ids).logits.dtype == dtype


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("architecture", CLASSIFIERS)
def test_logits_of_a_classifier_are_those_of_a_float32_copy(architecture, dtype, tmp_path):
    classifier = load_classifier(make_classifier(architecture, tmp_path, num_labels=3), dtype=dtype)
    wide = TextClassifier(copy.deepcopy(classifier.model).float(), classifier.tokenizer)
    texts = ["fox", "the little old bear had an apple", "sad friend ."]
    assert torch.equal(classifier.logits(texts), wide.logits(texts))
    assert classifier.model.dtype == dtype


@pytest.fixture(scope="module", params=HALF, ids=str)
def target(request):
    lm = HuggingFaceLM.from_pretrained(storybook.path("lm"), dtype=request.param)
    return tw.Target(lm, tw.Continuation(" happy"), prompt=PROMPT, num_steps=20)


def test_one_particle_gives_f_and_g(target):
    twist = MLPHeadTwist(target.lm, seed=0)
    generator = torch.Generator().manual_seed(0)
    for parameter in twist.parameters():
        torch.nn.init.normal_(parameter, std=0.05, generator=generator)
    settings = {"num_particles": 1, "twist": twist, "proposal": tw.TwistInduced()}
    below = tw.run_smc(target, num_runs=64, seed=0, **settings)
    drawn = below.tokens[:, 0]
    above = tw.run_conditional_smc(target, retained=drawn, **settings)
    for trace in (below, above):
        whole = target.log_sigma_tilde(drawn) - trace.paths("log_q").sum(-1)[:, 0]
        torch.testing.assert_close(trace.log_z, whole, rtol=0, atol=1e-4)


def test_a_proposal_equal_to_p0_has_no_divergence(target):
    trace = tw.run_smc(target, num_particles=64, rule="never", seed=1)
    drawn, log_q = trace.tokens.reshape(-1, 20), trace.paths("log_q").sum(-1).reshape(-1)
    torch.testing.assert_close(target.log_p(drawn), log_q, rtol=0, atol=1e-4)
    alone = torch.cat([target.log_p(row.unsqueeze(0)) for row in drawn[:8]])
    torch.testing.assert_close(alone, log_q[:8], rtol=0, atol=1e-4)


def test_a_cast_to_the_parameters_dtype_rounds_nothing(target):
    third = torch.tensor(1 / 3)
    with float32_arithmetic(target.lm.model):
        assert torch.equal(third.to(target.lm.model.dtype), third)
    assert not torch.equal(third.to(target.lm.model.dtype), third)
