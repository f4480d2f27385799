"""Tiny random checkpoints, made and saved by the tests that load them."""

import json
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

TEXT = """
once upon a time there was the little old kind brave fox bear girl boy king queen in by near forest
house river hill who liked wanted saw found lost broke had to and but then so sad happy angry friend
apple lamp book said it he she they dog . , ! i bought this is great bad
"""
WORDS = TEXT.split()
SPECIAL = ["<unk>", "<bos>", "<eos>"]
VOCABULARY = [*SPECIAL, *dict.fromkeys(WORDS)]
WINDOW = 4

_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 32,
}
_GPT2_SIZES = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32}
_QWEN3 = {**_SIZES, "head_dim": 8}

# Name: config class, model class, config options.
ARCHITECTURES = {
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", _GPT2_SIZES),
    "gpt_neo": (
        "GPTNeoConfig",
        "GPTNeoForCausalLM",
        {
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": WINDOW,
            "max_position_embeddings": 32,
        },
    ),
    "llama": ("LlamaConfig", "LlamaForCausalLM", _SIZES),
    "mistral": ("MistralConfig", "MistralForCausalLM", {**_SIZES, "sliding_window": WINDOW}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", _SIZES),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", _QWEN3),
    "gemma3": (
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        {
            **_QWEN3,
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
}
CLASSIFIERS = {
    "gpt2": ("GPT2Config", "GPT2ForSequenceClassification", _GPT2_SIZES),
    "bert": (
        "BertConfig",
        "BertForSequenceClassification",
        {key: value for key, value in _SIZES.items() if key != "num_key_value_heads"},
    ),
    "distilbert": (
        "DistilBertConfig",
        "DistilBertForSequenceClassification",
        {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 32},
    ),
    "roberta": (
        "RobertaConfig",
        "RobertaForSequenceClassification",
        {
            **{key: value for key, value in _SIZES.items() if key != "num_key_value_heads"},
            # Its positions start after the padding token's id.
            "max_position_embeddings": 40,
        },
    ),
}


def word_tokenizer(more: int = 0) -> transformers.PreTrainedTokenizerFast:
    """Word-level tokenizer over ``VOCABULARY`` and so many more words, text joined by spaces."""
    words = (*VOCABULARY, *(f"word{number}" for number in range(more)))
    ids = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<bos>", eos_token="<eos>"
    )


def byte_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Byte-level BPE tokenizer trained on a few sentences."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = ["Once upon a time there was a fox.", "The fox found a café.", "There was the time."]
    tokenizer.train_from_iterator(text * 5, trainer)
    end = "<|endoftext|>"
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=end, eos_token=end
    )


def make_checkpoint(
    architecture: str, folder: Path, *, tokenizer=None, dtype=torch.float32, **options
) -> Path:
    """Save a random causal language model with its tokenizer, and give the folder back."""
    return _save(ARCHITECTURES[architecture], folder, tokenizer, dtype, options)


def make_classifier(
    architecture: str, folder: Path, *, tokenizer=None, dtype=torch.float32, **options
) -> Path:
    """Save a random sequence classifier with its tokenizer, and give the folder back."""
    return _save(CLASSIFIERS[architecture], folder, tokenizer, dtype, options)


def _save(kind, folder, tokenizer, dtype, options):
    tokenizer = word_tokenizer() if tokenizer is None else tokenizer
    config_class, model_class, sizes = kind
    config = getattr(transformers, config_class)(
        **{
            "vocab_size": len(tokenizer),
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.eos_token_id,
            # Wide enough that tokens matter: with the usual 0.02 every prefix looks alike.
            "initializer_range": 0.2,
            **sizes,
            **options,
        }
    )
    torch.manual_seed(0)
    model = getattr(transformers, model_class)(config).to(dtype)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)


def make_gguf(file: Path, kind: str = "Q8_0") -> transformers.PreTrainedModel:
    """Write a random Qwen2 model as a GGUF file, and give the model that it was made of."""
    import gguf

    tokenizer = byte_tokenizer()
    config = transformers.Qwen2Config(
        vocab_size=len(tokenizer), tie_word_embeddings=False, initializer_range=0.2, **_SIZES
    )
    torch.manual_seed(0)
    model = transformers.Qwen2ForCausalLM(config)
    writer = gguf.GGUFWriter(file, "qwen2")
    writer.add_context_length(32)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    pieces = [tokenizer.convert_ids_to_tokens(token) for token in range(len(tokenizer))]
    merges = json.loads(tokenizer._tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(pieces)
    writer.add_token_types([3, *[1] * (len(pieces) - 1)])
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, 2)
    wanted = gguf.GGMLQuantizationType[kind]
    for name, value in model.state_dict().items():
        stem, _, suffix = name.rpartition(".")
        array, dtype = value.numpy(), gguf.GGMLQuantizationType.F32
        if value.ndim == 2 and value.shape[1] % 32 == 0:
            array, dtype = gguf.quants.quantize(array, wanted), wanted
        writer.add_tensor(f"{names.get_name(stem)}.{suffix}", array, raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model
