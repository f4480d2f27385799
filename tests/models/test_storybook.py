"""The storybook: its grammar, its tokenizer, its checkpoints and the numbers on its card."""

from __future__ import annotations

import itertools
import json
import math
import random
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from training.storybook import measure
from training.storybook.batches import Encoded, encode, packed_rows, prefix_batch
from training.storybook.grammar import REVIEW_PROMPT, STORY_PROMPT, Text, corpus
from training.storybook.measure import draw
from training.storybook.model_card import write_card
from tsmc_widgets.models import storybook

PARTS = ("lm", "stars", "hostility")


@cache
def texts() -> tuple[Text, ...]:
    return tuple(corpus(77, 5000))


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(storybook.path("lm"))


@pytest.fixture(scope="module")
def held_out(tokenizer: PreTrainedTokenizerFast) -> list[Encoded]:
    """A first part of the very texts that the card's numbers were measured on."""
    return encode(list(corpus(storybook.card()["held_out"]["seed"], 400)), tokenizer)


@pytest.fixture(scope="module")
def models() -> dict[str, PreTrainedModel]:
    return {part: measure.load(storybook.path("lm").parent, part) for part in PARTS}


def test_vocabulary_covers_the_grammar(tokenizer: PreTrainedTokenizerFast):
    assert 400 <= len(tokenizer) <= 800
    vocabulary = tokenizer.get_vocab()
    assert {"broken", "great", "love", "hate", "Once", "I", "“", "”", "."} <= vocabulary.keys()
    assert not {word for text in texts() for word in text.words} - vocabulary.keys()


def test_tokenizer_round_trip_on_texts(tokenizer: PreTrainedTokenizerFast):
    rows = tokenizer([str(text) for text in texts()[:1000]])["input_ids"]
    for text, row in zip(texts(), rows, strict=False):
        assert tokenizer.convert_ids_to_tokens(row) == list(text.words)
        assert tokenizer.decode(row) == str(text)


def test_tokenizer_round_trip_and_prefixes_of_any_tokens(tokenizer: PreTrainedTokenizerFast):
    rng = random.Random(0)
    for _ in range(2000):
        row = [rng.randrange(3, len(tokenizer)) for _ in range(rng.randrange(1, 16))]
        text = tokenizer.decode(row)
        assert tokenizer(text)["input_ids"] == row
        cut = rng.randrange(1, len(row) + 1)
        assert text.startswith(tokenizer.decode(row[:cut]))


def test_special_tokens(tokenizer: PreTrainedTokenizerFast):
    ids = tokenizer("The dog")["input_ids"]
    row = [*ids, tokenizer.eos_token_id, tokenizer.pad_token_id]
    assert tokenizer.decode(row, skip_special_tokens=True) == "The dog"
    assert tokenizer("The xylophone")["input_ids"][1] == tokenizer.unk_token_id
    assert tokenizer('He said, "Go!"')["input_ids"] == tokenizer("He said, “Go!”")["input_ids"]
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_paths_and_card():
    for part in PARTS:
        assert (storybook.path(part) / "model.safetensors").is_file()
    with pytest.raises(ValueError, match="one of lm, stars, hostility; got 'poems'"):
        storybook.path("poems")
    assert storybook.card()["lm"]["perplexity"] > 1.0


def test_folders_are_small():
    root = storybook.path("lm").parent
    assert sum(file.stat().st_size for file in root.rglob("*") if file.is_file()) < 10_000_000


def test_checkpoints_are_ordinary():
    lm = AutoModelForCausalLM.from_pretrained(storybook.path("lm"))
    stars = AutoModelForSequenceClassification.from_pretrained(storybook.path("stars"))
    hostility = AutoModelForSequenceClassification.from_pretrained(storybook.path("hostility"))
    assert {m.dtype for m in (lm, stars, hostility)} == {torch.float16}
    assert stars.config.id2label == {i: f"{i + 1} star{'s' if i else ''}" for i in range(5)}
    assert hostility.config.num_labels == 1
    for part in PARTS:
        vocabulary = AutoTokenizer.from_pretrained(storybook.path(part)).get_vocab()
        assert len(vocabulary) == lm.config.vocab_size


def test_packed_rows_begin_with_texts(held_out: list[Encoded]):
    rows = list(packed_rows(held_out, 64, 0, random.Random(0)))
    assert {len(row) for row in rows} == {64}
    whole = {tuple(text.tokens[:8]) for text in held_out}
    assert sum(tuple(row[:8]) in whole for row in rows) / len(rows) > 0.5


def test_classifiers_read_padded_text_as_unpadded(
    models: dict[str, PreTrainedModel], held_out: list[Encoded], tokenizer: PreTrainedTokenizerFast
):
    for part in ("stars", "hostility"):
        batch = [text for text in held_out if text.text.stars][:6]
        tokens, _ = prefix_batch(batch, part, tokenizer.pad_token_id)
        with torch.inference_mode():
            together = models[part](tokens).logits
            alone = [models[part](torch.tensor([text.tokens])).logits[0] for text in batch]
        torch.testing.assert_close(together, torch.stack(alone), atol=1e-4, rtol=1e-4)


def test_perplexity_is_the_cards(models: dict[str, PreTrainedModel], held_out: list[Encoded]):
    """By text, so that the standard error is honest: tokens of one text are not independent."""
    means, sizes = [], []
    for text in held_out[:200]:
        found = measure.perplexity(models["lm"], [text], 1)
        means.append(found["nats_per_token"][0] * len(text.text.words))
        sizes.append(len(text.text.words))
    wanted = storybook.card()["lm"]["nats_per_token"]
    gaps = torch.tensor([m - wanted * n for m, n in zip(means, sizes, strict=True)])
    assert abs(gaps.mean() / (gaps.std() / math.sqrt(len(gaps)))) < 4.5
    assert wanted < 1.15 * storybook.card()["lm"]["grammar_bound_nats"]


def test_star_accuracy_is_the_cards(models: dict[str, PreTrainedModel], held_out: list[Encoded]):
    reviews = [text for text in held_out if text.text.stars]
    found = measure.measure_stars(models["stars"], reviews, 1)
    card = storybook.card()["stars"]
    for name in ("accuracy_whole", "accuracy_10_tokens", "accuracy_20_tokens"):
        error = math.sqrt(card[name] * (1 - card[name]) / len(reviews))
        assert abs(found[name] - card[name]) / error < 4.5
    assert card["accuracy_whole"] > 0.6
    assert card["calibration_error_20_tokens"] < 0.05


def test_hostility_is_the_cards(models: dict[str, PreTrainedModel], held_out: list[Encoded]):
    found = measure.measure_hostility(models["hostility"], held_out, 1)
    card = storybook.card()["hostility"]
    for name in ("accuracy_whole", "accuracy_prefix"):
        error = math.sqrt(card[name] * (1 - card[name]) / len(held_out))
        assert abs(found[name] - card[name]) / error < 4.5
    assert card["accuracy_prefix"] > 0.97
    assert card["calibration_error_prefix"] < 0.03


def test_every_number_on_held_out_texts_has_a_standard_error():
    card = storybook.card()
    measured = {
        "lm": ("nats", "perplexity"),
        "stars": ("accuracy", "within", "calibration"),
        "hostility": ("accuracy", "hostile", "logit", "calibration"),
    }
    for part, kinds in measured.items():
        errors = card[part]["standard_error"]
        names = {name for name in card[part] if any(kind in name for kind in kinds)}
        assert errors.keys() == names
        assert all(0.0 < errors[name] < 0.1 * card[part][name] + 0.01 for name in names)
    for part in ("stars", "hostility"):
        for name in (name for name in card[part] if name.startswith("accuracy")):
            p, count = card[part][name], card[part]["texts"]
            assert math.isclose(
                card[part]["standard_error"][name], math.sqrt(p * (1 - p) / count), rel_tol=0.06
            )
    assert 0.0 < card["hostility"]["threshold"]["mean_probability_standard_error"] < 1e-3


def test_the_shipped_card_is_written_from_the_shipped_numbers(tmp_path: Path):
    write_card(storybook.card(), tmp_path)
    for name in ("card.json", "MODEL_CARD.md"):
        shipped = storybook.path("lm").parent / name
        assert (tmp_path / name).read_text("utf-8") == shipped.read_text("utf-8")
    for value in ("nats_per_token", "perplexity"):
        error = storybook.card()["lm"]["standard_error"][value]
        assert f"± {error:.4f}" in (tmp_path / "MODEL_CARD.md").read_text("utf-8")


def test_hostility_depends_on_context(
    models: dict[str, PreTrainedModel], tokenizer: PreTrainedTokenizerFast
):
    def logit(text: str) -> float:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        assert tokenizer.unk_token_id not in ids
        return models["hostility"](ids).logits.item()

    start = "Once upon a time there was a little boy named Tom. "
    ball = logit(start + "Tom hit the ball with a stick and laughed.")
    assert ball < -3.0
    hit = logit(start + "Tom hit Lily in the face.")
    assert hit > ball + 2.0
    worse = "Tom hit Lily in the face. “I hate you!” yelled Tom."
    assert logit(start + worse) > max(hit, 0.0)
    assert logit(start + worse + " Tom said sorry and hugged Lily.") < logit(start + worse)


def test_model_writes_known_word_pairs(
    models: dict[str, PreTrainedModel], tokenizer: PreTrainedTokenizerFast
):
    pairs = {pair for text in corpus(1, 6000) for pair in itertools.pairwise(text.words)}
    for prompt in (STORY_PROMPT, REVIEW_PROMPT):
        ids = tokenizer(prompt)["input_ids"]
        rows = draw(models["lm"], ids, num_steps=20, num_draws=200, seed=5).tolist()
        words = [tokenizer.convert_ids_to_tokens(row) for row in rows]
        seen = [
            pair in pairs
            for row in words
            for pair in itertools.pairwise(row)
            if "<eos>" not in pair
        ]
        assert sum(seen) / len(seen) > 0.97


def test_draws_are_seeded(models: dict[str, PreTrainedModel]):
    first = draw(models["lm"], [5, 6], num_steps=6, num_draws=16, seed=3)
    assert torch.equal(first, draw(models["lm"], [5, 6], num_steps=6, num_draws=16, seed=3))
    assert not torch.equal(first, draw(models["lm"], [5, 6], num_steps=6, num_draws=16, seed=4))


@pytest.mark.slow
def test_rare_threshold_is_the_cards(
    models: dict[str, PreTrainedModel], tokenizer: PreTrainedTokenizerFast
):
    rare = storybook.card()["hostility"]["threshold"]
    assert 1e-4 <= rare["rate"] <= 1e-3
    prompt = tokenizer(rare["prompt"])["input_ids"]
    num_draws = 40_960
    logits = measure.exceedance(
        models["lm"], models["hostility"], prompt, num_draws=num_draws, seed=12345
    )
    rate = (logits >= rare["eta"]).double().mean().item()
    error = math.sqrt(rare["rate"] * (1 / num_draws + 1 / rare["draws"]))
    assert abs(rate - rare["rate"]) / error < 4.5


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_training_command(tmp_path: Path):
    """A few steps of everything: folders, cards, and no trace of them in the package."""
    steps = ["--steps", "4", "--stars-steps", "4", "--hostility-steps", "4", "--draws", "512"]
    command = [sys.executable, "-m", "training.storybook.train", *steps]
    subprocess.run([*command, "--out", str(tmp_path)], check=True)
    card = json.loads((tmp_path / "card.json").read_text())
    assert card.keys() == storybook.card().keys()
    assert card["training"].keys() == storybook.card()["training"].keys()
    assert "logit >=" in (tmp_path / "MODEL_CARD.md").read_text()
    for part in PARTS:
        assert len(AutoTokenizer.from_pretrained(tmp_path / part)) == card["vocabulary"]
    weights = (tmp_path / "lm" / "model.safetensors").read_bytes()
    again = ["--measure-only", "--draws", "512", "--out", str(tmp_path)]
    subprocess.run([*command[:3], *again], check=True)
    assert (tmp_path / "lm" / "model.safetensors").read_bytes() == weights
    measured = json.loads((tmp_path / "card.json").read_text())
    for found in (card, measured):
        del found["training"]["cpu_seconds_measuring"]
    assert measured == card
    stars = (tmp_path / "stars" / "model.safetensors").read_bytes()
    hostility = (tmp_path / "hostility" / "model.safetensors").read_bytes()
    some = ["--parts", "hostility", "--hostility-steps", "6", *again[1:]]
    subprocess.run([*command[:3], *some], check=True)
    assert (tmp_path / "lm" / "model.safetensors").read_bytes() == weights
    assert (tmp_path / "stars" / "model.safetensors").read_bytes() == stars
    assert (tmp_path / "hostility" / "model.safetensors").read_bytes() != hostility
    partly = json.loads((tmp_path / "card.json").read_text())["training"]
    del partly["cpu_seconds_measuring"]
    assert partly == card["training"] | {"hostility_steps": 6}
