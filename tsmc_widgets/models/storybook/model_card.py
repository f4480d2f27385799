"""Write the card of the trained storybook, for people and for programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_TEMPLATE = """---
license: mit
language: en
---
# storybook

A small language model and two classifiers of its text, to watch Sequential Monte Carlo at work:
every token is one readable word. They know {vocabulary} tokens and nothing of the world. They were
trained on what a probabilistic grammar writes (`grammar.py`); no person's text is in it.

| part | what | GPT-2 of | parameters | size |
|---|---|---|---|---|
| `lm` | writes short stories and product reviews | {lm_row} |
| `stars` | five classes, `1 star` to `5 stars`, of a review | {stars_row} |
| `hostility` | one logit, high for hostile text | {hostility_row} |

Weights are float16 safetensors. Texts need no beginning-of-text token: a prompt such as
"{story_prompt}" or "{review_prompt}" can stand alone. `<eos>` ends a text.

## Numbers
Measured on {texts:,} held-out texts of the grammar, with the saved weights.

- Language model: {nats} nats a token, perplexity {perplexity}. The grammar's own choices come to
  {bound_nats} nats ({bound_perplexity}), an upper bound on the entropy of its text. Word
  frequencies: {unigram}; word pairs: {bigram}.
- Stars, whole reviews: accuracy {stars_whole}, within one star {stars_near}, expected calibration
  error {stars_ece}. After the prompt and 10 tokens: {stars_10} ({stars_ece_10}); 20 tokens:
  {stars_20} ({stars_ece_20}). Reviews are mixed and ironic on purpose: no reader could always tell.
- Hostility, at random prefixes: agrees with the grammar on hostile or not in {hostile_accuracy}
  (hostile: {hostile_fraction} of them), error of the logit {hostile_rmse} (root mean square),
  expected calibration error {hostile_ece}.

The hostility label says how hostile the text so far shows itself to be: none, a quarrel, hostile,
very hostile; a hand raised against a drum is not hostile, and saying sorry takes some of it away.
Its log-odds in the grammar are a smooth function within (-5, 5).

## A rare event
From "{story_prompt}", {rare_steps} tokens: **logit >= {eta}** has probability {rate:.2e}
(standard error {rate_error:.1e}, {draws:,} draws). Mean p(hostile): {mean_hostile}.

## Texts
{samples}

## Train it again
`python -m tsmc_widgets.models.storybook.train` (CPU time, shared by two cores: {training_seconds} s
of training, {measuring_seconds} s of measuring; seed {seed}; {lm_steps} steps of {step_tokens}
tokens for the language model, {stars_steps} and {hostility_steps} steps for the classifiers). The
numbers above are in `card.json` too.

## Limits
Nothing here is fit to judge real stories, reviews or people. The hostility classifier knows the
grammar's sentences best: after a harmless opening it may overlook a blow that the grammar seldom
puts there ("hit Lily with a stick" beside the common "hit the ball with a stick"). Licence: MIT.
"""


def write_card(card: dict[str, Any], folder: Path) -> None:
    """Write `card.json` and `MODEL_CARD.md` into the folder of the checkpoints."""
    text = json.dumps(card, indent=2, ensure_ascii=False)
    (folder / "card.json").write_text(text + "\n", encoding="utf-8")
    (folder / "MODEL_CARD.md").write_text(_render(card), encoding="utf-8")


def _render(card: dict[str, Any]) -> str:
    lm, stars, hostility = card["lm"], card["stars"], card["hostility"]
    rare, training = hostility["threshold"], card["training"]
    story_prompt, review_prompt = card["samples"]
    texts = [text for rows in card["samples"].values() for text in rows]
    rows = {f"{part}_row": _row(card[part], size) for part, size in card["bytes"].items()}
    return _TEMPLATE.format(
        **rows,
        vocabulary=card["vocabulary"],
        story_prompt=story_prompt,
        review_prompt=review_prompt,
        texts=card["held_out"]["texts"],
        nats=lm["nats_per_token"],
        perplexity=lm["perplexity"],
        bound_nats=lm["grammar_bound_nats"],
        bound_perplexity=lm["grammar_bound_perplexity"],
        unigram=lm["unigram_perplexity"],
        bigram=lm["bigram_perplexity"],
        stars_whole=stars["accuracy_whole"],
        stars_near=stars["within_one_star_whole"],
        stars_ece=stars["calibration_error_whole"],
        stars_10=stars["accuracy_10_tokens"],
        stars_ece_10=stars["calibration_error_10_tokens"],
        stars_20=stars["accuracy_20_tokens"],
        stars_ece_20=stars["calibration_error_20_tokens"],
        hostile_accuracy=hostility["accuracy_prefix"],
        hostile_fraction=hostility["hostile_fraction_prefix"],
        hostile_rmse=hostility["logit_rmse_prefix"],
        hostile_ece=hostility["calibration_error_prefix"],
        rare_steps=rare["num_steps"],
        eta=rare["eta"],
        rate=rare["rate"],
        rate_error=rare["standard_error"],
        draws=rare["draws"],
        mean_hostile=rare["mean_probability"],
        samples="\n".join(f"- {text}" for text in texts),
        training_seconds=training["cpu_seconds_training"],
        measuring_seconds=training["cpu_seconds_measuring"],
        seed=training["seed"],
        lm_steps=training["lm_steps"],
        stars_steps=training["stars_steps"],
        hostility_steps=training["hostility_steps"],
        step_tokens=training["tokens_per_step"],
    )


def _row(part: dict[str, Any], size: int) -> str:
    shape = f"{part['layers']} layers, width {part['width']}"
    return f"{shape} | {part['parameters']:,} | {size / 1e6:.2f} MB"
