"""Models of half precision: one log p0, whatever is read together and in whichever way."""

import copy

import pytest
import torch
from models.checkpoints import ARCHITECTURES, CLASSIFIERS, make_checkpoint, make_classifier

import tsmc_widgets as tw
from tsmc_widgets.models import HuggingFaceLM, load_classifier, precision, storybook
from tsmc_widgets.models.classifier import TextClassifier
from tsmc_widgets.models.precision import float32_arithmetic, has_bfloat16
from tsmc_widgets.testing import check_language_model
from tsmc_widgets.twists import MLPHeadTwist

HALF = [torch.float16, torch.bfloat16]
PROMPT = "Once upon a time"


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_answers_are_those_of_a_float32_copy(architecture, dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "has_bfloat16", lambda: False)
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


needs_bfloat16 = pytest.mark.skipif(
    not has_bfloat16(), reason="this CPU has no instructions for bfloat16"
)


@needs_bfloat16
@pytest.mark.parametrize("architecture", sorted(set(ARCHITECTURES) - {"gpt_neo"}))
def test_bfloat16_answers_are_equal_to_the_bit_however_a_text_is_read(architecture, tmp_path):
    lm = HuggingFaceLM.from_pretrained(make_checkpoint(architecture, tmp_path), dtype="bfloat16")
    assert isinstance(lm._arithmetic(), precision.BFloat16Arithmetic)
    check_language_model(lm, prompt_length=6, num_steps=9, batch=5)
    ids = torch.randint(40, (37, 24), generator=torch.Generator().manual_seed(0))
    forced = lm.teacher_force(ids, 3).hidden
    shared = torch.cat([ids[:1, :9].expand(37, -1), ids[:, 9:]], 1)
    alone = torch.cat([lm.teacher_force(row[None], 9).hidden for row in shared])
    assert torch.equal(lm.teacher_force(shared, 9).hidden, alone)
    for rows in (slice(0, 1), slice(3, 20), slice(37)):
        step = lm.prefill(ids[rows, :3])
        for at in range(3, 24):
            assert torch.equal(step.hidden, forced[rows, at - 3])
            step = lm.advance(ids[rows, at], step.carry)


@needs_bfloat16
def test_a_model_whose_answers_depend_on_how_it_is_read_computes_in_float32(tmp_path, monkeypatch):
    neo = HuggingFaceLM.from_pretrained(
        make_checkpoint("gpt_neo", tmp_path / "neo"), dtype="bfloat16"
    )
    folder = make_checkpoint("llama", tmp_path / "llama", dtype=torch.bfloat16)
    assert HuggingFaceLM.from_pretrained(folder).dtype == torch.bfloat16
    monkeypatch.setattr(precision, "_attention", torch.nn.functional.scaled_dot_product_attention)
    llama = HuggingFaceLM.from_pretrained(folder, dtype="bfloat16")
    for lm in (neo, llama):
        assert not isinstance(lm._arithmetic(), precision.BFloat16Arithmetic)
    assert HuggingFaceLM.from_pretrained(folder).dtype == torch.float32


@needs_bfloat16
def test_products_whose_sums_depend_on_the_number_of_rows_are_told(tmp_path, monkeypatch):
    shapes = [torch.Size(shape) for shape in ((16, 32), (576, 1536), (33, 100))]
    kinds = [(True, False), (False, False), (False, True)]
    assert all(precision._sums_alike(*kind, shape) for kind in kinds for shape in shapes)
    model = HuggingFaceLM.from_pretrained(make_checkpoint("qwen2", tmp_path)).model.bfloat16()
    assert precision.is_bfloat16(model)
    with monkeypatch.context() as patch:
        patch.setattr(precision, "_LEAST_TERMS", 0)
        assert not any(precision._sums_alike(*kind, shapes[0]) for kind in kinds)
        assert not precision.is_bfloat16(model)
    # Of a mixture of experts, say, whose products are none of a linear layer.
    model.experts = torch.nn.Parameter(torch.zeros(2, 4, 4, dtype=torch.bfloat16))
    assert not precision.is_bfloat16(model)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_in_float64_is_attention(causal, monkeypatch):
    query, key, value = torch.randn(3, 2, 6, 7, 8).unbind()
    masks = [None] if causal else [None, torch.rand(2, 1, 7, 7) < 0.7, torch.randn(2, 6, 7, 7)]
    monkeypatch.setattr(precision, "_SCORES", 200)
    for mask in masks:
        given = {"attn_mask": mask, "is_causal": causal, "enable_gqa": True, "scale": 0.3}
        expected = torch.nn.functional.scaled_dot_product_attention(
            query.double(), key[:, :2].double(), value[:, :2].double(),
            **given | {"attn_mask": mask.double() if mask is masks[-1] and masks[1:] else mask},
        )  # fmt: skip
        found = precision._attention(query, key[:, :2], value[:, :2], **given)
        torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=0)


def test_the_output_weight_follows_the_model(tmp_path):
    lm = HuggingFaceLM.from_pretrained(make_checkpoint("llama", tmp_path), dtype="bfloat16")
    before = lm.prefill(torch.tensor([[3, 4]])).log_probs
    with torch.no_grad():
        lm.model.get_output_embeddings().weight.mul_(1.5)
    assert not torch.allclose(lm.prefill(torch.tensor([[3, 4]])).log_probs, before, atol=1e-2)


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
