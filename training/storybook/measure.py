"""Measure the saved storybook on unseen text: perplexity, accuracy, calibration, a rare event.

What is measured on held-out texts or on draws comes with a standard error, in a dictionary
``standard_error`` beside it.
"""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from training.storybook.batches import IGNORED, Encoded, encode, prefix_batch
from training.storybook.grammar import REVIEW_PROMPT, STORY_PROMPT, corpus
from training.storybook.uncertainty import (
    calibration_error,
    exponential,
    mean,
    ratio,
    root_mean_square,
    significant,
)

CHUNK = 8192


@torch.inference_mode()
def draw(
    model: PreTrainedModel, prompt: list[int], *, num_steps: int, num_draws: int, seed: int
) -> Tensor:
    """Draws from the model, prompt included: (num_draws, len(prompt) + num_steps), seeded."""
    generator = torch.Generator().manual_seed(seed)
    chunks = []
    for start in range(0, num_draws, CHUNK):
        size = min(CHUNK, num_draws - start)
        chunks.append(_extend(model, prompt, num_steps, size, generator))
    return torch.cat(chunks)


def _extend(
    model: PreTrainedModel,
    prompt: list[int],
    num_steps: int,
    num_draws: int,
    generator: torch.Generator,
) -> Tensor:
    """Sample step by step; the model runs once for each distinct prefix."""
    tokens = torch.tensor([prompt]).expand(num_draws, -1)
    fresh, cache = tokens[:1], None  # (prefixes, 1) after the first step
    rows = torch.zeros(num_draws, dtype=torch.long)  # each draw's prefix
    for _ in range(num_steps):
        out = model(fresh, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache, probs = out.past_key_values, out.logits[:, -1].float().softmax(-1)
        chosen = torch.multinomial(probs[rows], 1, generator=generator)  # (draws, 1)
        tokens = torch.cat([tokens, chosen], dim=1)
        pairs, rows = torch.unique(rows * probs.shape[1] + chosen[:, 0], return_inverse=True)
        cache.batch_select_indices(pairs // probs.shape[1])
        fresh = (pairs % probs.shape[1])[:, None]
    return tokens


@torch.inference_mode()
def score(classifier: PreTrainedModel, tokens: Tensor) -> Tensor:
    """Logits of the classifier on token rows without padding: (rows, labels)."""
    pieces = [classifier(chunk).logits.float() for chunk in tokens.split(CHUNK)]
    return torch.cat(pieces)


HELD_OUT = 1_000_003
"""Held-out text is the corpus of the training seed plus this."""
RARE_STEPS = 20
RARE_RATE = 1 / 2500


def load(folder: Path, part: str) -> PreTrainedModel:
    """A part's saved weights, computed with in single precision."""
    kind = AutoModelForCausalLM if part == "lm" else AutoModelForSequenceClassification
    return kind.from_pretrained(folder / part, dtype=torch.float32).eval()


def measure_all(
    folder: Path, *, seed: int, num_draws: int, num_texts: int = 4000
) -> dict[str, Any]:
    """Everything the card says of the checkpoints in a folder."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder / "lm")
    texts = encode(list(corpus(seed + HELD_OUT, num_texts)), tokenizer)
    lm, stars, hostility = (load(folder, part) for part in ("lm", "stars", "hostility"))
    reviews = [text for text in texts if text.text.stars]
    rare = choose_threshold(lm, hostility, tokenizer, seed=seed, num_draws=num_draws)
    return {
        "held_out": {"seed": seed + HELD_OUT, "texts": num_texts},
        "vocabulary": len(tokenizer),
        "lm": {
            **describe(lm),
            **with_errors(
                perplexity(lm, texts, tokenizer.pad_token_id) | baselines(texts, seed, tokenizer)
            ),
        },
        "stars": {
            **describe(stars),
            **measure_stars(stars, reviews, tokenizer.pad_token_id),
        },
        "hostility": {
            **describe(hostility),
            **measure_hostility(hostility, texts, tokenizer.pad_token_id),
            "threshold": rare,
        },
        "spread": spread(lm, stars, tokenizer, seed),
        "prefixes": {
            prompt: distinct_prefixes(lm, tokenizer(prompt)["input_ids"], seed)
            for prompt in (STORY_PROMPT, REVIEW_PROMPT)
        },
        "samples": {
            prompt: samples(lm, tokenizer, prompt, seed) for prompt in (STORY_PROMPT, REVIEW_PROMPT)
        },
        "bytes": {
            part: sum(file.stat().st_size for file in (folder / part).iterdir())
            for part in ("lm", "stars", "hostility")
        },
    }


def describe(model: PreTrainedModel) -> dict[str, int]:
    """Layers, width and trained numbers, tied ones counted once."""
    return {
        "layers": model.config.n_layer,
        "width": model.config.n_embd,
        "parameters": sum(p.numel() for p in model.parameters()),
    }


@torch.inference_mode()
def perplexity(
    model: PreTrainedModel, texts: Sequence[Encoded], pad: int
) -> dict[str, tuple[float, float]]:
    """Nats a token over held-out texts, the first word given, and the grammar's own bound.

    Each with its standard error.
    """
    nats, counts = [], []
    for i in range(0, len(texts), 64):
        rows = [torch.tensor(text.tokens) for text in texts[i : i + 64]]
        tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
        log_probs = model(tokens).logits[:, :-1].double().log_softmax(-1)
        chosen = log_probs.gather(-1, tokens[:, 1:, None]).squeeze(-1)
        real = tokens[:, 1:] != pad
        nats.append(-chosen.where(real, 0.0).sum(1))
        counts.append(real.sum(1))
    lengths = torch.cat(counts)
    per_token = ratio(torch.cat(nats), lengths)
    bound = ratio(torch.tensor([text.text.nats for text in texts]), lengths)
    return {
        "nats_per_token": per_token,
        "perplexity": exponential(per_token),
        "grammar_bound_nats": bound,
        "grammar_bound_perplexity": exponential(bound),
    }


def with_errors(found: Mapping[str, tuple[float, float]], digits: int = 4) -> dict[str, Any]:
    """Rounded values by name, and under ``standard_error`` their errors by the same names."""
    values: dict[str, Any] = {name: round(value, digits) for name, (value, _) in found.items()}
    return values | {
        "standard_error": {name: significant(error) for name, (_, error) in found.items()}
    }


def baselines(
    texts: Sequence[Encoded], seed: int, tokenizer: PreTrainedTokenizerFast
) -> dict[str, tuple[float, float]]:
    """Perplexity of word frequencies and of word pairs, for comparison, with standard errors."""
    ones: Counter[int] = Counter()
    twos: Counter[tuple[int, int]] = Counter()
    for text in encode(list(corpus(seed, 30_000)), tokenizer):
        ones.update(text.tokens)
        twos.update(itertools.pairwise(text.tokens))
    total = ones.total()
    one_nats, two_nats = torch.zeros(2, len(texts), dtype=torch.float64)
    for i, text in enumerate(texts):
        for before, word in itertools.pairwise(text.tokens):
            p = (ones[word] + 1) / (total + len(tokenizer))
            one_nats[i] -= math.log(p)
            two_nats[i] -= math.log((twos[before, word] + 2 * p) / (ones[before] + 2))
    counts = torch.tensor([len(text.tokens) - 1 for text in texts])
    return {
        "unigram_perplexity": exponential(ratio(one_nats, counts)),
        "bigram_perplexity": exponential(ratio(two_nats, counts)),
    }


def prefix_logits(
    model: Any, texts: Sequence[Encoded], task: str, pad: int
) -> tuple[Tensor, Tensor]:
    """Logits (texts, 128, labels) and labels (texts, 128) at each prefix; IGNORED past the end."""
    width = 160
    logits = torch.zeros(len(texts), width, model.config.num_labels)
    labels = torch.full((len(texts), width), IGNORED)
    with torch.inference_mode():
        for i in range(0, len(texts), 64):
            tokens, targets = prefix_batch(texts[i : i + 64], task, pad)
            part = model.score(model.transformer(tokens).last_hidden_state)
            logits[i : i + len(tokens), : tokens.shape[1]] = part
            labels[i : i + len(tokens), : tokens.shape[1]] = targets
    return logits, labels


def measure_stars(model: PreTrainedModel, texts: Sequence[Encoded], pad: int) -> dict[str, Any]:
    """Accuracy and calibration on whole reviews and on the prompt with 10 and 20 more tokens."""
    logits, labels = prefix_logits(model, texts, "stars", pad)
    lengths = (labels != IGNORED).sum(1)
    found: dict[str, tuple[float, float]] = {}
    for name, at in (("whole", lengths - 1), ("10_tokens", 12), ("20_tokens", 22)):
        where = torch.minimum(torch.as_tensor(at), lengths - 1)
        rows = torch.arange(len(texts))
        probs = logits[rows, where].double().softmax(-1)
        truth = labels[rows, where].long()
        top, guess = probs.max(-1)
        hit = guess == truth
        found[f"accuracy_{name}"] = mean(hit)
        found[f"within_one_star_{name}"] = mean((guess - truth).abs() <= 1)
        found[f"calibration_error_{name}"] = calibration_error(top, hit)
    return {"texts": len(texts), **with_errors(found)}


def measure_hostility(model: PreTrainedModel, texts: Sequence[Encoded], pad: int) -> dict[str, Any]:
    """Agreement with the grammar at one random prefix of each text, and on whole texts."""
    logits, labels = prefix_logits(model, texts, "hostility", pad)
    lengths = (labels != IGNORED).sum(1)
    rng = random.Random(0)
    found: dict[str, tuple[float, float]] = {}
    cuts = torch.tensor([rng.randrange(11, max(12, int(n))) for n in lengths])
    for name, at in (("whole", lengths - 1), ("prefix", torch.minimum(cuts, lengths - 1))):
        rows = torch.arange(len(texts))
        logit = logits[rows, at, 0].double()
        wanted = labels[rows, at].double()
        generator = torch.Generator().manual_seed(0)
        reader = torch.bernoulli(wanted.sigmoid(), generator=generator)
        found[f"accuracy_{name}"] = mean((logit > 0) == (wanted > 0))
        found[f"hostile_fraction_{name}"] = mean(wanted > 0)
        found[f"logit_rmse_{name}"] = root_mean_square(logit - wanted)
        found[f"calibration_error_{name}"] = calibration_error(logit.sigmoid(), reader)
    return {"texts": len(texts), **with_errors(found)}


def exceedance(
    lm: PreTrainedModel,
    hostility: PreTrainedModel,
    prompt: list[int],
    *,
    num_draws: int,
    seed: int,
) -> Tensor:
    """Hostility logits (num_draws,) of the prompt with RARE_STEPS more tokens."""
    tokens = draw(lm, prompt, num_steps=RARE_STEPS, num_draws=num_draws, seed=seed)
    return score(hostility, tokens).squeeze(-1)


def choose_threshold(
    lm: PreTrainedModel,
    hostility: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    *,
    seed: int,
    num_draws: int,
) -> dict[str, Any]:
    """A threshold that about one draw in 2,500 meets: chosen on some draws, measured on others."""
    prompt = tokenizer(STORY_PROMPT)["input_ids"]
    pilot = exceedance(lm, hostility, prompt, num_draws=num_draws // 8, seed=seed + 1)
    eta = round(torch.quantile(pilot.double(), 1.0 - RARE_RATE).item(), 1)
    logits = exceedance(lm, hostility, prompt, num_draws=num_draws, seed=seed + 2)
    rate, rate_error = mean(logits >= eta)
    hostile, hostile_error = mean(logits.double().sigmoid())
    return {
        "eta": eta,
        "rate": rate,
        "standard_error": rate_error,
        "draws": num_draws,
        "prompt": STORY_PROMPT,
        "num_steps": RARE_STEPS,
        "mean_probability": round(hostile, 5),
        "mean_probability_standard_error": significant(hostile_error),
        "quantiles": {
            str(q): round(torch.quantile(logits.double(), q).item(), 3)
            for q in (0.5, 0.9, 0.99, 0.999, 0.9999)
        },
    }


def spread(
    lm: PreTrainedModel, stars: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, seed: int
) -> dict[str, Any]:
    """How the stars' probabilities vary over draws of 10 and of 20 tokens."""
    result = {}
    for num_steps in (10, 20):
        prompt = tokenizer(REVIEW_PROMPT)["input_ids"]
        tokens = draw(lm, prompt, num_steps=num_steps, num_draws=4096, seed=seed)
        probs = score(stars, tokens).softmax(-1)
        result[f"{num_steps}_tokens"] = {
            "mean": [round(p, 3) for p in probs.mean(0).tolist()],
            "standard_deviation": [round(p, 3) for p in probs.std(0).tolist()],
        }
    return result


def distinct_prefixes(lm: PreTrainedModel, prompt: list[int], seed: int) -> dict[str, list[int]]:
    """Number of distinct prefixes among draws after 1 to 20 tokens."""
    result = {}
    for num_draws in (128, 4096):
        tokens = draw(lm, prompt, num_steps=20, num_draws=num_draws, seed=seed)
        ends = range(len(prompt) + 1, tokens.shape[1] + 1)
        result[str(num_draws)] = [len(tokens[:, :end].unique(dim=0)) for end in ends]
    return result


def samples(
    lm: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompt: str, seed: int
) -> list[str]:
    """Six whole texts that the language model writes after a prompt."""
    ids = tokenizer(prompt)["input_ids"]
    rows = draw(lm, ids, num_steps=130, num_draws=6, seed=seed).tolist()
    eos = tokenizer.eos_token_id
    return [str(tokenizer.decode(row[: row.index(eos) if eos in row else None])) for row in rows]
