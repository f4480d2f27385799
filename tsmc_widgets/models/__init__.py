"""Base models p0: the protocol, exact tables, and any causal model of transformers."""

from __future__ import annotations

import importlib
from typing import Any

from tsmc_widgets.errors import missing_extra
from tsmc_widgets.models.loading import load_classifier, load_language_model
from tsmc_widgets.models.protocol import Carry, LanguageModel, LMStep, TeacherForced
from tsmc_widgets.models.tabular import TabularLM

_NEEDS_TRANSFORMERS = {
    "HuggingFaceLM": "tsmc_widgets.models.huggingface",
    "TextClassifier": "tsmc_widgets.models.classifier",
}

__all__ = [
    "Carry",
    "HuggingFaceLM",
    "LMStep",
    "LanguageModel",
    "TabularLM",
    "TeacherForced",
    "TextClassifier",
    "load_classifier",
    "load_language_model",
]


def __getattr__(name: str) -> Any:
    """Import what needs transformers when it is first asked for."""
    if name not in _NEEDS_TRANSFORMERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(_NEEDS_TRANSFORMERS[name]), name)
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        raise missing_extra("transformers", "hf", name) from error
