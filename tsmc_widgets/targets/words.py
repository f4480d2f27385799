"""Potentials that ask for words, phrases or a regular expression in the text."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Float64
from torch import Tensor, tensor

from tsmc_widgets.errors import check_one_of
from tsmc_widgets.models.tabular import TabularLM
from tsmc_widgets.targets.automata import TokenAutomaton
from tsmc_widgets.targets.context import Context
from tsmc_widgets.targets.notation import any_of, scope_of
from tsmc_widgets.targets.protocol import AutomatonPotential, log_indicator
from tsmc_widgets.targets.text import Scope, TextPotential

ANYTHING = "(?s:.)*"
TRIALS = 500


def search_pattern(pattern: str) -> str | None:
    """A pattern for whole texts that holds where ``re.search`` finds ``pattern``.

    ^ and $ are understood at the two ends of a pattern without alternatives, and flags i and s.
    None where the pattern has constructs that have no automaton here.
    """
    flags, body = re.fullmatch(r"(?:\(\?([a-zA-Z]+)\))?(.*)", pattern, re.DOTALL).groups()
    flags = flags or ""
    if set(flags) - set("is") or re.search(r"\(\?(?:[=!>#(]|<[=!]|P=)|[*+?}]\+", body):
        return None
    before, after = ANYTHING, ANYTHING
    anchored_end = re.search(r"(?<!\\)(?:\\\\)*\$\Z", body) is not None
    if body.startswith("^") or anchored_end:
        if _offers_choice(body):
            return None
        if body.startswith("^"):
            before, body = "", body[1:]
        if anchored_end:
            after, body = "\n?", body[:-1]
    scoped = f"(?{flags}:{body})" if flags else f"(?:{body})"
    return f"{before}{scoped}{after}"


def _offers_choice(body: str) -> bool:
    """Whether a | stands outside of all brackets, so that an anchor is part of one choice only."""
    bare = re.sub(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", "", body, flags=re.DOTALL)
    while (fewer := re.sub(r"\([^()]*\)", "", bare)) != bare:
        bare = fewer
    return "|" in bare


def word_pattern(words: Sequence[str], *, case: str) -> str:
    """A pattern for whole texts that holds where one of the words stands by itself."""
    bare = "|".join(r"\s+".join(map(re.escape, word.split())) for word in words)
    flags = "i" if case == "ignore" else ""
    return rf"(?:{ANYTHING}\W)?(?{flags}:{bare})(?:\W{ANYTHING})?"


def text_automaton(
    pattern: str, regex: re.Pattern[str], context: Context, *, scope: str, wanted: bool
) -> TokenAutomaton | None:
    """Automaton over a model's tokens of "``regex`` finds something (or nothing) in the text".

    Args:
        pattern: matches whole texts in which the regex finds something.
        regex: the same in Python's words, with which the automaton must agree.
        context: the target; its model's tokens must have fixed texts.
        scope: "full" or "continuation".
        wanted: whether phi = 1 where something is found, or where nothing is.

    Returns:
        None where the model's tokens have no fixed texts or the pattern has no automaton.
    """
    lm = context.lm
    if not isinstance(lm, TabularLM):
        return None
    machine = _character_machine(pattern)
    prompt = lm.decode(context.prompt_tokens.unsqueeze(0))[0]
    characters = sorted(set("".join(lm.symbols) + lm.separator + prompt))
    # The two libraries' character classes are the same in ASCII only.
    if machine is None or max(characters) > "\x7f" or not _agrees(machine, regex, characters):
        return None
    start = machine.read(machine.initial, prompt) if scope == "full" else machine.initial
    first = (start, prompt != "")
    numbers = {first: 0}
    queue = [first]
    rows = []
    for state, started in queue:  # grows while it is read
        row = []
        for token, symbol in enumerate(lm.symbols):
            if token == lm.eos_token_id:
                following = (state, started)
            else:
                text = lm.separator + symbol if started else symbol
                following = (machine.read(state, text), True)
            if following not in numbers:
                numbers[following] = len(numbers)
                queue.append(following)
            row.append(numbers[following])
        rows.append(row)
    found = torch.tensor([machine.accepts(state) for state, _ in queue], device=lm.device)
    return TokenAutomaton(
        0, torch.tensor(rows, dtype=torch.int64, device=lm.device), log_indicator(found == wanted)
    )


class _Machine:
    """A deterministic automaton over characters; -1 is the state without a way out."""

    def __init__(self, fsm: Any) -> None:
        self.initial = fsm.initial
        self._alphabet, self._map, self._finals = fsm.alphabet, fsm.map, fsm.finals

    def read(self, state: int, text: str) -> int:
        """State after a text."""
        for character in text:
            state = self._map.get(state, {}).get(self._alphabet[character], -1)
        return state

    def accepts(self, state: int) -> bool:
        """Whether a text may end in a state."""
        return state in self._finals


def _character_machine(pattern: str) -> _Machine | None:
    from interegular import parse_pattern
    from interegular.patterns import InvalidSyntax, Unsupported

    try:
        return _Machine(parse_pattern(pattern).to_fsm())
    except (InvalidSyntax, Unsupported):
        return None


def _agrees(machine: _Machine, regex: re.Pattern[str], characters: Sequence[str]) -> bool:
    """Whether machine and regex say the same on short texts and on random longer ones.

    They know different syntax at the edges, and an oracle must not be silently wrong.
    """
    generator = random.Random(0)
    short = (
        "".join(text)
        for length in range(3)
        for text in itertools.islice(itertools.product(characters, repeat=length), TRIALS)
    )
    longer = (
        "".join(generator.choices(characters, k=generator.randint(1, 12))) for _ in range(TRIALS)
    )
    return all(
        machine.accepts(machine.read(machine.initial, text)) == (regex.search(text) is not None)
        for text in itertools.chain(short, longer)
    )


Case = Literal["ignore", "match"]


class TextIndicator(TextPotential, AutomatonPotential, kind=False):
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


class _Words(TextIndicator, kind=False):
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


class ContainsWord(_Words):
    """Phi = 1 where at least one of the words or phrases stands in the text, else 0.

    Args:
        words: whole words or phrases: "art" is not found in "part". Between the words of a phrase
            any white space may stand.
        scope: "continuation" looks at what was generated, "full" at the prompt too.
        case: "ignore" or "match" upper and lower case.
    """

    @classmethod
    def formula(cls, part: Mapping[str, Any]) -> str:
        """``log 1[“broken” in s]``."""
        return f"log 1[{any_of(part)} in {scope_of(part)}]"

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

    @classmethod
    def formula(cls, part: Mapping[str, Any]) -> str:
        """``log 1[no “broken” in s]``."""
        return f"log 1[no {any_of(part)} in {scope_of(part)}]"

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

    @classmethod
    def formula(cls, part: Mapping[str, Any]) -> str:
        """``log 1[/wom[ae]n/ in s]``."""
        return f"log 1[/{part['pattern']}/ in {scope_of(part)}]"

    def describe(self) -> str:
        """``matches /wom[ae]n/``."""
        return f"matches /{self.pattern}/"
