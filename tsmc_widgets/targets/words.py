"""Potentials that ask for words, phrases or a regular expression in the text."""

from __future__ import annotations

import itertools
import math
import random
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from functools import cache, cached_property, reduce
from operator import and_
from typing import Any, Literal

import numpy as np
import regex
import torch
from jaxtyping import Float64
from torch import Tensor, tensor

from tsmc_widgets.errors import PotentialError, check_kind, check_one_of, quoted
from tsmc_widgets.models.tabular import TabularLM
from tsmc_widgets.models.tempered import table_of
from tsmc_widgets.targets.automata import TokenAutomaton, combine, explore
from tsmc_widgets.targets.checked import show_text
from tsmc_widgets.targets.context import Context
from tsmc_widgets.targets.notation import any_of, scope_of
from tsmc_widgets.targets.protocol import AutomatonPotential, Potential, log_indicator
from tsmc_widgets.targets.text import Scope, TextPotential

ANYTHING = "(?s:.)*"
TRIALS = 500
MATCH_SECONDS = 1.0
"""For one pattern on one text: (a|aa)+$ takes time that doubles with each letter."""
MOST_COPIES = 100_000
"""Of repeated pieces, all minimum counts of a pattern multiplied."""
STEP_LIMIT = 1_000_000
"""Members of states followed while a pattern is made deterministic, whose states may be 2^n."""


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


def text_automaton(
    pattern: str, finds: Callable[[str], bool], context: Context, *, scope: str, wanted: bool
) -> TokenAutomaton | None:
    """Automaton over a model's tokens of "something (or nothing) is found in the text".

    Args:
        pattern: matches whole texts in which something is found.
        finds: the same of one text, with which the automaton must agree.
        context: the target; its model's tokens must have fixed texts.
        scope: "full" or "continuation".
        wanted: whether phi = 1 where something is found, or where nothing is.

    Returns:
        None where the model's tokens have no fixed texts or the pattern has no automaton, or one
        of too many states.
    """
    lm = table_of(context.lm)
    if lm is None:
        return None
    machine = _character_machine(pattern)
    prompt = lm.decode(context.prompt_tokens.unsqueeze(0))[0]
    characters = sorted(set("".join(lm.symbols) + lm.separator + prompt))
    # The two libraries' character classes are the same in ASCII only.
    if machine is None or max(characters) > "\x7f" or not _agrees(machine, finds, characters):
        return None
    start = machine.read(machine.initial, prompt) if scope == "full" else machine.initial
    moves = machine.moves(lm)
    # A state and whether a text has begun, as one integer.
    reached = explore(int(2 * start) + (prompt != ""), moves.__getitem__, lm.vocab_size)
    if reached is None:
        return None
    states, transition = reached
    found = torch.from_numpy(machine.accepts[states // 2]).to(lm.device)
    return TokenAutomaton(
        0, torch.from_numpy(transition).to(lm.device), log_indicator(found == wanted)
    )


class _Machine:
    """A deterministic automaton over characters, whose last state has no way out."""

    def __init__(self, fsm: Any) -> None:
        self.initial, self._alphabet = fsm.initial, fsm.alphabet
        dead = len(fsm.states)
        self.accepts = np.isin(np.arange(dead + 1), list(fsm.finals))
        self._table = np.full((dead + 1, 1 + max(fsm.alphabet.by_transition)), dead)
        for state, row in fsm.map.items():
            for kind, following in row.items():
                self._table[state, kind] = following

    def read(self, state: Any, text: str) -> Any:
        """State after a text, or states."""
        for character in text:
            state = self._table[state, self._alphabet[character]]
        return state

    def moves(self, lm: TabularLM) -> np.ndarray:
        """Next state after each state and token, both as ``2 * state + begun``."""
        states, columns = np.arange(len(self._table)), []
        for token, symbol in enumerate(lm.symbols):
            if token in lm.eos_token_ids:
                columns.append(np.stack([2 * states, 2 * states + 1], -1))
            else:
                after = [self.read(states, text) for text in (symbol, lm.separator + symbol)]
                columns.append(2 * np.stack(after, -1) + 1)
        return np.stack(columns, -1).reshape(-1, lm.vocab_size)


def _character_machine(pattern: str) -> _Machine | None:
    from interegular import parse_pattern

    return _within_budget(lambda: _Machine(parse_pattern(pattern).to_fsm()))


def _within_budget(build: Callable[[], Any]) -> Any:
    """What is built of automata over characters; None where there is none of few states."""
    from interegular.patterns import InvalidSyntax, Unsupported

    _count_steps()
    budget = _STEPS_LEFT.set([STEP_LIMIT])
    try:
        return build()
    except (InvalidSyntax, Unsupported, _TooManySteps):
        return None
    finally:
        _STEPS_LEFT.reset(budget)


def contradiction(potential: Potential) -> list[str]:
    """The fewest factors, in words, that no text satisfies at once, as their automata tell."""
    bare = [factor.unpowered()[0] for factor in potential.factors()]
    kinds = [factor for factor in bare if isinstance(factor, AutomatonPotential)]
    for several in [*itertools.combinations(kinds, 2), tuple(kinds)]:
        if len(several) > 1 and _contradict(found := list(several)):
            for factor in several:
                fewer = [each for each in found if each is not factor]
                found = fewer if len(fewer) > 1 and _contradict(fewer) else found
            return [factor.describe() for factor in found]
    return []


def _contradict(factors: Sequence[AutomatonPotential]) -> bool:
    """Whether no text satisfies all of them; False where their automata do not tell."""
    texts: dict[str, list[TextIndicator]] = defaultdict(list)
    for factor in factors:
        if isinstance(factor, TextIndicator) and factor._whole_text_pattern() is not None:
            texts[factor.scope].append(factor)
    if any(_no_text_fits(group) for group in texts.values()):
        return True
    over_tokens = [each for each in (factor.automaton() for factor in factors) if each is not None]
    both = combine(over_tokens, lambda logs: logs.sum(-1)) if len(over_tokens) > 1 else None
    return both is not None and bool((both.log_value == -math.inf).all())


def _no_text_fits(factors: Sequence[TextIndicator]) -> bool:
    from interegular import parse_pattern

    if len(factors) < 2 or not any(factor._wanted for factor in factors):
        return False

    def nothing() -> bool:
        automata = [parse_pattern(factor._whole_text_pattern()).to_fsm() for factor in factors]
        wanted = [
            each if factor._wanted else each.everythingbut()
            for each, factor in zip(automata, factors, strict=True)
        ]
        return reduce(and_, wanted).empty()

    return bool(_within_budget(nothing))


_STEPS_LEFT: ContextVar[list[int] | None] = ContextVar("steps_left", default=None)


class _TooManySteps(Exception):
    """The automaton would have too many states."""


@cache
def _count_steps() -> None:
    """Give interegular a budget, which it lacks; others in this process use it as before."""
    from interegular import fsm

    plain = fsm.crawl

    def crawl(alphabet: Any, initial: Any, final: Any, follow: Any) -> Any:
        """States in the order in which the library finds them, which searches a list for each."""
        left = _STEPS_LEFT.get()
        if left is None:
            return plain(alphabet, initial, final, follow)
        numbers, states, rows = {_hashable(initial): 0}, [initial], {}
        for at, state in enumerate(states):  # grows while it is read
            rows[at] = {}
            for transition in alphabet.by_transition:
                left[0] -= len(state)
                if left[0] < 0:
                    raise _TooManySteps
                try:
                    following = follow(state, transition)
                except fsm.OblivionError:
                    continue
                rows[at][transition] = numbers.setdefault(_hashable(following), len(states))
                if len(numbers) > len(states):
                    states.append(following)
        finals = {at for at, state in enumerate(states) if final(state)}
        return fsm.FSM(
            alphabet=alphabet, states=range(len(states)), initial=0, finals=finals, map=rows,
            __no_validation__=True,
        )  # fmt: skip

    fsm.crawl = crawl


def _hashable(state: Any) -> Any:
    return frozenset(state.items() if isinstance(state, dict) else state)


def _agrees(machine: _Machine, finds: Callable[[str], bool], characters: Sequence[str]) -> bool:
    """Whether machine and expression say the same on short texts and on random longer ones.

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
        bool(machine.accepts[machine.read(machine.initial, text)]) == finds(text)
        for text in itertools.chain(short, longer)
    )


Case = Literal["ignore", "match"]


class TextIndicator(TextPotential, AutomatonPotential, kind=False):
    """Phi = 1 where a pattern is found in the text (or is not), else 0."""

    log_phi_max = 0.0
    _wanted = True

    _regex: regex.Pattern[str]

    def finds(self, text: str) -> bool:
        """Whether the pattern is found in a text.

        Raises:
            PotentialError: it takes too long.
        """
        try:
            # It holds no lock of the interpreter's, so that a page stays alive meanwhile.
            found = self._regex.search(text, timeout=MATCH_SECONDS)
        except TimeoutError as error:
            raise PotentialError(
                f"{self.describe()} took over {MATCH_SECONDS:g} s on {show_text(text)}: a piece "
                "that can match one text in many ways, as in (a|aa)+ or (a+)+, takes time that "
                "doubles with each letter. Write it so that it can match in one way."
            ) from error
        return found is not None

    def log_phi_of_texts(self, texts: Sequence[str]) -> Float64[Tensor, " texts"]:
        """0 where the text is as wanted, -inf elsewhere."""
        return log_indicator(tensor([self.finds(text) == self._wanted for text in texts]))

    @cached_property
    def _automaton(self) -> TokenAutomaton | None:
        pattern = self._whole_text_pattern()
        if pattern is None:
            return None
        return text_automaton(
            pattern, self.finds, self.context, scope=self.scope, wanted=self._wanted
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
        self._bare = f"(?{'i' if case == 'ignore' else ''}:{bare})"
        self._regex = regex.compile(rf"(?<!\w){self._bare}(?!\w)", regex.V0)

    def _whole_text_pattern(self) -> str | None:
        return rf"(?:{ANYTHING}\W)?{self._bare}(?:\W{ANYTHING})?"

    @classmethod
    def formula(cls, part: Mapping[str, Any]) -> str:
        """``log 1[“broken” in s]``, or ``log 1[no “broken” in s]``."""
        return f"log 1[{'' if cls._wanted else 'no '}{any_of(part)} in {scope_of(part)}]"

    def describe(self) -> str:
        """``contains "broken"``, or ``avoids``."""
        return f"{'contains' if self._wanted else 'avoids'} {self._quoted()}"

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


class AvoidsWord(_Words):
    """Phi = 1 where none of the words or phrases stands in the text, else 0.

    Args:
        words, scope, case: as for ``ContainsWord``.
    """

    _wanted = False


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
        check_kind("pattern", pattern, str, "a text")
        try:
            self._regex = self._compiled(pattern)
        except (re.error, regex.error) as error:
            raise ValueError(
                f"pattern must be a regular expression of Python's re; got {quoted(pattern)}: "
                f"{error}."
            ) from error
        self.pattern = pattern

    @staticmethod
    def _compiled(pattern: str) -> regex.Pattern[str]:
        """The pattern as ``regex`` reads it, which writes out what is repeated."""
        re.compile(pattern)  # What regex knows beyond it is no pattern here.
        copies = math.prod(max(1, int(least)) for least in re.findall(r"\{(\d+)[,}]", pattern))
        if copies > MOST_COPIES:
            raise re.error(f"it repeats a piece {copies} times, and {MOST_COPIES} are allowed")
        return regex.compile(pattern, regex.V0)

    def _whole_text_pattern(self) -> str | None:
        return search_pattern(self.pattern)

    @classmethod
    def formula(cls, part: Mapping[str, Any]) -> str:
        """``log 1[/wom[ae]n/ in s]``."""
        return f"log 1[/{part['pattern']}/ in {scope_of(part)}]"

    def describe(self) -> str:
        """``matches /wom[ae]n/``."""
        return f"matches /{self.pattern}/"
