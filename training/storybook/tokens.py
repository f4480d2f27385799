"""The storybook's tokenizer: one token a word, decoding to natural text and back without loss."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from training.storybook.grammar import Text

EOS, PAD, UNK = "<eos>", "<pad>", "<unk>"
CONTEXT = 256


def count_words(texts: Iterable[Text]) -> Counter[str]:
    """How often each word occurs."""
    return Counter(word for text in texts for word in text.words)


def build_tokenizer(words: Iterable[str]) -> PreTrainedTokenizerFast:
    """A word-level tokenizer with these words after the special tokens.

    `<eos>` ends a text and, standing first, begins one. Straight quotes are read as curly ones, so
    that each quote has one spelling: what decodes is encoded back to the same tokens, and a longer
    list of tokens decodes to a text that begins with the shorter list's.
    """
    vocabulary = {word: i for i, word in enumerate((EOS, PAD, UNK, *words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Replace("’", "'"),
            normalizers.Replace(Regex(r'(?<!\S)"'), "“"),
            normalizers.Replace('"', "”"),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Split(Regex(r"[.,!?“”]"), "isolated"),
        ]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.WordPiece(prefix="##", cleanup=True),
            decoders.Replace(" ”", "”"),
            decoders.Fuse(),
            decoders.Replace("“ ", "“"),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=EOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNK,
        model_max_length=CONTEXT,
        padding_side="right",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
