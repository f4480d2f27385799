"""Public names and where they live: read by `lazy_loader`, editors and type checkers."""

from .classifier import TextClassifier as TextClassifier
from .huggingface import HuggingFaceLM as HuggingFaceLM
from .loading import (
    load_classifier as load_classifier,
    load_language_model as load_language_model,
)
from .protocol import (
    Carry as Carry,
    LanguageModel as LanguageModel,
    LMStep as LMStep,
    TeacherForced as TeacherForced,
)
from .tabular import TabularLM as TabularLM
from .tempered import Tempered as Tempered
