"""Plain samples of p0, and log p0 of given tokens, in pieces that fit the memory."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from tsmc_widgets.errors import ModelOutputError
from tsmc_widgets.models.protocol import LanguageModel, LMStep, ReservingCarry
from tsmc_widgets.models.tempered import Tempered
from tsmc_widgets.targets.checked import check_answer, show_tokens
from tsmc_widgets.targets.ending import Ending

PIECE = 2**25
"""Tables of log-probabilities have at most about so many numbers at a time."""
CACHED = 2**31
"""KV caches of the texts that are drawn at a time take at most about so many bytes."""


def base_samples(
    lm: LanguageModel,
    prompt_tokens: Int[Tensor, " length"],
    num_steps: int,
    n: int,
    *,
    generator: torch.Generator,
    ending: Ending | None = None,
) -> Int[Tensor, "n num_steps"]:
    """Draw ``n`` texts of ``num_steps`` tokens from p0, or of fewer where they end before."""
    # The prompt is read once.
    with torch.no_grad():
        start = lm.prefill(prompt_tokens.unsqueeze(0))
    rows = PIECE // lm.vocab_size
    if isinstance(start.carry, ReservingCarry):
        cache = start.carry.most_bytes(1, len(prompt_tokens) + num_steps - 1)
        rows = min(rows, int(CACHED // max(1, cache)))
    rows = max(1, rows)
    pieces = [prompt_tokens.new_empty((0, num_steps))]
    for done in range(0, n, rows):
        # Every text stands on row 0 of the carry.
        begun = prompt_tokens.new_zeros(min(rows, n - done), 0)
        pieces.append(_sample_piece(lm, start, begun, num_steps, generator, ending))
    return torch.cat(pieces)


def log_p_suffix(
    lm: LanguageModel,
    tokens: Int[Tensor, "batch length"],
    start: int,
    *,
    prompt_length: int,
    ending: Ending | None = None,
) -> Float64[Tensor, " batch"]:
    """Log p0 of the tokens from ``start`` on, given those before, in nats and without gradients.

    Args:
        lm: the model.
        tokens: prompts and what follows.
        start: the first position that counts.
        prompt_length: what stands before this position ends nothing.
        ending: after an end p0 puts mass 1 on its ``fill``; None if nothing is absorbing.
    """
    device = lm.device
    totals = [torch.zeros(0, dtype=torch.float64, device=tokens.device)]
    rows = max(1, PIECE // (tokens.shape[1] * lm.vocab_size))
    with torch.no_grad():
        for piece in tokens.split(rows) if len(tokens) else ():
            log_p = lm.log_prob(piece.to(device), start).double().to(tokens.device)
            if len(bad := log_p.isnan().nonzero()):
                row, at = bad[0].tolist()
                before = show_tokens(piece[row, prompt_length : start + at])
                raise ModelOutputError(f"The base model gave NaN for the token after {before}.")
            if ending is not None:
                ended = ending.after(piece[:, prompt_length:])[:, start - prompt_length :]
                ended, again = ended.to(log_p.device), piece[:, start:] == ending.fill
                log_p = torch.where(ended, torch.where(again, 0.0, -torch.inf), log_p)
            totals.append(log_p.sum(-1))
    return torch.cat(totals)


def powered_samples(
    lm: LanguageModel,
    prompt_tokens: Int[Tensor, " length"],
    num_steps: int,
    n: int,
    *,
    power: float | int,
    generator: torch.Generator,
    ending: Ending | None = None,
) -> tuple[Int[Tensor, "n num_steps"], Float64[Tensor, " n"]]:
    """Draws from q, and log p0(s)**power / q(s) of each; q is p0 with the power at each token."""
    where = {"generator": generator, "ending": ending}
    if power == 1:
        tokens = base_samples(lm, prompt_tokens, num_steps, n, **where)
        return tokens, torch.zeros(n, dtype=torch.float64, device=tokens.device)
    q = Tempered(lm, temperature=1 / power)
    tokens, length = base_samples(q, prompt_tokens, num_steps, n, **where), len(prompt_tokens)
    whole = torch.cat([prompt_tokens.expand(n, -1), tokens], dim=1)
    log_p, log_q = (
        log_p_suffix(model, whole, length, prompt_length=length, ending=ending) for model in (lm, q)
    )
    return tokens, power * log_p - log_q


def finished(
    target: Any,
    begun: Int[Tensor, "n t"],
    copies: int,
    *,
    generator: torch.Generator,
) -> tuple[Int[Tensor, "n copies num_steps"], Float64[Tensor, "n copies"]]:
    """Sequences that p0 ends each of some living prefixes with, ``copies`` of each in one batch.

    With a power of p0 they are draws from q, which has the power at each token, and the second
    tensor is log p0(rest)**power / q(rest); else it is 0.
    """
    lm, prompt, ending = target.lm, target.prompt_tokens, target.ending
    q = lm if target.power == 1 else Tempered(lm, temperature=1 / target.power)
    left = target.num_steps - begun.shape[1]
    each, pieces = max(1, PIECE // (lm.vocab_size * copies)), []
    for part in begun.split(each):
        with torch.no_grad():
            step = q.prefill(torch.cat([prompt.expand(len(part), -1), part], dim=1))
        rows = torch.arange(len(part), device=lm.device).repeat_interleave(copies)
        ends = _sample_piece(q, step, part[rows], left, generator, ending, rows=rows)
        pieces.append(torch.cat([part[rows], ends], dim=1))
    tokens = torch.cat(pieces)
    log_ratio = torch.zeros(len(tokens), dtype=torch.float64, device=lm.device)
    if target.power != 1:
        whole, length = torch.cat([prompt.expand(len(tokens), -1), tokens], dim=1), len(prompt)
        log_p, log_q = (
            log_p_suffix(model, whole, length + begun.shape[1], prompt_length=length, ending=ending)
            for model in (lm, q)
        )
        log_ratio = target.power * log_p - log_q
    return tokens.reshape(len(begun), copies, -1), log_ratio.reshape(len(begun), copies)


def draw(probs: Float64[Tensor, "batch n"], generator: torch.Generator) -> Int[Tensor, " batch"]:
    """One index for each row, with the row's probabilities."""
    return torch.multinomial(probs, 1, generator=generator).squeeze(-1)


def _so_far(begun: Tensor, tokens: Tensor, live: Tensor, t: int) -> Int[Tensor, "live length"]:
    return torch.cat([begun[live], tokens[live, :t]], dim=1)


def _sample_piece(
    lm: LanguageModel,
    step: LMStep,
    begun: Int[Tensor, "count t"],
    num_steps: int,
    generator: torch.Generator,
    ending: Ending | None,
    rows: Int[Tensor, " count"] | None = None,
) -> Int[Tensor, "count num_steps"]:
    """Go on from what each text has ``begun`` with, of which ``rows`` of the step are the answers.

    Without ``rows`` every text stands on row 0 of the carry.
    """
    device, count = step.log_probs.device, len(begun)
    fill = 0 if ending is None else ending.fill
    tokens = torch.full((count, num_steps), fill, dtype=torch.int64, device=device)
    live = torch.arange(count, device=device)
    with torch.no_grad():
        if rows is None:
            rows, log_probs = torch.zeros_like(live), step.log_probs.expand(count, -1)
        else:
            log_probs = step.log_probs[rows]
        for t in range(num_steps):
            check_answer(
                log_probs, "The base model", partial(_so_far, begun, tokens, live, t), show_tokens
            )
            chosen = draw(log_probs.double().exp(), generator)
            tokens[live, t] = chosen
            if ending is not None:
                going = ~ending.ends(_so_far(begun, tokens, live, t + 1))
                live, chosen, rows = live[going], chosen[going], rows[going]
            if t + 1 == num_steps or not len(live):
                break
            step = lm.advance(chosen, step.carry.select(rows))
            log_probs, rows = step.log_probs[:], torch.arange(len(live), device=device)
    return tokens
