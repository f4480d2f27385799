"""Write the card of the trained storybook, for people and for programs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

_TEMPLATE = """---
license: mit
language: en
---
# storybook

A small language model and two classifiers of its text, to watch Sequential Monte Carlo at work:
every token is one readable word. They know {vocabulary} tokens and nothing of the world. They were
trained on what a probabilistic grammar writes (`training/storybook/grammar.py`); no person's text
is in it.

| part | what | GPT-2 of | parameters | size |
|---|---|---|---|---|
| `lm` | writes short stories and product reviews | {lm_row} |
| `stars` | five classes, `1 star` to `5 stars`, of a review | {stars_row} |
| `hostility` | one logit, high for hostile text | {hostility_row} |

Weights are float16 safetensors. Texts need no beginning-of-text token: a prompt such as
"{story_prompt}" or "{review_prompt}" can stand alone. `<eos>` ends a text.

## Numbers
Measured on {texts:,} held-out texts of the grammar ({reviews:,} of them reviews), with the saved
weights. After ± stands one standard error over texts, which are independent; tokens of a text are
not.

| language model | nats a token | perplexity |
|---|---|---|
| `lm` | {nats} | {perplexity} |
| the grammar's own choices | {bound_nats} | {bound_perplexity} |
| word pairs | | {bigram} |
| word frequencies | | {unigram} |

The grammar's own choices are an upper bound on the entropy of its text.

| `stars` on | accuracy | within one star | calibration error |
|---|---|---|---|
| whole reviews | {stars_whole} | {stars_near_whole} | {stars_ece_whole} |
| the prompt and 20 tokens | {stars_20} | {stars_near_20} | {stars_ece_20} |
| the prompt and 10 tokens | {stars_10} | {stars_near_10} | {stars_ece_10} |

Reviews are mixed and ironic on purpose: no reader could always tell.

| `hostility` | on whole texts | on a random prefix of each |
|---|---|---|
| agrees with the grammar on hostile or not | {hostile_whole} | {hostile_prefix} |
| hostile in the grammar | {hostile_fraction_whole} | {hostile_fraction_prefix} |
| error of the logit | {hostile_rmse_whole} | {hostile_rmse_prefix} |
| calibration error | {hostile_ece_whole} | {hostile_ece_prefix} |

The error of the logit is a root mean square. The calibration error is the expected one over 15 bins
of equal width (for `hostility` against a reader drawn from the grammar's own probability); its
standard error is that of 1,000 bootstrap samples of texts. By chance alone it is above 0 for a
perfect forecast too.

The hostility label says how hostile the text so far shows itself to be: none, a quarrel, hostile,
very hostile; a hand raised against a drum is not hostile, and saying sorry takes some of it away.
Its log-odds in the grammar are a smooth function within (-8, 8).

## A rare event
From "{story_prompt}", {rare_steps} tokens: **logit >= {eta}** has probability {rate:.2e}
(standard error {rate_error:.1e}, {draws:,} draws, others than the threshold was chosen on). Mean
p(hostile): {mean_hostile}.

## Texts
{samples}

## Train it again
`python -m training.storybook.train` (CPU time, shared by two cores: {training_seconds} s
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
        reviews=stars["texts"],
        nats=_with_error(lm, "nats_per_token"),
        perplexity=_with_error(lm, "perplexity"),
        bound_nats=_with_error(lm, "grammar_bound_nats"),
        bound_perplexity=_with_error(lm, "grammar_bound_perplexity"),
        unigram=_with_error(lm, "unigram_perplexity"),
        bigram=_with_error(lm, "bigram_perplexity"),
        **_stars(stars),
        **_hostility(hostility),
        rare_steps=rare["num_steps"],
        eta=rare["eta"],
        rate=rare["rate"],
        rate_error=rare["standard_error"],
        draws=rare["draws"],
        mean_hostile=_plus_minus(rare["mean_probability"], rare["mean_probability_standard_error"]),
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


def _stars(part: dict[str, Any]) -> dict[str, str]:
    cells = {}
    for short, name in (("whole", "whole"), ("10", "10_tokens"), ("20", "20_tokens")):
        cells[f"stars_{short}"] = _with_error(part, f"accuracy_{name}")
        cells[f"stars_near_{short}"] = _with_error(part, f"within_one_star_{name}")
        cells[f"stars_ece_{short}"] = _with_error(part, f"calibration_error_{name}")
    return cells


def _hostility(part: dict[str, Any]) -> dict[str, str]:
    cells = {}
    for name in ("whole", "prefix"):
        cells[f"hostile_{name}"] = _with_error(part, f"accuracy_{name}")
        cells[f"hostile_fraction_{name}"] = _with_error(part, f"hostile_fraction_{name}")
        cells[f"hostile_rmse_{name}"] = _with_error(part, f"logit_rmse_{name}")
        cells[f"hostile_ece_{name}"] = _with_error(part, f"calibration_error_{name}")
    return cells


def _with_error(part: dict[str, Any], name: str) -> str:
    return _plus_minus(part[name], part["standard_error"][name])


def _plus_minus(value: float, error: float) -> str:
    """Both with the same decimals: those of the error's second digit."""
    if not error:
        return f"{value} ± 0"
    decimals = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{decimals}f} ± {error:.{decimals}f}"
