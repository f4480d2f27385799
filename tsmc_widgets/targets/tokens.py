"""Potentials that look at tokens: contains, avoids, count, length, and what follows, p0(o | s)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, SupportsIndex

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tsmc_widgets.errors import (
    ContextLengthError,
    UnknownTokenError,
    check_integer,
    quoted,
    whole_number,
)
from tsmc_widgets.models.protocol import LanguageModel, eos_ids, readable
from tsmc_widgets.targets.automata import (
    TokenAutomaton,
    combine,
    occurrence_automaton,
    pattern_automaton,
)
from tsmc_widgets.targets.context import Context
from tsmc_widgets.targets.notation import any_of, between, in_quotes
from tsmc_widgets.targets.protocol import (
    AutomatonPotential,
    BoundOnly,
    ConditionalPotential,
    log_indicator,
)

TokenPattern = str | SupportsIndex | Sequence[str | SupportsIndex]
"""A token by its text or id, or several in a row; a text of several tokens stands for them all."""


class TokenPatterns(AutomatonPotential, kind=False):
    """Potentials that ask where one of several token patterns occurs."""

    log_phi_max = 0.0

    def __init__(self, *patterns: TokenPattern) -> None:
        if not patterns:
            raise ValueError(f"{type(self).__name__} needs at least one token; got none.")
        self.patterns = tuple(check_pattern(pattern) for pattern in patterns)

    def _look_up(self) -> None:
        _ = self.token_ids

    @cached_property
    def token_ids(self) -> tuple[tuple[int, ...], ...]:
        """The patterns as ids of the model's tokens."""
        return tuple(dict.fromkeys(token_ids(p, self.context.lm) for p in self.patterns))

    def ends(self, tokens: Int[Tensor, "batch steps"]) -> Bool[Tensor, "batch steps"]:
        """Where some pattern ends."""
        found = torch.zeros_like(tokens, dtype=torch.bool)
        for pattern in self.token_ids:
            if len(pattern) <= tokens.shape[1]:
                windows = tokens.unfold(1, len(pattern), 1)
                wanted = torch.tensor(pattern, device=tokens.device)
                found[:, len(pattern) - 1 :] |= (windows == wanted).all(-1)
        return found

    def _quoted(self) -> str:
        lm = None if self._context is None else self._context.lm
        return " or ".join(quote(pattern, lm) for pattern in self.patterns)


class _TokenIndicator(TokenPatterns, kind=False):
    _wanted = True

    def log_phi(self, tokens: Int[Tensor, "batch steps"]) -> Float[Tensor, " batch"]:
        """0 where patterns occur as wanted, -inf elsewhere."""
        return log_indicator(self.ends(tokens).any(-1) == self._wanted)

    @cached_property
    def _automaton(self) -> TokenAutomaton:
        lm = self.context.lm
        return occurrence_automaton(
            self.token_ids, lm.vocab_size, wanted=self._wanted, device=lm.device
        )

    @classmethod
    def formula(cls, part: Mapping[str, Any]) -> str:
        """``log 1[token “c” in s]``, or ``log 1[no “c” in s]``."""
        return f"log 1[{'token' if cls._wanted else 'no'} {any_of(part)} in s]"

    def describe(self) -> str:
        """``contains token "c"``, or ``avoids``."""
        return f"{'contains' if self._wanted else 'avoids'} {self._quoted()}"


class ContainsToken(_TokenIndicator):
    """Phi = 1 where at least one of the tokens (or runs of tokens) is generated, else 0.

    Args:
        patterns: each a token's text or id, or a list of them that must stand in a row. A text of
            several tokens stands for all of them in a row.
    """


class AvoidsToken(_TokenIndicator):
    """Phi = 1 where none of the tokens (or runs of tokens) is generated, else 0.

    Args:
        patterns: as for ``ContainsToken``.
    """

    _wanted = False


class CountToken(TokenPatterns):
    """Phi = 1 where the tokens occur between ``at_least`` and ``at_most`` times, else 0.

    Args:
        patterns: each a token's text or id, or a list of them that must stand in a row; their
            occurrences are counted together, by the position at which one ends.
        at_least: fewest occurrences; 0 if None.
        at_most: most occurrences; no limit if None.
    """

    def __init__(
        self, *patterns: TokenPattern, at_least: int | None = None, at_most: int | None = None
    ) -> None:
        super().__init__(*patterns)
        self.at_least, self.at_most = _check_range(at_least, at_most)

    def _look_up(self) -> None:
        if (self.context.eos_token_id,) in self.token_ids:
            raise ValueError(
                "CountToken cannot count the EOS token of a target whose texts end there: "
                "Length(at_least=, at_most=) bounds the tokens before it."
            )

    def log_phi(self, tokens: Int[Tensor, "batch steps"]) -> Float[Tensor, " batch"]:
        """0 where the count is in the range, -inf elsewhere."""
        return log_in_range(self.ends(tokens).sum(-1), self.at_least, self.at_most)

    @cached_property
    def _automaton(self) -> TokenAutomaton | None:
        lm = self.context.lm
        transition, ends = pattern_automaton(self.token_ids, lm.vocab_size, device=lm.device)
        cap = _cap(self.at_least, self.at_most, self.context.num_steps)
        # State (count, finder's state); entering an end adds one, up to the cap.
        states = len(ends)
        count = torch.arange(cap + 1, device=ends.device).repeat_interleave(states)
        following = transition.repeat(cap + 1, 1)
        counted = (count.unsqueeze(-1) + ends[following].long()).clamp(max=cap)
        counter = TokenAutomaton(
            0,
            counted * states + following,
            log_in_range(count, self.at_least, self.at_most),
        )
        return combine([counter], lambda values: values[:, 0])

    @classmethod
    def formula(cls, part: Mapping[str, Any]) -> str:
        """``log 1[count of “c” ≥ 2]``."""
        return f"log 1[{between(f'count of {any_of(part)}', part)}]"

    def describe(self) -> str:
        """``2 to 3 times token "c"``."""
        return f"{_range_words(self.at_least, self.at_most, 'time')} {self._quoted()}"


class Length(AutomatonPotential):
    """Phi = 1 where the tokens before the first EOS number ``at_least`` to ``at_most``, else 0.

    Args:
        at_least: fewest tokens; 0 if None.
        at_most: most tokens; no limit if None.
    """

    log_phi_max = 0.0

    def __init__(self, *, at_least: int | None = None, at_most: int | None = None) -> None:
        self.at_least, self.at_most = _check_range(at_least, at_most)

    def _look_up(self) -> None:
        if not eos_ids(self.context.lm):
            raise ValueError(
                "Length counts the tokens before EOS, and this model has no EOS token: every text "
                f"has num_steps={self.context.num_steps} tokens. Set num_steps instead."
            )

    def log_phi(self, tokens: Int[Tensor, "batch steps"]) -> Float[Tensor, " batch"]:
        """0 where the length is in the range, -inf elsewhere."""
        ends = torch.tensor(eos_ids(self.context.lm), device=tokens.device)
        before_eos = (~torch.isin(tokens, ends)).long().cumprod(-1)
        return log_in_range(before_eos.sum(-1), self.at_least, self.at_most)

    @cached_property
    def _automaton(self) -> TokenAutomaton:
        lm = self.context.lm
        cap = _cap(self.at_least, self.at_most, self.context.num_steps)
        # States 0..cap count while the text runs, cap + 1 + n keep the length of one that ended.
        running = torch.arange(cap + 1, device=lm.device)
        transition = (running + 1).clamp(max=cap).unsqueeze(-1).repeat(2, lm.vocab_size)
        ended = running + cap + 1
        transition[: cap + 1, list(eos_ids(lm))] = ended.unsqueeze(-1)
        transition[cap + 1 :] = ended.unsqueeze(-1)
        return TokenAutomaton(
            0, transition, log_in_range(running.repeat(2), self.at_least, self.at_most)
        )

    @classmethod
    def formula(cls, part: Mapping[str, Any]) -> str:
        """``log 1[2 ≤ tokens of s ≤ 9]``."""
        return f"log 1[{between('tokens of s', part)}]"

    def describe(self) -> str:
        """``2 to 3 tokens long``."""
        return f"{_range_words(self.at_least, self.at_most, 'token')} long"


class Continuation(BoundOnly):
    """Phi = p0(o | prompt, s): how well a given text o follows what is generated.

    Args:
        observed: o as text (with the space before its first word, if the model wants one), or as
            a list of token ids or token texts.
    """

    log_phi_max = 0.0

    def __init__(self, observed: TokenPattern) -> None:
        self.observed = check_pattern(observed)

    def _look_up(self) -> None:
        check_room(self.context, len(self.token_ids))

    @cached_property
    def token_ids(self) -> tuple[int, ...]:
        """O as ids of the model's tokens."""
        return token_ids(self.observed, self.context.lm)

    def log_phi(self, tokens: Int[Tensor, "batch steps"]) -> Float[Tensor, " batch"]:
        """Log p0(o | prompt, s) in nats, teacher-forced."""
        observed = torch.tensor(self.token_ids, device=tokens.device)
        return log_p_following(self.context, tokens, observed.expand(len(tokens), -1))

    @classmethod
    def formula(cls, part: Mapping[str, Any]) -> str:
        """``log p₀(“ the end” | s)``."""
        return f"log p₀({in_quotes(part['observed'])} | s)"

    def describe(self) -> str:
        """``p(" the end" | text)``."""
        if isinstance(self.observed, str):
            shown = f'"{self.observed}"'
        elif self._context is not None:
            shown = f'"{readable(self._context.lm, torch.tensor([self.token_ids]))[0]}"'
        else:
            shown = quote(self.observed)
        return f"p({shown} | text)"


class Infilling(ConditionalPotential):
    """Phi = p0(o | prompt, s) where o, the ``num_tokens`` tokens that follow, is drawn with s.

    Args:
        num_tokens: c, the number of tokens in o.
    """

    def __init__(self, *, num_tokens: SupportsIndex) -> None:
        check_integer("num_tokens", num_tokens)
        self.num_tokens = int(num_tokens)

    @property
    def observed_size(self) -> dict[str, int]:
        """The number of tokens."""
        return {"observed_length": self.num_tokens}

    def _look_up(self) -> None:
        check_room(self.context, self.num_tokens)

    def condition(self, observed: TokenPattern | Int[Tensor, " width"]) -> Continuation:
        """The fixed continuation o: text, token ids, or a row of ``observed``."""
        if isinstance(observed, Tensor):
            observed = observed.tolist()
        fixed = Continuation(observed)
        if self._context is not None:
            fixed = fixed.bind(self._context)
            _check_width(len(fixed.token_ids), self.num_tokens)
        elif isinstance(observed, Sequence) and not isinstance(observed, str):
            _check_width(len(observed), self.num_tokens)
        return fixed

    def log_phi_given(
        self, tokens: Int[Tensor, "batch steps"], observed: Int[Tensor, "batch width"]
    ) -> Float[Tensor, " batch"]:
        """Log p0(o | prompt, s) of each row with its own o, in nats."""
        _check_width(observed.shape[1], self.num_tokens)
        return log_p_following(self.context, tokens, observed)

    def draw_joint(
        self, n: int, generator: torch.Generator
    ) -> tuple[Int[Tensor, "n steps"], Int[Tensor, "n width"]]:
        """Draw T + c tokens from p0: the first T are an exact sample for the others."""
        steps = self.context.num_steps
        drawn = self.context.draw(n, generator, extra_steps=self.num_tokens)
        return drawn[:, :steps], drawn[:, steps:]

    @classmethod
    def formula(cls, part: Mapping[str, Any]) -> str:
        """``log p₀(“ the end” | s)``."""
        observed = part.get("observed")
        what = f"next {part['num_tokens']} tokens" if observed is None else in_quotes(observed)
        return f"log p₀({what} | s)"

    def example(self, joint: Callable[[], tuple[Any, Tensor]]) -> str | list[int]:
        """Tokens that p0 drew, as text where that is read as the same tokens again."""
        lm, observed = joint()
        ids, text = observed[0].tolist(), lm.decode(observed)[0]
        for spelled in (text, f" {text}"):
            try:
                if list(lm.encode(spelled)) == ids:
                    return spelled
            except ValueError:
                continue
        return ids

    def describe(self) -> str:
        """``p(next 3 tokens | text)``."""
        plural = "" if self.num_tokens == 1 else "s"
        return f"p(next {self.num_tokens} token{plural} | text)"


def token_ids(pattern: TokenPattern, lm: LanguageModel) -> tuple[int, ...]:
    """Ids of a pattern's tokens in a model's vocabulary."""
    if isinstance(pattern, str):
        ids = tuple(lm.encode(pattern))
        if not ids:
            raise UnknownTokenError(f"The text {quoted(pattern)} has no tokens in this model.")
        return ids
    if isinstance(pattern, int):
        if not 0 <= pattern < lm.vocab_size:
            raise UnknownTokenError(
                f"Token id {pattern} is not in the vocabulary: ids are 0 to {lm.vocab_size - 1}."
            )
        return (pattern,)
    return tuple(token for part in pattern for token in token_ids(part, lm))


def log_in_range(
    counts: Int[Tensor, "*shape"], at_least: int, at_most: int | None
) -> Float[Tensor, "*shape"]:
    """0 where a count is in the range, -inf elsewhere."""
    holds = counts >= at_least
    return log_indicator(holds if at_most is None else holds & (counts <= at_most))


def check_pattern(pattern: object) -> str | int | tuple:
    """A pattern that can be hashed, or ValueError."""
    if isinstance(pattern, str) and pattern:
        return pattern
    if (token := whole_number(pattern)) is not None:
        return token
    if isinstance(pattern, list | tuple) and pattern:
        return tuple(check_pattern(part) for part in pattern)
    raise ValueError(
        "A token must be a non-empty text, an id, or a non-empty list of these; got "
        f"{quoted(pattern)}."
    )


def _check_range(at_least: int | None, at_most: int | None) -> tuple[int, int | None]:
    if at_least is None and at_most is None:
        raise ValueError("Give at_least, at_most or both; got neither.")
    for name, value in [("at_least", at_least), ("at_most", at_most)]:
        if value is not None:
            check_integer(name, value, at_least=0)
    low = 0 if at_least is None else int(at_least)
    if at_most is not None and at_most < low:
        raise ValueError(f"at_most must be at least at_least={low}; got {at_most}.")
    return low, None if at_most is None else int(at_most)


def _cap(at_least: int, at_most: int | None, num_steps: int) -> int:
    """From where on counts need not be told apart; a text has no more than all its tokens."""
    return min(num_steps + 1, at_least if at_most is None else at_most + 1)


def _range_words(at_least: int, at_most: int | None, unit: str) -> str:
    if at_most is None:
        words = f"at least {at_least}"
    elif at_least == at_most:
        words = f"exactly {at_least}"
    else:
        words = f"at most {at_most}" if at_least == 0 else f"{at_least} to {at_most}"
    last = at_least if at_most is None else at_most
    return f"{words} {unit}" if last == 1 else f"{words} {unit}s"


def quote(pattern: str | int | tuple, lm: LanguageModel | None = None) -> str:
    """A pattern as people read it, ids as text where a model is given."""
    if isinstance(pattern, str):
        return f'token "{pattern}"'
    if isinstance(pattern, int):
        return f"token {pattern}" if lm is None else f'token "{lm.token_text(pattern)}"'
    return " then ".join(quote(part, lm) for part in pattern)


def log_p_following(
    context: Context,
    tokens: Int[Tensor, "batch steps"],
    observed: Int[Tensor, "batch width"],
) -> Float[Tensor, " batch"]:
    """Log p0(o | prompt, s) of each row, in nats; after an absorbing EOS only EOS may follow."""
    log_p = context.log_p(torch.cat([tokens, observed], dim=1), tokens.shape[1])
    # Rounding in float32 must not break the bound that rejection relies on.
    return log_p.clamp(max=0.0)


def check_room(context: Context, extra: int) -> None:
    """Raise ContextLengthError unless the model can read ``extra`` tokens after the T."""
    limit = context.lm.context_length
    total = len(context.prompt_tokens) + context.num_steps + extra
    if limit is not None and total > limit:
        raise ContextLengthError(
            f"The prompt's {len(context.prompt_tokens)} tokens, num_steps={context.num_steps} and "
            f"the {extra} tokens that follow make {total}, and this model's context holds {limit}: "
            "shorten the prompt, take fewer steps or a shorter continuation."
        )


def _check_width(width: int, num_tokens: int) -> None:
    if width != num_tokens:
        raise ValueError(f"observed must have num_tokens={num_tokens} tokens; got {width}.")
