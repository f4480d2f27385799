"""Potentials p0(o | s): what should follow the generated tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, SupportsIndex

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tsmc_widgets.errors import ContextLengthError, check_integer
from tsmc_widgets.models.protocol import readable
from tsmc_widgets.targets.context import Context
from tsmc_widgets.targets.notation import in_quotes
from tsmc_widgets.targets.protocol import BoundOnly, ConditionalPotential
from tsmc_widgets.targets.tokens import TokenPattern, check_pattern, quote, token_ids


class Continuation(BoundOnly):
    """Phi = p0(o | prompt, s): how well a given text o follows what is generated.

    Args:
        observed: o as text (with the space before its first word, if the model wants one), or as
            a list of token ids or token texts.
    """

    log_phi_max = 0.0

    def __init__(self, observed: TokenPattern) -> None:
        self.observed = check_pattern(observed)

    def bind(self, context: Context) -> Continuation:
        """Look the tokens up in the model's vocabulary."""
        bound = super().bind(context)
        bound._ids = token_ids(self.observed, context.lm)
        check_room(context, len(bound._ids))
        return bound

    @property
    def token_ids(self) -> tuple[int, ...]:
        """O as ids of the model's tokens."""
        return self.context and self._ids

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
            shown = f'"{readable(self._context.lm, torch.tensor([self._ids]))[0]}"'
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

    def bind(self, context: Context) -> Infilling:
        """The model's context must hold prompt, T tokens and o."""
        check_room(context, self.num_tokens)
        return super().bind(context)

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
