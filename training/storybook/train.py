"""Train the storybook: `python -m training.storybook.train`.

Writes text with the grammar, trains the language model and the two classifiers on it, saves them in
half precision and measures what was saved. Seeded; about a quarter of an hour on two cores, a third
of it to measure how rare the rare event is (`--draws`). `--parts hostility` trains that part again
beside the others that are saved in `--out`; `--measure-only` trains nothing, measures what is saved
there and writes its cards.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import random
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    set_seed,
)

from training.storybook import measure
from training.storybook.batches import IGNORED, Encoded, encode, packed_rows, prefix_batch
from training.storybook.grammar import corpus
from training.storybook.model_card import write_card
from training.storybook.tokens import CONTEXT, build_tokenizer, count_words
from tsmc_widgets.models import storybook

log = logging.getLogger(__name__)

SHIPPED = Path(storybook.__file__).parent / "weights"

STARS = {i: f"{i + 1} star{'s' if i else ''}" for i in range(5)}
PARTS = ("lm", "stars", "hostility")
TOKENS_PER_STEP = 2048
TEXTS_PER_BATCH = 48


def _gpt2_config(tokenizer: PreTrainedTokenizerFast, **kwargs: Any) -> GPT2Config:
    return GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=CONTEXT,
        # The same function as gelu_new, in one kernel and not eight.
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **kwargs,
    )


def _fit(
    model: PreTrainedModel,
    batches: Iterable[tuple[Tensor, ...]],
    loss_of: Callable[..., Tensor],
    *,
    num_steps: int,
    peak: float,
    name: str,
) -> None:
    """AdamW with a short warm-up and a cosine to a twentieth of the peak rate."""
    model.train()
    matrices = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98))
    began, running = time.monotonic(), 0.0
    for step, batch in zip(range(num_steps), batches, strict=False):
        warm = min(1.0, (step + 1) / 50)
        cosine = 0.525 + 0.475 * math.cos(math.pi * step / num_steps)
        for group in optimizer.param_groups:
            group["lr"] = peak * warm * cosine
        loss = loss_of(model, *batch)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        running = loss.item() if step == 0 else 0.98 * running + 0.02 * loss.item()
        if (step + 1) % 100 == 0 or step + 1 == num_steps:
            seconds = time.monotonic() - began
            log.info("%s step %d: loss %.4f, %.0f s", name, step + 1, running, seconds)
    model.eval()


def _lm_loss(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    log_probs = model(tokens, use_cache=False).logits[:, :-1]
    return nn.functional.cross_entropy(log_probs.flatten(0, 1), tokens[:, 1:].flatten())


def _lm_batches(
    seed: int, num_steps: int, tokenizer: PreTrainedTokenizerFast
) -> Iterable[tuple[Tensor]]:
    """Fresh text for every step; one step in four has rows as long as the context."""
    rng, position = random.Random(seed), 0
    for step in range(num_steps):
        length = CONTEXT if step % 4 == 3 else CONTEXT // 2
        rows: list[list[int]] = []
        while len(rows) * length < TOKENS_PER_STEP:
            texts = encode(list(corpus(seed, 16, position)), tokenizer)
            position += 16
            rng.shuffle(texts)
            rows += packed_rows(texts, length, tokenizer.eos_token_id, rng)
        yield (torch.tensor(rows[: TOKENS_PER_STEP // length]),)


def train_lm(tokenizer: PreTrainedTokenizerFast, seed: int, num_steps: int) -> GPT2LMHeadModel:
    """The language model: next-token loss on texts packed one after another."""
    set_seed(seed)
    model = GPT2LMHeadModel(_gpt2_config(tokenizer, n_embd=160, n_layer=3, n_head=5))
    batches = _lm_batches(seed, num_steps, tokenizer)
    _fit(model, batches, _lm_loss, num_steps=num_steps, peak=3e-3, name="lm")
    return model


def _prefix_loss(model: Any, tokens: Tensor, targets: Tensor) -> Tensor:
    """Loss at every prefix at once: the classifiers are causal, so each position is a prefix."""
    hidden = model.transformer(tokens, use_cache=False).last_hidden_state
    logits = model.score(hidden)  # (batch, length, labels)
    real = targets != IGNORED
    if model.config.num_labels > 1:
        return nn.functional.cross_entropy(logits[real], targets[real].long())
    wanted = targets[real]
    error = (logits[real].squeeze(-1) - wanted).square().mean()
    soft = nn.functional.binary_cross_entropy_with_logits(
        logits[real].squeeze(-1), wanted.sigmoid()
    )
    return soft + 0.3 * error


def _prefix_batches(
    texts: list[Encoded], task: str, pad: int, seed: int
) -> Iterable[tuple[Tensor, Tensor]]:
    rng = random.Random(seed)
    while True:
        rng.shuffle(texts)
        for i in range(0, len(texts) - TEXTS_PER_BATCH, TEXTS_PER_BATCH):
            yield prefix_batch(texts[i : i + TEXTS_PER_BATCH], task, pad, rng)


def train_classifier(
    tokenizer: PreTrainedTokenizerFast, task: str, seed: int, num_steps: int
) -> GPT2ForSequenceClassification:
    """A classifier of whole and of unfinished texts, by the grammar's latent labels."""
    set_seed(seed)
    if task == "stars":
        names = STARS
    else:
        names = {0: "hostile"}
    config = _gpt2_config(
        tokenizer,
        n_embd=96,
        n_layer=2,
        n_head=4,
        num_labels=len(names),
        id2label=names,
        label2id={name: i for i, name in names.items()},
    )
    model = GPT2ForSequenceClassification(config)
    wanted = "review" if task == "stars" else None
    texts = [t for t in corpus(seed, 60_000) if wanted in (None, t.kind)]
    batches = _prefix_batches(encode(texts, tokenizer), task, tokenizer.pad_token_id, seed)
    _fit(model, batches, _prefix_loss, num_steps=num_steps, peak=3e-3, name=task)
    return model


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """An ordinary checkpoint folder in half precision, tokenizer included."""
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def train(options: argparse.Namespace) -> dict[str, Any]:
    """Train and save the chosen parts; what the card says of them and of those that stay."""
    kept = {} if set(options.parts) == set(PARTS) else trained(options.out)
    began = time.process_time()
    # Texts do not depend on the labels, so parts trained separately share their vocabulary.
    counts = count_words(corpus(options.seed, 60_000))
    tokenizer = build_tokenizer(sorted(counts, key=lambda word: (-counts[word], word)))
    steps = {
        "lm": options.steps,
        "stars": options.stars_steps,
        "hostility": options.hostility_steps,
    }
    for part in options.parts:
        if part == "lm":
            model: PreTrainedModel = train_lm(tokenizer, options.seed, options.steps)
        else:
            model = train_classifier(tokenizer, part, options.seed, steps[part])
        save(model, tokenizer, options.out / part)
    seconds = {} if kept else {"cpu_seconds_training": round(time.process_time() - began)}
    return {
        "seed": options.seed,
        "tokens_per_step": TOKENS_PER_STEP,
        **kept,
        **{f"{part}_steps": steps[part] for part in options.parts},
        **seconds,
    }


def trained(folder: Path) -> dict[str, Any]:
    """What the card in a folder says of the training of its checkpoints.

    Raises:
        FileNotFoundError: the folder has no card.
    """
    card = folder / "card.json"
    if not card.is_file():
        raise FileNotFoundError(
            f"There is no {card}, which says how the checkpoints were trained: --measure-only and "
            "--parts go on from a folder that this command has written. Leave them out to train "
            "all parts."
        )
    return json.loads(card.read_text(encoding="utf-8"))["training"]


def main() -> None:
    """Train, save, measure, and write the card."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=SHIPPED)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="train these")
    parser.add_argument("--steps", type=int, default=2800, help="steps of the language model")
    parser.add_argument("--stars-steps", type=int, default=700)
    parser.add_argument("--hostility-steps", type=int, default=1100)
    parser.add_argument("--draws", type=int, default=200_000, help="draws to measure the threshold")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--measure-only", action="store_true", help="train nothing")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(options.threads)
    training = trained(options.out) if options.measure_only else train(options)
    began = time.process_time()
    card = measure.measure_all(options.out, seed=training["seed"], num_draws=options.draws)
    measuring = round(time.process_time() - began)
    card["training"] = training | {"cpu_seconds_measuring": measuring}
    write_card(card, options.out)
    log.info(json.dumps(card, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
