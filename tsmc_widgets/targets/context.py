"""p0 of a target, which a potential may know: draws, log p0 and texts; the least a potential is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from tsmc_widgets.errors import ModelOutputError, NoTokenizerError
from tsmc_widgets.models.protocol import LanguageModel, LMStep, ReservingCarry, readable
from tsmc_widgets.models.tempered import Tempered
from tsmc_widgets.targets.checked import check_answer, log_phi_checked, show_text, show_tokens
from tsmc_widgets.targets.ending import Ending

PIECE = 2**25
"""Tables of log-probabilities have at most about so many numbers at a time."""
CACHED = 2**31
"""KV caches of the texts that are drawn at a time take at most about so many bytes."""


@dataclass(frozen=True, slots=True)
class Context:
    """What a potential may need to know of the target that it joins: p0 without any power.

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
        num_steps, prompt = self.num_steps + extra_steps, self.prompt_tokens
        # The prompt is read once.
        with torch.no_grad():
            start = self.lm.prefill(prompt.unsqueeze(0))
        rows = PIECE // self.lm.vocab_size
        if isinstance(start.carry, ReservingCarry):
            cache = start.carry.most_bytes(1, len(prompt) + num_steps - 1)
            rows = min(rows, int(CACHED // max(1, cache)))
        rows = max(1, rows)
        pieces = [prompt.new_empty((0, num_steps))]
        for done in range(0, n, rows):
            # Every text stands on row 0 of the carry.
            begun = prompt.new_zeros(min(rows, n - done), 0)
            row = prompt.new_zeros(len(begun))
            pieces.append(_go_on(self, start, row, begun, num_steps, generator))
        return torch.cat(pieces)

    def log_p(
        self, tokens: Int[Tensor, "batch steps"], start: int = 0
    ) -> Float64[Tensor, " batch"]:
        """Log p0 of the tokens from ``start`` on, given those before, in nats, without gradients.

        After an end p0 puts mass 1 on the ending's ``fill``.
        """
        device, length = self.lm.device, len(self.prompt_tokens)
        prompt = self.prompt_tokens.to(tokens.device).expand(len(tokens), -1)
        whole = torch.cat([prompt, tokens], dim=1)
        totals = [torch.zeros(0, dtype=torch.float64, device=tokens.device)]
        rows = max(1, PIECE // (whole.shape[1] * self.lm.vocab_size))
        with torch.no_grad():
            for piece in whole.split(rows) if len(whole) else ():
                log_p = self.lm.log_prob(piece.to(device), length + start)
                log_p, piece = log_p.double().to(tokens.device), piece[:, length:]
                if len(bad := log_p.isnan().nonzero()):
                    row, at = bad[0].tolist()
                    before = show_tokens(piece[row, : start + at])
                    raise ModelOutputError(f"The base model gave NaN for the token after {before}.")
                if self.ending is not None:
                    ended = self.ending.after(piece)[:, start:].to(log_p.device)
                    again = piece[:, start:] == self.ending.fill
                    log_p = torch.where(ended, torch.where(again, 0.0, -torch.inf), log_p)
                totals.append(log_p.sum(-1))
        return torch.cat(totals)

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


def powered_samples(
    target: Any, n: int, *, generator: torch.Generator
) -> tuple[Int[Tensor, "n num_steps"], Float64[Tensor, " n"]]:
    """Draws from q, and log p0(s)**power / q(s) of each; q is p0 with the power at each token."""
    q = _powered(target)
    tokens = q.draw(n, generator)
    return tokens, _log_ratio(target, q, tokens, 0)


def finished(
    target: Any, begun: Int[Tensor, "n t"], copies: int, *, generator: torch.Generator
) -> tuple[Int[Tensor, "n copies num_steps"], Float64[Tensor, "n copies"]]:
    """Sequences that p0 ends each of some living prefixes with, ``copies`` of each in one batch.

    With a power of p0 they are draws from q, which has the power at each token, and the second
    tensor is log p0(rest)**power / q(rest); else it is 0.
    """
    q, done = _powered(target), begun.shape[1]
    each, pieces = max(1, PIECE // (q.lm.vocab_size * copies)), []
    for part in begun.split(each):
        with torch.no_grad():
            prompt = q.prompt_tokens.expand(len(part), -1)
            step = q.lm.prefill(torch.cat([prompt, part], dim=1))
        rows = torch.arange(len(part), device=q.lm.device).repeat_interleave(copies)
        ends = _go_on(q, step, rows, part[rows], q.num_steps - done, generator)
        pieces.append(torch.cat([part[rows], ends], dim=1))
    tokens = torch.cat(pieces)
    log_ratio = _log_ratio(target, q, tokens, done)
    return tokens.reshape(len(begun), copies, -1), log_ratio.reshape(len(begun), copies)


def _powered(target: Any) -> Context:
    """p0 with the target's power at each token."""
    if target.power == 1:
        return target.context
    return replace(target.context, lm=Tempered(target.lm, temperature=1 / target.power))


def _log_ratio(target: Any, q: Context, tokens: Tensor, start: int) -> Float64[Tensor, " n"]:
    if target.power == 1:
        return torch.zeros(len(tokens), dtype=torch.float64, device=tokens.device)
    return target.power * target.context.log_p(tokens, start) - q.log_p(tokens, start)


def draw(probs: Float64[Tensor, "batch n"], generator: torch.Generator) -> Int[Tensor, " batch"]:
    """One index for each row, with the row's probabilities."""
    return torch.multinomial(probs, 1, generator=generator).squeeze(-1)


def _go_on(
    context: Context,
    step: LMStep,
    rows: Int[Tensor, " count"],
    begun: Int[Tensor, "count t"],
    num_steps: int,
    generator: torch.Generator,
) -> Int[Tensor, "count num_steps"]:
    """Go on from what each text has ``begun`` with, of which ``rows`` of the step are the answers.

    The rows of a step of one row, which is not copied, are all 0.
    """
    ending, device, count = context.ending, step.log_probs.device, len(begun)
    fill = 0 if ending is None else ending.fill
    tokens = torch.full((count, num_steps), fill, dtype=torch.int64, device=device)
    live = torch.arange(count, device=device)
    one = step.log_probs.shape[0] == 1
    log_probs = step.log_probs.expand(count, -1) if one else step.log_probs[rows]
    with torch.no_grad():
        for t in range(num_steps):
            after = partial(_so_far, begun, tokens, live, t)
            check_answer(log_probs, "The base model", after, show_tokens)
            chosen = draw(log_probs.double().exp(), generator)
            tokens[live, t] = chosen
            if ending is not None:
                going = ~ending.ends(_so_far(begun, tokens, live, t + 1))
                live, chosen, rows = live[going], chosen[going], rows[going]
            if t + 1 == num_steps or not len(live):
                break
            step = context.lm.advance(chosen, step.carry.select(rows))
            log_probs, rows = step.log_probs[:], torch.arange(len(live), device=device)
    return tokens


def _so_far(begun: Tensor, tokens: Tensor, live: Tensor, t: int) -> Int[Tensor, "live length"]:
    return torch.cat([begun[live], tokens[live, :t]], dim=1)


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
    part: Any,
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
