"""Stepping with caches equals reading whole texts: real transformers of several architectures."""

import pickle

import pytest
import torch
import transformers
from models.checkpoints import ARCHITECTURES
from smc.toys import counted_reads

import tsmc_widgets as tw
from tsmc_widgets.targets.context import finished

PROMPT = "once upon a time"
STEPS = 9  # longer than the sliding windows of the checkpoints


def make_target(lm):
    """A potential that makes particles differ, so that resampling moves caches about."""
    favoured = tw.TokenFunction(lambda tokens: 0.4 * (tokens % 3 == 0).sum(-1).double())
    return tw.Target(lm, favoured, prompt=PROMPT, num_steps=STEPS)


def random_head(lm):
    torch.manual_seed(1)
    twist = tw.LinearHeadTwist(lm)
    torch.nn.init.normal_(twist.head.weight, std=0.3)
    return twist


@pytest.fixture(scope="module")
def gpt2(checkpoint):
    return tw.HuggingFaceLM.from_pretrained(checkpoint("gpt2"))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_records_are_what_whole_texts_give(architecture, checkpoint):
    lm = tw.HuggingFaceLM.from_pretrained(checkpoint(architecture))
    target, twist = make_target(lm), random_head(lm)
    trace = tw.run_smc(
        target,
        num_particles=12,
        num_runs=2,
        twist=twist,
        proposal=tw.TwistInduced(),
        ess_threshold=0.9,
        seed=3,
    )
    assert bool(trace.columns.resampled.any())
    texts = trace.tokens.reshape(24, STEPS)
    tokens = torch.cat([target.prompt_tokens.expand(24, -1), texts], dim=1)
    length = len(target.prompt_tokens)
    with torch.no_grad():
        forced = lm.teacher_force(tokens, length)
        log_psi_next = twist.head(forced.hidden)
        log_psi = twist.log_psi(tokens, length)
    log_q = torch.log_softmax(forced.log_probs + log_psi_next, -1)
    log_q = log_q.gather(-1, texts.unsqueeze(-1)).squeeze(-1)

    def recorded(name):
        return trace.paths(name).reshape(24, STEPS).float()

    torch.testing.assert_close(recorded("log_p"), forced.chosen(texts), rtol=0, atol=1e-4)
    torch.testing.assert_close(recorded("log_q"), log_q, rtol=0, atol=1e-4)
    before_end = slice(0, STEPS - 1)
    torch.testing.assert_close(
        recorded("log_psi")[:, before_end], log_psi[:, before_end], rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("rule", ["always", "never", "ess"])
def test_a_state_without_its_caches_goes_on_the_same(gpt2, rule):
    """The carry is derived data: dropped at any step, the run comes out the same to rounding."""
    target = make_target(gpt2)
    settings = {"num_particles": 16, "twist": random_head(gpt2), "rule": rule, "seed": 5}
    whole = tw.run_smc(target, **settings)
    session = tw.start_smc(target, **settings)
    while not session.done:
        session.step()
        state = pickle.loads(pickle.dumps(session.state))
        assert state.steps is None
        session._progress = (state, session._progress[1])
    assert torch.equal(session.trace.columns.tokens, whole.columns.tokens)
    gap = (session.trace.columns.log_weights - whole.columns.log_weights).abs()
    assert float(gap.max()) < 1e-4


def test_the_model_reads_each_distinct_prefix_once(gpt2, monkeypatch):
    read = counted_reads(monkeypatch, gpt2)
    trace = tw.run_smc(make_target(gpt2), num_particles=20, num_runs=3, seed=1)
    flat = trace.columns.tokens
    assert read == trace.columns.distinct[1:].tolist()
    assert len(read) == STEPS - 1
    assert read[0] == len(flat[:, 0].unique())


def test_caches_that_nobody_else_sees_grow_in_place(gpt2):
    """A run without resampling copies its caches only when they outgrow their room."""
    session = tw.start_smc(make_target(gpt2), num_particles=6, rule="never")
    stores = set()
    for _ in range(STEPS - 1):
        session.step()
        stores.add(id(session.state.steps.lm.carry.store))
    assert len(stores) < STEPS - 1
    carry = session.state.steps.lm.carry
    assert carry.batch == session.state.steps.size
    assert carry.length == len(session.target.prompt_tokens) + STEPS - 1


def test_runs_from_one_carry_do_not_see_each_other(gpt2):
    tokens = torch.tensor([[3, 4], [5, 6], [7, 8]])
    step = gpt2.prefill(tokens)
    first = gpt2.advance(torch.tensor([9, 10, 11]), step.carry)
    assert first.carry.store is step.carry.store
    second = gpt2.advance(torch.tensor([12, 13, 14]), step.carry)
    assert second.carry.store is not step.carry.store
    again = gpt2.advance(torch.tensor([9, 10, 11]), step.carry)
    assert torch.equal(again.log_probs, first.log_probs)
    after = gpt2.advance(torch.tensor([1, 1, 1]), first.carry)
    expected = gpt2.prefill(torch.tensor([[3, 4, 9, 1], [5, 6, 10, 1], [7, 8, 11, 1]]))
    torch.testing.assert_close(after.log_probs, expected.log_probs, rtol=0, atol=1e-5)


def in_parts(monkeypatch, vocab_size):
    """Every table of next tokens is read three prefixes at a time, and searched in place."""
    monkeypatch.setattr("tsmc_widgets.models.protocol.LAZY_CELLS", 1)
    monkeypatch.setattr("tsmc_widgets.models.huggingface.LAZY_CELLS", 1)
    monkeypatch.setattr("tsmc_widgets.smc.prefixes._CELLS", 3 * vocab_size)
    monkeypatch.setattr("tsmc_widgets.smc.resampling._GATHERED", 0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("proposal", [tw.Base(), tw.TwistInduced()])
def test_tables_read_in_parts_give_the_same_run(architecture, proposal, checkpoint, monkeypatch):
    lm = tw.HuggingFaceLM.from_pretrained(checkpoint(architecture))
    target = make_target(lm)
    twist = tw.TemperedTwist(random_head(lm), 0.7)
    settings = {"num_particles": 16, "num_runs": 2, "twist": twist, "proposal": proposal}
    whole = tw.run_smc(target, **settings, top_k=4, seed=6)
    in_parts(monkeypatch, lm.vocab_size)
    rows, head = [], lm._after_head
    monkeypatch.setattr(lm, "_after_head", lambda part: rows.append(len(part)) or head(part))
    parts = tw.run_smc(target, **settings, top_k=4, seed=6)
    assert rows
    assert max(rows) == 3
    assert torch.equal(whole.tokens, parts.tokens)
    for name in ("log_p", "log_q", "log_psi", "log_weights"):
        first, second = getattr(whole.columns, name), getattr(parts.columns, name)
        torch.testing.assert_close(first, second, rtol=0, atol=1e-5)
    for first, second in zip(whole.tables, parts.tables, strict=True):
        assert torch.equal(first.tokens, second.tokens)
        torch.testing.assert_close(first.log_q, second.log_q, rtol=0, atol=1e-5)


def test_logits_that_the_output_embedding_alone_does_not_give_are_read_whole(monkeypatch):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.Gemma2Config(
        **sizes, num_key_value_heads=2, head_dim=8, vocab_size=40, final_logit_softcapping=1.0
    )
    lm = tw.HuggingFaceLM(transformers.Gemma2ForCausalLM(config))
    in_parts(monkeypatch, 40)
    step = lm.prefill(torch.tensor([[1, 2]]))
    step = lm.advance(torch.tensor([3]), step.carry)
    assert isinstance(step.log_probs, torch.Tensor)
    expected = lm.model(torch.tensor([[1, 2, 3]])).logits[:, -1].log_softmax(-1)
    torch.testing.assert_close(step.log_probs, expected)


def test_texts_of_p0_are_drawn_from_tables_that_are_not_held_whole(gpt2, monkeypatch):
    target, begun = make_target(gpt2), torch.tensor([[3, 4], [5, 6]])
    gpt2.prefill(target.prompt_tokens.unsqueeze(0))  # One row tells whether tables can be lazy.
    whole, parts = (torch.Generator().manual_seed(0) for _ in range(2))
    expected, _ = finished(target, begun, 3, generator=whole)
    in_parts(monkeypatch, gpt2.vocab_size)
    assert torch.equal(finished(target, begun, 3, generator=parts)[0], expected)
