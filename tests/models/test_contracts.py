"""The contract check passes on right models and fails on each planted bug."""

from dataclasses import replace

import pytest
import torch
from models.checkpoints import ARCHITECTURES, WINDOW, make_checkpoint

from tsmc_widgets.models import HuggingFaceLM, TabularLM, load_language_model
from tsmc_widgets.models.protocol import LMStep, TeacherForced
from tsmc_widgets.testing import check_language_model


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    return make_checkpoint("gpt2", tmp_path_factory.mktemp("gpt2"))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_keeps_the_contract(architecture, tmp_path):
    lm = load_language_model(make_checkpoint(architecture, tmp_path))
    check_language_model(lm)
    check_language_model(lm, prompt_length=1, num_steps=4, batch=2, seed=1)
    check_language_model(lm, prompt_length=WINDOW + 3, num_steps=2 * WINDOW, batch=3, seed=2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_keep_the_contract(dtype, gpt2):
    lm = HuggingFaceLM.from_pretrained(gpt2, dtype=dtype)
    check_language_model(lm, tolerance=1e-9 if dtype == torch.float64 else 1e-4)


def test_a_context_too_short_for_the_check_is_told(gpt2):
    with pytest.raises(AssertionError, match=r"reads 40 tokens .* holds 32"):
        check_language_model(load_language_model(gpt2), num_steps=37)


def write_in_place(self, tokens, carry):
    """The cache is lengthened where it stands, as a static cache would be."""
    step = HuggingFaceLM.advance(self, tokens, carry)
    for name in ("store", "size", "rows", "length"):
        object.__setattr__(carry, name, getattr(step.carry, name))
    return step


def overwrite_last_key(self, tokens, carry):
    step = HuggingFaceLM.advance(self, tokens, carry)
    carry.layer(0)[0][:, :, -1] += 1.0
    return step


def ignore_selection(self, tokens, carry):
    if carry.rows is not None:
        carry = replace(carry, rows=torch.arange(len(carry.rows)) % carry.size)
    return HuggingFaceLM.advance(self, tokens, carry)


def sort_selection(self, tokens, carry):
    if carry.rows is not None:
        carry = replace(carry, rows=carry.rows.sort()[0])
    return HuggingFaceLM.advance(self, tokens, carry)


def unnormalised(self, tokens, carry):
    step = HuggingFaceLM._read(self, tokens, carry)
    return replace(step, log_probs=step.log_probs + 0.01)


def half_precision(self, tokens, carry):
    step = HuggingFaceLM._read(self, tokens, carry)
    return replace(step, log_probs=step.log_probs.half())


def temperature(self, tokens, carry):
    step = HuggingFaceLM._read(self, tokens, carry)
    return replace(step, log_probs=torch.log_softmax(step.log_probs / 0.9, -1))


def temperature_everywhere(self, tokens, *, keep, **options):
    logits, hidden = HuggingFaceLM._forward(self, tokens, keep=keep, **options)
    return logits / 0.9, hidden


def top_k(self, tokens, *, keep, **options):
    logits, hidden = HuggingFaceLM._forward(self, tokens, keep=keep, **options)
    floor = logits.topk(20, dim=-1).values[..., -1:]
    return logits.masked_fill(logits < floor, -torch.inf), hidden


def off_by_one(self, tokens, prompt_length):
    forced = HuggingFaceLM.teacher_force(self, tokens, prompt_length)
    return TeacherForced(forced.log_probs.roll(1, dims=1), forced.hidden)


def hidden_off_by_one(self, tokens, prompt_length):
    forced = HuggingFaceLM.teacher_force(self, tokens, prompt_length)
    return TeacherForced(forced.log_probs, forced.hidden.roll(1, dims=1))


def other_hidden(self, tokens, carry):
    """The state before the final norm's scale, say: only when stepping."""
    step = HuggingFaceLM._read(self, tokens, carry)
    return step if carry is None else replace(step, hidden=step.hidden * 1.1)


def without_gradient(self, tokens, prompt_length):
    with torch.no_grad():
        return HuggingFaceLM.teacher_force(self, tokens, prompt_length)


def log_prob_of_other_token(self, tokens, prompt_length):
    return HuggingFaceLM.log_prob(self, tokens.roll(1, dims=1), prompt_length)


def batch_mean(self, tokens, carry):
    step = HuggingFaceLM._read(self, tokens, carry)
    mixed = torch.log_softmax(step.log_probs + 0.1 * step.log_probs.mean(0), -1)
    return LMStep(mixed, step.hidden, step.carry)


def lose_a_chunk(self, batch, length):
    chunks = HuggingFaceLM._chunks(self, batch, length)
    return [chunks[0]] * len(chunks) if batch % len(chunks) == 0 else chunks


def gradient_in_steps(self, tokens, carry):
    with torch.enable_grad():
        return HuggingFaceLM._read(self, tokens, carry)


BUGS = [
    ("advance", write_in_place, "older carry"),
    ("advance", overwrite_last_key, "must agree|older carry"),
    ("advance", ignore_selection, "select"),
    ("advance", sort_selection, "select"),
    ("_read", unnormalised, "sum to 1"),
    ("_read", half_precision, "float32 or float64"),
    ("_read", temperature, "temperature 1"),
    ("_forward", temperature_everywhere, "temperature 1"),
    ("_forward", top_k, "full softmax"),
    ("teacher_force", off_by_one, "teacher_force and stepping"),
    ("teacher_force", hidden_off_by_one, "teacher_force and stepping"),
    ("_read", other_hidden, r"prefill .*hidden"),
    ("teacher_force", without_gradient, "keep gradients"),
    ("log_prob", log_prob_of_other_token, "log_prob must be"),
    ("_read", batch_mean, "softmax|alone"),
    ("_chunks", lose_a_chunk, "max_rows"),
    ("_read", gradient_in_steps, "must not carry a gradient"),
]


@pytest.mark.parametrize(
    ("method", "bug", "message"), BUGS, ids=[bug.__name__ for _, bug, _ in BUGS]
)
def test_each_planted_bug_is_caught(method, bug, message, gpt2):
    broken = type("Broken", (HuggingFaceLM,), {method: bug})
    with pytest.raises(AssertionError, match=message):
        check_language_model(broken.from_pretrained(gpt2))


def test_rows_that_see_each_other_are_caught_without_a_reference():
    class Mixed(TabularLM):
        def _step(self, index, length):
            step = TabularLM._step(self, index, length)
            mixed = torch.log_softmax(step.log_probs + 0.1 * step.log_probs.mean(0), -1)
            return LMStep(mixed, None, step.carry)

    with pytest.raises(AssertionError, match="row read alone"):
        check_language_model(Mixed.random(3, 8, seed=0))


@pytest.mark.parametrize(
    "options", [{"num_steps": 3}, {"batch": 1}, {"prompt_length": -1}], ids=str
)
def test_sizes_that_check_nothing_are_refused(options, gpt2):
    with pytest.raises(ValueError, match="must be an integer of at least"):
        check_language_model(load_language_model(gpt2), **options)
