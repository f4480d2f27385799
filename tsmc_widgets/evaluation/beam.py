"""Beam search: the texts of largest p0 phi that a narrow search finds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from tsmc_widgets.smc.prefixes import Distinct, PrefixSteps, advance_steps, prefill_steps
from tsmc_widgets.smc.proposals import Base
from tsmc_widgets.targets.target import Target

SPARE = 4
"""At T, phi is computed on so many times the beam's width, where phi offers no more at once."""


@dataclass(frozen=True, slots=True)
class BeamTexts:
    """What a beam search found, best first, all texts distinct.

    Attributes:
        tokens: the texts.
        log_p: log p0 of each, in nats.
        log_phi: log phi of each, in nats.
        forward_tokens: tokens that the base model read.
    """

    tokens: Int[Tensor, "n steps"]
    log_p: Float64[Tensor, " n"]
    log_phi: Float64[Tensor, " n"]
    forward_tokens: int


@torch.no_grad()
def beam_texts(target: Target, width: int, twist: Any = None) -> BeamTexts:
    """Keep ``width`` prefixes by p0 psi_t (by p0 without a twist), and texts by p0 phi at T.

    A text that has ended keeps its place by p0 phi. Texts of phi = 0 are left out.
    """
    beam = _Beam(target, width, twist)
    for t in range(1, target.num_steps):
        beam.extend(t)
    return beam.finish()


class _Beam:
    """Prefixes so far, the steps of those that go on, and texts that have ended."""

    def __init__(self, target: Target, width: int, twist: Any) -> None:
        self.target, self.width, self.twist = target, width, twist
        device = target.prompt_tokens.device
        self.tokens = torch.zeros(1, 0, dtype=torch.int64, device=device)
        self.log_p = torch.zeros(1, dtype=torch.float64)
        self.ended: list[tuple[Tensor, Tensor, Tensor]] = []
        self.steps: PrefixSteps = prefill_steps(target, Base(), twist, self.tokens, most_rows=width)
        self.read = len(target.prompt_tokens)

    def extend(self, t: int) -> None:
        """Choose the prefixes of length t and read their last tokens."""
        if not len(self.tokens):
            return
        log_p, score = self._next()
        if self.target.absorbs_eos:
            self._end(log_p, t)
            log_p[:, self.target.eos_token_id] = -math.inf
            score[:, self.target.eos_token_id] = -math.inf
        rows, tokens = self._best(score, self.width)
        self._follow(rows, tokens, log_p)
        if not len(rows):
            return
        device = self.tokens.device
        pairs = Distinct(
            parents=rows.to(device),
            tokens=tokens.to(device),
            first=torch.arange(len(rows), device=device),
            inverse=torch.arange(len(rows), device=device),
        )
        self.steps = advance_steps(self.target, Base(), self.twist, self.steps, pairs, self.tokens)
        self.read += len(rows)

    def finish(self) -> BeamTexts:
        """Choose the texts."""
        if len(self.tokens):
            log_p, score = self._next()
            offer = self.target.log_phi_next
            if offer is not None:
                score = log_p + offer(self.tokens).cpu()
            rows, tokens = self._best(score, self.width * (1 if offer is not None else SPARE))
            self._follow(rows, tokens, log_p)
            self.ended.append((self.tokens, self.log_p, self.target.log_phi(self.tokens).cpu()))
        texts, log_p, log_phi = (torch.cat(parts) for parts in zip(*self.ended, strict=True))
        total = log_p + log_phi
        best = total.argsort(descending=True, stable=True)[: self.width]
        best = best[total[best] > -math.inf]
        return BeamTexts(texts[best.to(texts.device)], log_p[best], log_phi[best], self.read)

    def _next(self) -> tuple[Float64[Tensor, "n vocab"], Float64[Tensor, "n vocab"]]:
        """Log p0 of every continuation, and what it is chosen by."""
        log_p = self.log_p.unsqueeze(1) + self.steps.lm.log_probs.double().cpu()
        if self.twist is None:
            return log_p, log_p.clone()
        return log_p, log_p + self.steps.twist.log_psi_next.double().cpu()

    def _best(
        self, score: Float64[Tensor, "n vocab"], count: int
    ) -> tuple[Int[Tensor, " k"], Int[Tensor, " k"]]:
        flat = score.reshape(-1)
        best = flat.topk(min(count, len(flat))).indices
        alive: Bool[Tensor, " k"] = flat[best] > -math.inf
        best = best[alive].sort().values
        return best // score.shape[1], best % score.shape[1]

    def _follow(self, rows: Tensor, tokens: Tensor, log_p: Float64[Tensor, "n vocab"]) -> None:
        device = self.tokens.device
        begun = self.tokens[rows.to(device)]
        self.tokens = torch.cat([begun, tokens.unsqueeze(1).to(device)], dim=1)
        self.log_p = log_p[rows, tokens]

    def _end(self, log_p: Float64[Tensor, "n vocab"], t: int) -> None:
        """Put aside the texts that end here."""
        eos = self.target.eos_token_id
        chance = log_p[:, eos].clone()
        possible = (chance > -math.inf).nonzero().squeeze(1)
        begun = self.tokens[possible.to(self.tokens.device)]
        padding = self.target.num_steps - t + 1
        texts = torch.nn.functional.pad(begun, (0, padding), value=eos)
        if len(texts):
            self.ended.append((texts, chance[possible], self.target.log_phi(texts).cpu()))
