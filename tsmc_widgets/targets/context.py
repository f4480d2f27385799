"""The least a potential is, and what it may know of the target that it joins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tsmc_widgets.errors import NoTokenizerError
from tsmc_widgets.models.protocol import LanguageModel, readable
from tsmc_widgets.targets.checked import log_phi_checked, show_text, show_tokens
from tsmc_widgets.targets.ending import Ending
from tsmc_widgets.targets.sampling import base_samples


@dataclass(frozen=True, slots=True)
class Context:
    """What a potential may need to know of the target that it joins.

    Attributes:
        lm: the base model; gives text from tokens and tokens from text.
        prompt_tokens: s_0.
        num_steps: T.
        ending: where texts end before step T; None where T is fixed.
    """

    lm: LanguageModel
    prompt_tokens: Int[Tensor, " length"]
    num_steps: int
    ending: Ending | None = None

    @property
    def eos_token_id(self) -> int | None:
        """The token that fills the places after a text's end; None where T is fixed."""
        return None if self.ending is None else self.ending.fill

    def draw(
        self, n: int, generator: torch.Generator, *, extra_steps: int = 0
    ) -> Int[Tensor, "n steps"]:
        """Draw ``n`` sequences of T (and ``extra_steps``) tokens from p0."""
        return base_samples(
            self.lm,
            self.prompt_tokens,
            self.num_steps + extra_steps,
            n,
            generator=generator,
            ending=self.ending,
        )

    def full_texts(self, tokens: Int[Tensor, "batch steps"]) -> list[str]:
        """Prompt and generated tokens as one text for each row."""
        prompt = self.prompt_tokens.to(tokens.device).expand(tokens.shape[0], -1)
        return self.lm.decode(torch.cat([prompt, tokens], dim=1))

    def texts(self, tokens: Int[Tensor, "batch steps"]) -> list[str]:
        """The generated part of each full text, with the space before its first word if any."""
        prompt = self.lm.decode(self.prompt_tokens.unsqueeze(0))[0]
        texts = []
        for row, text in zip(tokens, self.full_texts(tokens), strict=True):
            # A prompt may end within a character that the first generated token completes.
            whole = text.startswith(prompt)
            texts.append(text[len(prompt) :] if whole else self.lm.decode(row.unsqueeze(0))[0])
        return texts

    def labels(self, tokens: Int[Tensor, "batch steps"]) -> list[str]:
        """``texts``, or ids such as ``#12 #7`` where the model has no tokenizer."""
        try:
            return self.texts(tokens)
        except NoTokenizerError:
            return readable(self.lm, tokens)

    def show_row(self, row: Int[Tensor, " steps"]) -> str:
        """A row of tokens as error messages quote it."""
        try:
            return show_text(self.full_texts(row.unsqueeze(0))[0])
        except NoTokenizerError:
            return show_tokens(row)


@runtime_checkable
class SupportsLogPhi(Protocol):
    """The least a potential is: one method. Everything else is optional, see ``Potential``."""

    def log_phi(self, tokens: Int[Tensor, "batch steps"]) -> Float[Tensor, " batch"]:
        """Log phi(s_{1:T}) in nats; -inf is allowed, NaN and +inf are not.

        ``tokens`` are the T generated tokens without the prompt; after an absorbing EOS every
        token is EOS.
        """
        ...


def part_log_phi(
    part: SupportsLogPhi,
    tokens: Int[Tensor, "batch steps"],
    context: Context | None,
    *,
    name: str | None = None,
) -> Float[Tensor, " batch"]:
    """Log phi of one part of a larger potential, so that errors name the part and the text."""
    return log_phi_checked(
        part.log_phi,
        tokens,
        name=part.describe() if name is None else name,
        show_row=show_tokens if context is None else context.show_row,
    )


def bracketed(description: str) -> str:
    """A description ready to stand before ^ or behind a weight."""
    one_term = description.startswith(("p(", "exp(", "(")) and description.endswith(")")
    return description if one_term or " " not in description else f"({description})"
