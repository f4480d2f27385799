"""HuggingFaceLM: cached stepping, chunks, dtypes, text, and what it refuses."""

import copy

import numpy as np
import pytest
import torch
import transformers
from models.checkpoints import (
    ARCHITECTURES,
    WINDOW,
    byte_tokenizer,
    make_checkpoint,
    word_tokenizer,
)
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

import tsmc_widgets as tw
from tsmc_widgets.errors import (
    ContextLengthError,
    ControlTokenError,
    UnknownTokenError,
    UnsupportedModelError,
)
from tsmc_widgets.models import HuggingFaceLM
from tsmc_widgets.models.huggingface import TokenizerText, _inputs_of
from tsmc_widgets.testing import check_language_model

TEMPLATE = "{% for m in messages %}{{ m['content'] }} {% endfor %}{{ 'once' }}"


@pytest.fixture
def lm(checkpoint):
    return HuggingFaceLM.from_pretrained(checkpoint("gpt2"))


@pytest.fixture
def byte_lm(tmp_path):
    return HuggingFaceLM.from_pretrained(
        make_checkpoint("llama", tmp_path, tokenizer=byte_tokenizer(), vocab_size=340)
    )


def tokens(batch, length, seed=0, vocab_size=60):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocab_size, (batch, length), generator=generator)


@pytest.mark.parametrize("architecture", ["gpt2", "mistral", "gemma3"])
@pytest.mark.parametrize("max_rows", [3, 5])
def test_chunks_change_nothing_whatever_was_selected(architecture, max_rows, checkpoint):
    whole = HuggingFaceLM.from_pretrained(checkpoint(architecture))
    parts = HuggingFaceLM.from_pretrained(checkpoint(architecture), max_rows=max_rows)
    ids = tokens(7, 3 * WINDOW)
    steps = [lm.prefill(ids[:, :3]) for lm in (whole, parts)]
    for at in range(3, ids.shape[1] - 1):
        carries = [step.carry for step in steps]
        if at % 3:
            rows = tokens(1, 5 + at % 4, seed=at, vocab_size=len(ids))[0]
            ids = ids[rows]
            carries = [carry.select(rows) for carry in carries]
        pairs = zip((whole, parts), carries, strict=True)
        steps = [lm.advance(ids[:, at], carry) for lm, carry in pairs]
        torch.testing.assert_close(steps[0].log_probs, steps[1].log_probs, atol=1e-5, rtol=0)
        torch.testing.assert_close(steps[0].hidden, steps[1].hidden, atol=1e-5, rtol=0)


def test_no_pass_reads_more_rows_than_allowed(checkpoint, monkeypatch):
    lm = HuggingFaceLM.from_pretrained(checkpoint("gpt2"), max_rows=12)
    seen = []
    forward = lm.model.forward
    monkeypatch.setattr(
        lm.model, "forward", lambda **given: seen.append(given["input_ids"]) or forward(**given)
    )
    step = lm.prefill(tokens(30, 4))
    lm.advance(tokens(30, 1)[:, 0], step.carry)
    lm.log_prob(tokens(30, 5), 2)
    assert max(ids.numel() for ids in seen) == 12
    assert [len(ids) for ids in seen] == [3] * 10 + [12, 12, 6] + [3] * 10


def test_default_rows_bound_the_logits(lm):
    assert lm.max_rows * lm.vocab_size * 4 <= 2**28
    with pytest.raises(ValueError, match="max_rows must be an integer of at least 1; got 0"):
        HuggingFaceLM(lm.model, lm.tokenizer, max_rows=0)


def test_one_selection_may_grow_from_one_prompt(lm):
    prompt = tokens(1, 3)
    carry = lm.prefill(prompt).carry.select(torch.zeros(5, dtype=torch.int64))
    nexts = tokens(5, 1)[:, 0]
    expected = lm.prefill(torch.cat([prompt.expand(5, 3), nexts[:, None]], 1))
    torch.testing.assert_close(lm.advance(nexts, carry).log_probs, expected.log_probs)


def test_a_selection_does_not_follow_the_callers_tensor(lm):
    ids = tokens(3, 4)
    rows = torch.tensor([2, 1, 0])
    carry = lm.prefill(ids[:, :3]).carry.select(rows)
    expected = lm.advance(ids[rows][:, 3], carry).log_probs
    first, rows[:] = ids[rows][:, 3], 0
    assert torch.equal(lm.advance(first, carry).log_probs, expected)


def test_an_interrupted_pass_leaves_the_carry_as_it_was(lm, monkeypatch):
    ids = tokens(4, 5)
    carry = lm.prefill(ids[:, :3]).carry
    expected = lm.advance(ids[:, 3], carry).log_probs
    last = list(lm.model.modules())[-1]

    def interrupt(*_):
        raise KeyboardInterrupt

    handle = last.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        lm.advance(ids[:, 4], carry)
    handle.remove()
    assert torch.equal(lm.advance(ids[:, 3], carry).log_probs, expected)


def test_a_hook_that_an_interrupt_left_behind_goes_with_the_next_pass(lm):
    head = lm.model.get_output_embeddings()
    left = _inputs_of(head)
    seen = left.__enter__()
    lm.prefill(tokens(1, 3))
    assert not head._forward_pre_hooks
    assert not seen


def gradients(lm, log_prob):
    """Of all parameters, in one vector."""
    lm.model.zero_grad()
    (log_prob * torch.linspace(-1, 1, log_prob.numel()).view_as(log_prob)).sum().backward()
    return torch.cat([p.grad.flatten() for p in lm.model.parameters() if p.grad is not None])


@pytest.mark.parametrize("max_rows", [None, 30])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_prompt_in_common_changes_nothing(architecture, max_rows, checkpoint, monkeypatch):
    folder = checkpoint(architecture)
    lm = HuggingFaceLM.from_pretrained(folder, dtype=torch.float64, max_rows=max_rows)
    ids = tokens(5, 3 * WINDOW)
    ids[:, :6] = ids[0, :6]
    found = lm.teacher_force(ids, 6)
    slope = gradients(lm, lm.log_prob(ids, 6))
    monkeypatch.setattr(HuggingFaceLM, "_shares_prompt", lambda *_: False)
    expected = lm.teacher_force(ids, 6)
    # Elsewhere some norms and attentions compute in float32 whatever the model's dtype.
    near = 1e-12 if architecture == "gpt2" else 1e-5
    torch.testing.assert_close(found.log_probs, expected.log_probs, rtol=0, atol=near)
    torch.testing.assert_close(found.hidden, expected.hidden, rtol=0, atol=near)
    plain = gradients(lm, lm.log_prob(ids, 6))
    torch.testing.assert_close(slope, plain, rtol=0, atol=near * float(plain.abs().max()))


@pytest.mark.parametrize(("common", "expected"), [(6, 5 + 4 * 2), (5, 4 * 7), (1, 4 * 7)])
def test_a_prompt_in_common_is_read_once(common, expected, lm):
    read = []
    embedding = lm.model.get_input_embeddings()
    embedding.register_forward_hook(lambda _, inputs, __: read.append(inputs[0].numel()))
    ids = tokens(4, 8)
    ids[:, :common] = ids[0, :common]
    lm.teacher_force(ids, 6)
    assert sum(read) == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_models_answer_in_float32(dtype, checkpoint):
    lm = HuggingFaceLM.from_pretrained(checkpoint("gpt2"), dtype=dtype)
    assert lm.model.dtype == dtype
    ids = tokens(2, 5)
    step = lm.prefill(ids)
    forced = lm.teacher_force(ids, 2)
    for values in (step.log_probs, step.hidden, forced.log_probs, lm.log_prob(ids, 2)):
        assert values.dtype == torch.float32
    totals = step.log_probs.double().exp().sum(-1)
    torch.testing.assert_close(totals, torch.ones_like(totals), atol=1e-6, rtol=0)


def test_logits_may_be_wider_than_the_tokenizer(byte_lm):
    assert len(byte_lm.tokenizer) < byte_lm.vocab_size == 340
    assert byte_lm.prefill(tokens(2, 3)).log_probs.shape == (2, 340)
    assert byte_lm.token_text(339) == "<id 339>"
    assert byte_lm.decode(torch.tensor([[339]])) == [""]
    ids, lacking = tokens(2, 6), range(len(byte_lm.tokenizer), 340)
    step, forced = byte_lm.prefill(ids[:, :5]), byte_lm.teacher_force(ids, 5)
    with torch.no_grad():
        expected = byte_lm.model(ids[:, :5]).logits[:, -1]
        expected[:, lacking] = -torch.inf
    for log_probs in (step.log_probs, forced.log_probs[:, 0]):
        torch.testing.assert_close(log_probs, expected.log_softmax(-1), atol=1e-4, rtol=0)
    ids[:, -1] = 339
    assert byte_lm.log_prob(ids, 5).tolist() == [[-torch.inf]] * 2
    check_language_model(byte_lm)


@pytest.mark.parametrize("eos", ["absorb", "ignore"])
def test_the_oracle_and_the_sampler_know_of_no_id_without_a_text(eos, tmp_path):
    tokenizer = word_tokenizer()
    size = len(tokenizer) + 4
    folder = make_checkpoint("gpt2", tmp_path, tokenizer=tokenizer, vocab_size=size)
    lm = HuggingFaceLM.from_pretrained(folder)
    phi = tw.TokenFunction(lambda rows: (rows % 5).double().sum(1) / 4)
    target = tw.Target(lm, phi, prompt="once upon", num_steps=2, eos=eos)
    oracle = tw.exact(target)
    assert len(oracle.tokens) == (size - 4) ** 2 - (size - 5) * (eos == "absorb")
    assert int(oracle.tokens.max()) < size - 4
    assert float(oracle.log_p.exp().sum()) == pytest.approx(1, abs=1e-6)
    trace = tw.run_smc(target, num_particles=16, num_runs=400, seed=0)
    assert int(trace.tokens.max()) < size - 4
    ratio = (trace.log_z - oracle.log_z).exp()
    assert abs(float(ratio.mean()) - 1) < 4.5 * float(ratio.std()) / 20


def test_a_copy_of_the_model_keeps_working_alone(lm):
    ids = tokens(2, 4)
    expected = lm.prefill(ids)
    twin = HuggingFaceLM(copy.deepcopy(lm.model), lm.tokenizer)
    with torch.no_grad():
        twin.model.transformer.wte.weight.add_(1.0)
    assert torch.equal(lm.prefill(ids).log_probs, expected.log_probs)
    assert not lm.model.lm_head._forward_pre_hooks


class TestContext:
    def test_check_names_the_numbers(self, lm):
        lm.check_context(12, 20)
        with pytest.raises(ContextLengthError, match=r"12 tokens .* 21 steps .* 33 .* 32.* 20 st"):
            lm.check_context(12, 21)

    def test_prefill_and_advance_stop_at_its_end(self, lm):
        step = lm.prefill(tokens(1, 32))
        with pytest.raises(ContextLengthError):
            lm.advance(tokens(1, 1)[0], step.carry)
        with pytest.raises(ContextLengthError):
            lm.prefill(tokens(1, 33))
        with pytest.raises(ContextLengthError):
            lm.log_prob(tokens(1, 33), 2)

    def test_alibi_models_have_none(self):
        config = transformers.BloomConfig(vocab_size=62, hidden_size=32, n_layer=2, n_head=4)
        lm = HuggingFaceLM(transformers.BloomForCausalLM(config), word_tokenizer())
        assert lm.context_length is None
        lm.check_context(10**6, 10**6)


class TestRefused:
    @pytest.mark.parametrize(
        ("model", "options", "named"),
        [
            ("Mamba", {"hidden_size": 16, "state_size": 4, "num_hidden_layers": 1}, "LinearAttent"),
            (
                "Jamba",
                {
                    "hidden_size": 16,
                    "num_hidden_layers": 2,
                    "attn_layer_period": 2,
                    "attn_layer_offset": 1,
                    "num_attention_heads": 2,
                    "num_key_value_heads": 2,
                    "intermediate_size": 16,
                    "num_experts": 2,
                    "use_mamba_kernels": False,
                },
                "LinearAttent",
            ),
            ("T5", {"d_model": 16, "num_layers": 1, "d_ff": 16, "num_heads": 2, "d_kv": 8}, "enc"),
            (
                "Bert",
                {
                    "hidden_size": 16,
                    "num_hidden_layers": 1,
                    "num_attention_heads": 2,
                    "intermediate_size": 16,
                },
                "look at later ones",
            ),
        ],
        ids=["linear", "hybrid", "encoder-decoder", "bidirectional"],
    )
    def test_other_kinds_of_models(self, model, options, named):
        config = getattr(transformers, f"{model}Config")(vocab_size=62, **options)
        kind = {"T5": "T5ForConditionalGeneration", "Bert": "BertLMHeadModel"}
        made = getattr(transformers, kind.get(model, f"{model}ForCausalLM"))(config)
        with pytest.raises(UnsupportedModelError, match=named):
            HuggingFaceLM(made, word_tokenizer())

    def test_a_model_that_ignores_the_cache(self, lm, monkeypatch):
        forward = lm.model.forward
        monkeypatch.setattr(
            lm.model, "forward", lambda **given: forward(given["input_ids"], logits_to_keep=1)
        )
        with pytest.raises(UnsupportedModelError, match="did not fill the KV cache"):
            lm.prefill(tokens(1, 3))

    def test_a_body_without_a_head(self, lm):
        with pytest.raises(UnsupportedModelError, match="no language-modelling head"):
            HuggingFaceLM(lm.model.transformer, lm.tokenizer)

    def test_training_mode(self, lm):
        lm.model.train()
        with pytest.raises(RuntimeError, match=r"training mode.*eval\(\)"):
            lm.prefill(tokens(1, 3))

    def test_a_part_in_training_mode(self, lm):
        lm.model.transformer.h[1].mlp.dropout.train()
        for read in (lm.prefill, lambda rows: lm.log_prob(rows, 1)):
            with pytest.raises(
                RuntimeError, match=r"part 'transformer\.h\.1\.mlp\.dropout' is in tr"
            ):
                read(tokens(1, 3))

    def test_an_empty_prompt(self, lm):
        with pytest.raises(ValueError, match=r"empty prompt.*prompt=\[lm.bos_token_id\]"):
            lm.prefill(torch.empty(1, 0, dtype=torch.int64))
        with pytest.raises(ValueError, match="prompt_length must be an integer of at least 1"):
            lm.log_prob(tokens(1, 3), 0)

    def test_nothing_after_the_prompt(self, lm):
        with pytest.raises(ValueError, match="3 tokens with a prompt of 3"):
            lm.teacher_force(tokens(1, 3), 3)

    def test_tokens_for_another_carry(self, lm):
        with pytest.raises(ValueError, match="got 2 tokens for 3 rows"):
            lm.advance(tokens(2, 1)[:, 0], lm.prefill(tokens(3, 2)).carry)


@pytest.mark.parametrize("architecture", ["gpt2", "mistral", "gemma3", "gpt_neo"])
def test_no_rows_have_no_answers(architecture, checkpoint):
    lm = HuggingFaceLM.from_pretrained(checkpoint(architecture))
    ids = tokens(3, 2 * WINDOW)
    none, step = ids[:0], lm.prefill(ids[:, :-1])
    for empty in (
        lm.prefill(none),
        lm.advance(none[:, -1], step.carry.select(none[:, 0])),
        lm.advance(none[:, -1], lm.prefill(none).carry),
    ):
        assert empty.log_probs.shape == (0, lm.vocab_size)
        assert empty.log_probs.dtype == step.log_probs.dtype
        assert empty.hidden.shape == (0, step.hidden.shape[1])
        assert empty.carry.batch == 0
    assert empty.carry.length == ids.shape[1] + 1
    forced = lm.teacher_force(none, 3)
    assert forced.log_probs.shape == (0, ids.shape[1] - 3, lm.vocab_size)
    assert forced.hidden.shape == (0, ids.shape[1] - 3, step.hidden.shape[1])
    log_prob = lm.log_prob(none, 3)
    assert log_prob.shape == (0, ids.shape[1] - 3)
    log_prob.sum().backward()
    fresh = lm.prefill(ids).log_probs
    torch.testing.assert_close(lm.advance(ids[:, -1], step.carry).log_probs, fresh)


class TestText:
    def test_there_and_back(self, lm):
        text = "once upon a time , there was a fox ."
        ids = lm.encode(text)
        assert [lm.token_text(token) for token in ids[:3]] == ["once", "upon", "a"]
        rows = torch.tensor([ids, [*ids[:-2], lm.eos_token_id, lm.eos_token_id]])
        assert lm.decode(rows)[0].split() == text.split()
        assert lm.decode(rows)[1].split() == text.split()[:-2]
        assert lm.token_text(lm.eos_token_id) == "<eos>"

    def test_unknown_words_are_named_with_their_neighbours(self, lm):
        with pytest.raises(UnknownTokenError, match=r"'foxx' \(nearest: fox\), 'zebra'.*the foxx"):
            lm.encode("the foxx saw zebra")

    def test_a_long_prompt_of_unknown_words_makes_a_short_message(self, lm):
        words = [f"zeb{number}" for number in range(10_000)]
        with pytest.raises(UnknownTokenError, match="and 9995 more") as raised:
            lm.encode(" ".join(words))
        assert len(str(raised.value)) < 500

    def test_byte_level_pieces_read_as_text(self, byte_lm):
        ids = byte_lm.encode("The fox\n\tfound a café ☃")
        pieces = [byte_lm.token_text(token) for token in ids]
        readable = [piece for piece in pieces if not piece.startswith("<0x")]
        assert "".join(readable).startswith("The fox\n\tfound a caf")
        assert any(piece.startswith(" ") for piece in pieces)
        assert pieces[-3:] == ["<0xE2>", "<0x98>", "<0x83>"]
        assert byte_lm.decode(torch.tensor([ids])) == ["The fox\n\tfound a café ☃"]
        assert byte_lm.token_text(byte_lm.eos_token_id) == "<|endoftext|>"

    def test_bytes_of_a_sentencepiece_vocabulary_read_as_bytes(self):
        pieces = ["a", "\u2581a", *(f"<0x{value:02X}>" for value in range(256))]
        bpe = Tokenizer(BPE({piece: at for at, piece in enumerate(pieces)}, [], byte_fallback=True))
        bpe.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
        text = TokenizerText(PreTrainedTokenizerFast(tokenizer_object=bpe))
        ids = text.encode("aé\n")
        assert [text.token_text(token) for token in ids] == ["a", "<0xC3>", "<0xA9>", "\n"]
        assert text.token_text(1) == " a"

    def test_no_text_becomes_a_control_token_unasked(self, byte_lm):
        end = byte_lm.eos_token_id
        byte_lm.tokenizer.chat_template = TEMPLATE
        for read in (
            byte_lm.encode,
            byte_lm.encode_prompt,
            lambda text: byte_lm.apply_chat_template([{"role": "user", "content": text}]),
        ):
            with pytest.raises(
                ControlTokenError, match=r"spells '<\|endoftext\|>'.*control_tokens"
            ):
                read("The fox<|endoftext|>")
        assert byte_lm.encode("The fox<|endoftext|>", control_tokens=True)[-1] == end
        assert end not in byte_lm.encode("The fox <|endoftext| >")

    def test_a_prompt_begins_as_the_tokenizer_says(self, lm):
        from tokenizers.processors import TemplateProcessing

        assert lm.encode_prompt("a fox") == lm.encode("a fox")
        lm.tokenizer._tokenizer.post_processor = TemplateProcessing(
            single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)]
        )
        assert lm.encode_prompt("a fox") == [lm.bos_token_id, *lm.encode("a fox")]
        assert lm.encode("a fox")[0] != lm.bos_token_id

    def test_chat_template(self, lm):
        messages = [{"role": "user", "content": "a fox ,"}, {"role": "assistant", "content": "a"}]
        with pytest.raises(UnsupportedModelError, match="no chat template"):
            lm.apply_chat_template(messages)
        lm.tokenizer.chat_template = TEMPLATE
        assert lm.apply_chat_template(messages) == lm.encode("a fox , a once")

    @pytest.mark.parametrize("role", ["user", "assistant"])
    def test_unknown_words_of_a_message_are_named(self, lm, role):
        lm.tokenizer.chat_template = TEMPLATE
        known, wrong = {"role": "user", "content": "a fox"}, "the foxx <script>"
        for content in (wrong, [{"type": "image"}, {"type": "text", "text": wrong}]):
            with pytest.raises(UnknownTokenError, match=r"'foxx' \(nearest: fox\).*the foxx <scr"):
                lm.apply_chat_template([known, {"role": role, "content": content}])

    def test_messages_need_no_vocabulary_where_nothing_is_unknown(self, byte_lm):
        byte_lm.tokenizer.chat_template = TEMPLATE
        message = {"role": "user", "content": "zebra ☃"}
        assert byte_lm.apply_chat_template([message]) == byte_lm.encode("zebra ☃ once")

    def test_ids_of_numpy(self, lm):
        ids = np.array(lm.encode("a fox"))
        assert [lm.token_text(token) for token in ids] == ["a", "fox"]
        assert lm.decode(torch.as_tensor(ids)[None]) == ["a fox"]
