"""Potentials that ask for words, phrases or a regular expression in the text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from typing import Literal

from jaxtyping import Float64
from torch import Tensor, tensor

from tsmc_widgets.errors import check_one_of
from tsmc_widgets.targets.automata import TokenAutomaton
from tsmc_widgets.targets.bound import AutomatonPotential, log_indicator
from tsmc_widgets.targets.context import Context
from tsmc_widgets.targets.text import Scope, TextPotential
from tsmc_widgets.targets.text_automata import search_pattern, text_automaton, word_pattern

Case = Literal["ignore", "match"]


class TextIndicator(TextPotential, AutomatonPotential):
    """Phi = 1 where a pattern is found in the text (or is not), else 0."""

    log_phi_max = 0.0
    _wanted = True

    _regex: re.Pattern[str]

    def log_phi_of_texts(self, texts: Sequence[str]) -> Float64[Tensor, " texts"]:
        """0 where the text is as wanted, -inf elsewhere."""
        found = [self._regex.search(text) is not None for text in texts]
        return log_indicator(tensor([hit == self._wanted for hit in found]))

    def bind(self, context: Context) -> TextIndicator:
        """The same potential for one target."""
        return super().bind(context)

    @cached_property
    def _automaton(self) -> TokenAutomaton | None:
        pattern = self._whole_text_pattern()
        if pattern is None:
            return None
        return text_automaton(
            pattern, self._regex, self.context, scope=self.scope, wanted=self._wanted
        )

    def _whole_text_pattern(self) -> str | None:
        """A pattern for whole texts, without anchors, that holds where the regex finds a match."""
        raise NotImplementedError


class _Words(TextIndicator):
    def __init__(self, *words: str, scope: Scope = "continuation", case: Case = "ignore") -> None:
        super().__init__(scope=scope)
        check_one_of("case", case, ("ignore", "match"))
        if not words or not all(isinstance(word, str) and word.strip() for word in words):
            raise ValueError(
                f"{type(self).__name__} needs one or more words or phrases as text; "
                f"got {', '.join(map(repr, words)) or 'none'}."
            )
        self.words = words
        self.case = case
        bare = "|".join(r"\s+".join(map(re.escape, word.split())) for word in words)
        self._regex = re.compile(
            rf"(?<!\w)(?:{bare})(?!\w)", re.IGNORECASE if case == "ignore" else 0
        )

    def _whole_text_pattern(self) -> str | None:
        return word_pattern(self.words, case=self.case)

    def _quoted(self) -> str:
        return " or ".join(f'"{word}"' for word in self.words)

    def _key(self) -> tuple:
        return (self.words, self.scope, self.case)


class ContainsWord(_Words):
    """Phi = 1 where at least one of the words or phrases stands in the text, else 0.

    Args:
        words: whole words or phrases: "art" is not found in "part". Between the words of a phrase
            any white space may stand.
        scope: "continuation" looks at what was generated, "full" at the prompt too.
        case: "ignore" or "match" upper and lower case.
    """

    def describe(self) -> str:
        """``contains "broken"``."""
        return f"contains {self._quoted()}"


class AvoidsWord(_Words):
    """Phi = 1 where none of the words or phrases stands in the text, else 0.

    Args:
        words: whole words or phrases: "art" is not found in "part". Between the words of a phrase
            any white space may stand.
        scope: "continuation" looks at what was generated, "full" at the prompt too.
        case: "ignore" or "match" upper and lower case.
    """

    _wanted = False

    def describe(self) -> str:
        """``avoids "broken"``."""
        return f"avoids {self._quoted()}"


class MatchesRegex(TextIndicator):
    r"""Phi = 1 where Python's ``re.search`` finds the pattern in the text, else 0.

    Args:
        pattern: a regular expression; flags go inside, as in ``(?i)``. ``^`` stands where the text
            of ``scope`` begins. With most models what is generated begins with the space before its
            first word, so that ``^phone`` finds nothing there: write ``^\s*phone``. ``$`` stands
            where the text ends, after T tokens or at EOS, be it within a word.
        scope: "continuation" looks at what was generated, "full" at the prompt too, where ``^`` is
            the prompt's beginning.
    """

    def __init__(self, pattern: str, *, scope: Scope = "continuation") -> None:
        super().__init__(scope=scope)
        try:
            self._regex = re.compile(pattern)
        except re.error as error:
            raise ValueError(
                f"pattern must be a regular expression of Python's re; got {pattern!r}: {error}."
            ) from error
        self.pattern = pattern

    def _whole_text_pattern(self) -> str | None:
        return search_pattern(self.pattern)

    def _key(self) -> tuple:
        return (self.pattern, self.scope)

    def describe(self) -> str:
        """``matches /wom[ae]n/``."""
        return f"matches /{self.pattern}/"
