"""The language model that ships with the package, and its two classifiers.

`storybook` writes short stories and product reviews, one readable word a token. Its three parts are
ordinary transformers checkpoint folders: `path("lm")`, `path("stars")` (reviews, 1 to 5 stars) and
`path("hostility")` (one logit, high for hostile text). `card()` holds their measured numbers.
`python -m training.storybook.train`, in the repository, trained them on text of a grammar.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, get_args

Part = Literal["lm", "stars", "hostility"]

__all__ = ["Part", "card", "path"]

_WEIGHTS = Path(__file__).parent / "weights"


def path(part: Part | str) -> Path:
    """Folder of a part's checkpoint, for any transformers `from_pretrained`.

    Raises:
        ValueError: for an unknown part.
        FileNotFoundError: where the weights were not installed or not yet trained.
    """
    parts = get_args(Part)
    if part not in parts:
        raise ValueError(f"part must be one of {', '.join(parts)}; got {part!r}.")
    return _existing(_WEIGHTS / part)


def card() -> dict[str, Any]:
    """Measured numbers of the shipped weights: perplexity, accuracy, sizes, the rare threshold."""
    return json.loads(_existing(_WEIGHTS / "card.json").read_text(encoding="utf-8"))


def _existing(target: Path) -> Path:
    if not target.exists():
        raise FileNotFoundError(
            f"The storybook's weights are not at {target}: install the package again, or train "
            "them with `python -m training.storybook.train` in the project's repository."
        )
    return target
