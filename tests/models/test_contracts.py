"""The contract check passes on right models and fails on each planted bug."""

from dataclasses import replace

import pytest
import torch
from models.checkpoints import ARCHITECTURES, WINDOW

from tsmc_widgets.models import HuggingFaceLM, TabularLM, load_language_model
from tsmc_widgets.models.protocol import LMStep
from tsmc_widgets.testing import check_language_model


@pytest.fixture
def gpt2(checkpoint):
    return checkpoint("gpt2")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_keeps_the_contract(architecture, checkpoint):
    lm = load_language_model(checkpoint(architecture))
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


def answers(name, change):
    """The method, with what it returns changed."""
    return lambda self, *given, **more: change(getattr(HuggingFaceLM, name)(self, *given, **more))


def reads(name, change):
    """The method, with its tokens or its carry changed before."""
    return lambda self, *given: getattr(HuggingFaceLM, name)(self, *change(*given))


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


def ignore_selection(tokens, carry):
    if carry.rows is not None:
        carry = replace(carry, rows=torch.arange(len(carry.rows)) % carry.size)
    return tokens, carry


def sort_selection(tokens, carry):
    return tokens, carry if carry.rows is None else replace(carry, rows=carry.rows.sort()[0])


def temperature(step):
    return replace(step, log_probs=torch.log_softmax(step.log_probs / 0.9, -1))


def top_k(found):
    logits, hidden = found
    floor = logits.topk(20, dim=-1).values[..., -1:]
    return logits.masked_fill(logits < floor, -torch.inf), hidden


def other_hidden(self, tokens, carry):
    """The state before the final norm's scale, say: only when stepping."""
    step = HuggingFaceLM._read(self, tokens, carry)
    return step if carry is None else replace(step, hidden=step.hidden * 1.1)


def batch_mean(step):
    mixed = torch.log_softmax(step.log_probs + 0.1 * step.log_probs.mean(0), -1)
    return LMStep(mixed, step.hidden, step.carry)


def lose_a_chunk(self, batch, length):
    chunks = list(HuggingFaceLM._chunks(self, batch, length))
    return [chunks[0]] * len(chunks) if batch % len(chunks) == 0 else chunks


def rolled(name):
    """One of what teacher_force answers, off by one place."""
    return answers(
        "teacher_force", lambda forced: replace(forced, **{name: getattr(forced, name).roll(1, 1)})
    )


BUGS = {
    "write_in_place": ("advance", write_in_place, "older carry"),
    "overwrite_last_key": ("advance", overwrite_last_key, "must agree|older carry"),
    "ignore_selection": ("advance", reads("advance", ignore_selection), "select"),
    "sort_selection": ("advance", reads("advance", sort_selection), "select"),
    "unnormalised": (
        "_read",
        answers("_read", lambda step: replace(step, log_probs=step.log_probs + 0.01)),
        "sum to 1",
    ),
    "half_precision": (
        "_read",
        answers("_read", lambda step: replace(step, log_probs=step.log_probs.half())),
        "float32 or float64",
    ),
    "temperature": ("_read", answers("_read", temperature), "temperature 1"),
    "temperature_everywhere": (
        "_forward",
        answers("_forward", lambda found: (found[0] / 0.9, found[1])),
        "temperature 1",
    ),
    "top_k": ("_forward", answers("_forward", top_k), "full softmax"),
    "off_by_one": ("teacher_force", rolled("log_probs"), "teacher_force and stepping"),
    "hidden_off_by_one": ("teacher_force", rolled("hidden"), "teacher_force and stepping"),
    "other_hidden": ("_read", other_hidden, r"prefill .*hidden"),
    "without_gradient": (
        "teacher_force",
        torch.no_grad()(HuggingFaceLM.teacher_force),
        "keep gradients",
    ),
    "log_prob_of_other_token": (
        "log_prob",
        reads("log_prob", lambda tokens, length: (tokens.roll(1, dims=1), length)),
        "log_prob must be",
    ),
    "batch_mean": ("_read", answers("_read", batch_mean), "softmax|alone"),
    "lose_a_chunk": ("_chunks", lose_a_chunk, "max_rows"),
    "gradient_in_steps": (
        "_read",
        torch.enable_grad()(HuggingFaceLM._read),
        "must not carry a gradient",
    ),
}


@pytest.mark.parametrize(("method", "bug", "message"), BUGS.values(), ids=BUGS)
def test_each_planted_bug_is_caught(method, bug, message, gpt2):
    broken = type("Broken", (HuggingFaceLM,), {method: bug})
    with pytest.raises(AssertionError, match=message):
        check_language_model(broken.from_pretrained(gpt2))


def test_rows_that_see_each_other_are_caught_without_a_reference():
    class Mixed(TabularLM):
        def _step(self, index, length):
            return batch_mean(TabularLM._step(self, index, length))

    with pytest.raises(AssertionError, match="row read alone"):
        check_language_model(Mixed.random(3, 8, seed=0))


@pytest.mark.parametrize(
    "options", [{"num_steps": 3}, {"batch": 1}, {"prompt_length": -1}], ids=str
)
def test_sizes_that_check_nothing_are_refused(options, gpt2):
    with pytest.raises(ValueError, match="must be an integer of at least"):
        check_language_model(load_language_model(gpt2), **options)
