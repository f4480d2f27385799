"""Plain samples of p0, and log p0 of given tokens, in pieces that fit the memory."""

from __future__ import annotations

from functools import partial

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
    counts = [min(rows, n - done) for done in range(0, n, rows)]
    pieces = [_sample_piece(lm, start, num_steps, count, generator, ending) for count in counts]
    return torch.cat([prompt_tokens.new_empty((0, num_steps)), *pieces])


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


def draw(probs: Float64[Tensor, "batch n"], generator: torch.Generator) -> Int[Tensor, " batch"]:
    """One index for each row, with the row's probabilities."""
    return torch.multinomial(probs, 1, generator=generator).squeeze(-1)


def _so_far(tokens: Tensor, live: Tensor, t: int) -> Int[Tensor, "live t"]:
    return tokens[live, :t]


def _sample_piece(
    lm: LanguageModel,
    step: LMStep,
    num_steps: int,
    count: int,
    generator: torch.Generator,
    ending: Ending | None,
) -> Int[Tensor, "count num_steps"]:
    device = step.log_probs.device
    fill = 0 if ending is None else ending.fill
    tokens = torch.full((count, num_steps), fill, dtype=torch.int64, device=device)
    live = torch.arange(count, device=device)
    with torch.no_grad():
        log_probs = step.log_probs.expand(count, -1)
        # At first every text stands on row 0 of the carry.
        rows = torch.zeros_like(live)
        for t in range(num_steps):
            check_answer(
                log_probs, "The base model", partial(_so_far, tokens, live, t), show_tokens
            )
            chosen = draw(log_probs.double().exp(), generator)
            tokens[live, t] = chosen
            if ending is not None:
                going = ~ending.ends(tokens[live, : t + 1])
                live, chosen, rows = live[going], chosen[going], rows[going]
            if t + 1 == num_steps or not len(live):
                break
            step = lm.advance(chosen, step.carry.select(rows))
            log_probs, rows = step.log_probs, torch.arange(len(live), device=device)
    return tokens
