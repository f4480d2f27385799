"""Potentials that ask for texts of a formal language: JSON, a grammar, a regular expression.

llguidance (extra ``grammar``) says which tokens may follow a prefix. Its forced tokens are turned
off: they would rule out all spellings of a text in tokens but one, and with them mass of phi.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import islice
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from tsmc_widgets.errors import (
    PotentialError,
    UnsupportedModelError,
    check_kind,
    import_extra,
    quoted,
    shortened,
)
from tsmc_widgets.models.protocol import LanguageModel, eos_ids
from tsmc_widgets.models.tabular import TabularLM
from tsmc_widgets.targets.context import Context
from tsmc_widgets.targets.protocol import BoundOnly, log_indicator

MOST_CHARACTERS = 200_000
"""Of a schema, grammar or pattern."""
MOST_PREFIXES = 2**14
"""Whose matchers are kept, of about 12 kB each at a vocabulary of 50,000."""
_FREE_SPELLING = '\n%llguidance {"no_forcing": true}'
_SHOWN = 60


class FormalLanguage(BoundOnly, kind=False):
    """Phi = 1 where the generated text is a whole text of a formal language, else 0.

    A text ends at an absorbing EOS, or after T tokens; one that is not complete by then has phi 0,
    as has one that contains an EOS that does not absorb. Z is the mass of complete texts.
    ``LookAheadTwist`` gives psi = 1 to the prefixes that can be completed and 0 to the others, with
    no regard to how many steps are left: what is still open at T dies there.

    Args:
        kind: what the language is made of, in words, for errors.
        source: the schema, grammar or pattern as it was given.
        lark: the language as a grammar of llguidance.
    """

    log_phi_max = 0.0

    def __init__(self, kind: str, source: str, lark: str) -> None:
        check_text(kind, source)
        self._lark = lark + _FREE_SPELLING
        wrong, messages = _library().LLMatcher.validate_grammar_with_warnings(self._lark)
        if wrong:
            raise ValueError(f"{kind} cannot be used: {_first_part(messages[0])}. {_HELP[kind]}")

    def _look_up(self) -> None:
        _ = self._prefixes

    @cached_property
    def _prefixes(self) -> _Prefixes:
        """The language over one model's tokens.

        Raises:
            UnsupportedModelError: the tokens of the model have no fixed texts.
            PotentialError: no text of these tokens is in the language.
        """
        return _Prefixes(self._lark, self.context, self.describe())

    def log_phi(self, tokens: Int[Tensor, "batch steps"]) -> Float64[Tensor, " batch"]:
        """0 where a row is a whole text of the language, -inf elsewhere."""
        complete = torch.tensor(self._prefixes.are_complete(tokens.tolist()), dtype=torch.bool)
        return log_indicator(complete.to(tokens.device))

    def viable_next(self, tokens: Int[Tensor, "batch shorter"]) -> Bool[Tensor, "batch vocab"]:
        """Which next tokens leave a prefix that more tokens can complete."""
        return self._prefixes.viable_next(tokens.tolist()).to(tokens.device)

    def _key(self) -> tuple:
        return (self._lark,)


class JSONSchema(FormalLanguage):
    """Phi = 1 where the generated text is JSON of a schema, else 0.

    Keys come in the order of the schema. What llguidance does not know of JSON Schema is refused.
    White space between the parts is free; ``"x-guidance": {"whitespace_flexible": False,
    "item_separator": ", ", "key_separator": ": "}`` in the schema fixes it.

    Args:
        schema: a JSON schema, as a dictionary or as text.
    """

    def __init__(self, schema: Mapping[str, Any] | str) -> None:
        try:
            self.schema = json.loads(schema) if isinstance(schema, str) else schema
            text = json.dumps(self.schema, allow_nan=False)
        except RecursionError:
            raise ValueError("schema is nested too deeply: use $defs and $ref.") from None
        except (TypeError, ValueError) as error:
            raise ValueError(f"schema must be a JSON object: {error}.") from error
        if not isinstance(self.schema, Mapping):
            raise ValueError(f"schema must be a JSON object; got {quoted(text)}.")
        super().__init__("schema", text, f"start: %json {text}")

    @classmethod
    def formula(cls, part: Mapping[str, Any]) -> str:
        """``log 1[s is JSON of “product”]``."""
        return f"log 1[s is JSON of “{_title(part['schema'])}”]"

    def describe(self) -> str:
        """``JSON of "product"``."""
        return f'JSON of "{_title(self.schema)}"'


class Grammar(FormalLanguage):
    """Phi = 1 where the generated text is a whole text of a context-free grammar, else 0.

    Terminals are read as a lexer reads them, the longest first and without going back: of ``"ab"``
    and ``"abc"`` in one place, a text that goes on with c has the second.

    Args:
        grammar: in llguidance's variant of Lark (rule ``start``), or in GBNF (rule ``root``).
    """

    def __init__(self, grammar: str) -> None:
        self.grammar = lark = check_text("grammar", grammar)
        if "::=" in grammar:
            converter = import_extra("llguidance.gbnf_to_lark", "grammar", "A grammar in GBNF")
            try:
                lark = converter.any_to_lark(grammar)
            except Exception as error:  # It raises plain ones.
                raise ValueError(f"grammar cannot be read as GBNF: {error}.") from error
        super().__init__("grammar", grammar, lark)

    @classmethod
    def formula(cls, part: Mapping[str, Any]) -> str:
        """``log 1[s ∈ L(start: "yes" | "no")]``."""
        return f"log 1[s ∈ L({_short(part['grammar'])})]"

    def describe(self) -> str:
        """``text of the grammar start: "yes" | "no"``."""
        return f"text of the grammar {_short(self.grammar)}"


class FullMatch(FormalLanguage):
    """Phi = 1 where the whole generated text matches a regular expression, else 0.

    Unlike ``MatchesRegex``, which looks for a match in the text, it masks tokens at any vocabulary.

    Args:
        pattern: in the syntax that Python's re shares with Rust's regex, without look-around and
            back-references. With most models the text begins with the space before its first word.
    """

    def __init__(self, pattern: str) -> None:
        self.pattern = check_text("pattern", pattern)
        rule = f"/{_library().regex_to_lark(pattern, '')}/" if pattern else '""'
        super().__init__("pattern", pattern, f"start: {rule}")

    @classmethod
    def formula(cls, part: Mapping[str, Any]) -> str:
        """``log 1[s = /a+b/]``."""
        return f"log 1[s = /{part['pattern']}/]"

    def describe(self) -> str:
        """``is /a+b/``."""
        return f"is /{self.pattern}/"


def check_text(kind: str, text: Any) -> str:
    """The text of a language, or ValueError if it is none or too long."""
    check_kind(kind, text, str, "a text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{kind} must be a text that UTF-8 has; got {quoted(text)}.") from error
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"{kind} may have {MOST_CHARACTERS:,} characters; got {len(text):,}.")
    return text


_HELP = {
    "schema": "Take away or rewrite what is named.",
    "grammar": "Write it in Lark with a rule start, or in GBNF with a rule root.",
    "pattern": "Look-around and back-references have no automaton.",
}


class _Prefixes:
    """Matchers of one language after the prefixes that were asked for, forked from one another.

    The oldest go when there are more than MOST_PREFIXES, and are made again from the start.
    """

    def __init__(self, lark: str, context: Context, name: str) -> None:
        self._lark, self._context, self._name = lark, context, name
        self._lock = threading.Lock()
        tokenizer = _tokenizer_of(context)
        own = eos_ids(context.lm)
        self._absorbing = [] if context.ending is None else list(own)
        self._ends = [t for t in {*tokenizer.eos_tokens, *own} if t < context.lm.vocab_size]
        start = _library().LLMatcher(tokenizer, lark, log_level=0)
        self._known: dict[tuple[int, ...], Any] = {(): start}
        self._check(start)
        if not bool(self.viable_next([[]]).any()):
            raise PotentialError(f"{name}: the model has no token that a text could begin with.")

    def __reduce__(self) -> tuple:
        """Copies and pickles are made again: matchers cannot be moved."""
        return _Prefixes, (self._lark, self._context, self._name)

    def viable_next(self, rows: Sequence[Sequence[int]]) -> Bool[Tensor, "batch vocab"]:
        """Which next tokens leave a prefix that can be completed."""
        vocab = self._context.lm.vocab_size
        width = (vocab + 31) // 32 * 4
        masks, at_end = bytearray(), []
        with self._lock:
            for row in rows:
                prefix, ended = self._split(row)
                matcher = self._after(prefix)
                at_end.append(matcher is not None and matcher.is_accepting())
                mask = None if matcher is None or ended else self._mask(prefix, matcher)
                masks += bytes(width) if mask is None else mask[:width]
        bits = np.unpackbits(np.frombuffer(masks, np.uint8), bitorder="little")
        allowed = torch.from_numpy(bits).reshape(len(rows), width * 8)[:, :vocab].bool()
        # The mask has EOS also where llguidance knows of nothing else.
        allowed[:, self._ends] = False
        allowed[:, self._absorbing] = torch.tensor(at_end, dtype=torch.bool).unsqueeze(1)
        return allowed

    def are_complete(self, rows: Sequence[Sequence[int]]) -> list[bool]:
        """Whether each row is a whole text."""
        with self._lock:
            matchers = [self._after(self._split(row)[0]) for row in rows]
            return [matcher is not None and matcher.is_accepting() for matcher in matchers]

    def _split(self, row: Sequence[int]) -> tuple[tuple[int, ...], bool]:
        """The tokens before an absorbing EOS, and whether there is one."""
        length = next((at for at, token in enumerate(row) if token in self._absorbing), len(row))
        return tuple(row[:length]), length < len(row)

    def _after(self, prefix: tuple[int, ...]) -> Any:
        """The matcher after a prefix; None where no text begins with it."""
        length = len(prefix)
        while prefix[:length] not in self._known:
            length -= 1
        matcher = self._known[prefix[:length]]
        for at in range(length, len(prefix)):
            if matcher is not None:
                matcher = self._fork(matcher, prefix[at])
            self._known[prefix[: at + 1]] = matcher
        if len(self._known) > MOST_PREFIXES:
            for old in list(islice(self._known, 1, len(self._known) - MOST_PREFIXES // 2)):
                del self._known[old]
        return matcher

    def _fork(self, matcher: Any, token: int) -> Any:
        if token in self._ends or matcher.validate_tokens([token]) != 1:
            self._check(matcher)
            return None
        matcher = matcher.deep_copy()
        matcher.consume_token(token)
        self._check(matcher)
        return matcher

    def _mask(self, prefix: tuple[int, ...], matcher: Any) -> bytes | None:
        mask = matcher.compute_bitmask()
        if matcher.get_error().startswith("NoExtensionBias"):  # No token can follow, EOS included.
            self._known[prefix] = None
            return None
        self._check(matcher)
        return mask

    def _check(self, matcher: Any) -> None:
        if matcher.is_error():
            raise PotentialError(
                f"{self._name} cannot be followed: {_first_part(matcher.get_error())}. "
                "A simpler language may do."
            )


_TOKENIZERS: WeakKeyDictionary[LanguageModel, Any] = WeakKeyDictionary()


def _tokenizer_of(context: Context) -> Any:
    """What each token of a model writes, as llguidance reads it; made once for each model."""
    lm = context.lm
    if isinstance(lm, TabularLM) and lm.separator and not len(context.prompt_tokens):
        raise UnsupportedModelError(
            f"After an empty prompt the first token has no {lm.separator!r} before it and others "
            "have: give a prompt, so that all tokens write the same text everywhere."
        )
    if lm not in _TOKENIZERS:
        _TOKENIZERS[lm] = _made_tokenizer(lm)
    return _TOKENIZERS[lm]


def _made_tokenizer(lm: LanguageModel) -> Any:
    if isinstance(lm, TabularLM):
        return _library().LLTokenizer(_library().TokenizerWrapper(_Table(lm)), slices=[])
    try:
        tokenizer: Any = lm.tokenizer  # type: ignore[attr-defined]
        fast = tokenizer.is_fast
    except AttributeError:
        fast = False
    if not fast:
        raise UnsupportedModelError(
            "A grammar needs to know what each token writes: give a model with a fast tokenizer of "
            f"transformers, or a TabularLM; got {quoted(lm)}."
        )
    hf = import_extra("llguidance.hf", "grammar", "A grammar")
    try:
        return hf.from_tokenizer(tokenizer, n_vocab=max(lm.vocab_size, len(tokenizer)))
    except ValueError as error:
        raise UnsupportedModelError(
            "A grammar needs a tokenizer whose tokens write the same text everywhere, as "
            f"byte-level ones do, and that of {quoted(lm)} is none: {error}."
        ) from error


class _Table:
    """A ``TabularLM``'s vocabulary as llguidance reads it; without EOS there is one more token."""

    bos_token_id = None

    def __init__(self, lm: TabularLM) -> None:
        texts = [(lm.separator + symbol).encode() for symbol in lm.symbols]
        self.eos_token_id = len(texts) if lm.eos_token_id is None else lm.eos_token_id
        self.tokens = [*texts, b""] if lm.eos_token_id is None else texts
        self.tokens[self.eos_token_id] = b"<eos>"
        self.special_token_ids = [self.eos_token_id]

    def __call__(self, text: bytes) -> list[int]:
        """No tokens: nothing is ever forced."""
        return []


def _library() -> Any:
    return import_extra("llguidance", "grammar", "A JSON schema, grammar or full match")


def _first_part(message: str) -> str:
    """What a message of llguidance says, without its excerpt of the grammar and its state."""
    for sign in ("\n   1 | ", "\n<state>", "\n<backtrace>", "\n<grammar>", "; no error message"):
        message = message.partition(sign)[0]
    return message.strip().rstrip(".")


def _title(schema: Any) -> str:
    """A schema's title, or the names of its properties."""
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError):
            return _short(schema)
    if not isinstance(schema, Mapping):
        return _short(str(schema))
    names = schema.get("properties")
    named = ", ".join(names) if isinstance(names, Mapping) and names else json.dumps(dict(schema))
    return _short(str(schema.get("title") or named))


def _short(text: str) -> str:
    """A text on one line, cut where it is long."""
    return shortened(" ".join(text.split()), _SHOWN)
