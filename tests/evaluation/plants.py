"""Twists with one planted defect each, made of a good twist; and toys on which they are planted."""

from dataclasses import dataclass

import torch
from smc.toys import TablePhi

import tsmc_widgets as tw
from tsmc_widgets.twists.protocol import BaseTwist, TwistStep, as_twist, prefill_twist


@dataclass(frozen=True)
class Carry:
    inner: object
    begun: torch.Tensor
    table: torch.Tensor

    def select(self, rows):
        inner = None if self.inner is None else self.inner.select(rows)
        return Carry(inner, self.begun[rows], self.table[rows])


class Changed(BaseTwist):
    """A twist whose answers ``change(log_psi_next, begun, before)`` alters.

    ``begun`` are the tokens after the prompt, ``before`` the last answer at the last of them.
    """

    def __init__(self, target, twist, change):
        self.target, self.twist, self.change = target, as_twist(twist), change
        self.is_conditional = self.twist.is_conditional

    def prefill(self, tokens, lm_step, observed=None):
        begun = tokens[:, len(self.target.prompt_tokens) :]
        step = prefill_twist(self.twist, tokens, lm_step, observed)
        before = torch.zeros(len(tokens), dtype=torch.float64)
        if begun.shape[1]:
            # The answer before the last token, from the start.
            lm_before = self.target.lm.prefill(tokens[:, :-1])
            table = prefill_twist(self.twist, tokens[:, :-1], lm_before, observed).log_psi_next
            before = table.double().gather(1, tokens[:, -1:]).squeeze(1)
        return self._made(step, begun, before)

    def advance(self, tokens, carry, lm_step):
        step = self.twist.advance(tokens, carry.inner, lm_step)
        before = carry.table.double().gather(1, tokens.unsqueeze(1)).squeeze(1)
        return self._made(step, torch.cat([carry.begun, tokens.unsqueeze(1)], 1), before)

    def _made(self, step, begun, before):
        table = step.log_psi_next[:]
        changed = self.change(table.double(), begun, before)
        return TwistStep(changed, Carry(step.carry, begun, table))

    def log_psi(self, tokens, prompt_length):
        columns = []
        for t in range(prompt_length, tokens.shape[1]):
            step = self.prefill(tokens[:, :t], self.target.lm.prefill(tokens[:, :t]))
            columns.append(step.log_psi_next.gather(1, tokens[:, t : t + 1]))
        return torch.cat(columns, dim=1)


def scrambled(begun, seed=0):
    """A number in [-1, 1] for each prefix, without any order."""
    total = torch.zeros(len(begun), dtype=torch.float64)
    for t in range(begun.shape[1]):
        total = total * 1.7 + (begun[:, t].double() + seed + 1.3) * (t + 2.1)
    return torch.sin(total * 37.7)


def flipped(log_psi, begun, before):
    return torch.where(torch.isneginf(log_psi), log_psi, -log_psi)


def constant(log_psi, begun, before):
    return torch.zeros_like(log_psi)


def powered(power):
    return lambda log_psi, begun, before: power * log_psi


def saturated(low, high):
    return lambda log_psi, begun, before: log_psi.clamp(low, high)


def late(log_psi, begun, before):
    """The value of the prefix before: one step behind."""
    return before.unsqueeze(1).expand_as(log_psi)


def prefix_function(scale=3.0):
    return lambda log_psi, begun, before: log_psi + scale * scrambled(begun).unsqueeze(1)


def one_token(token, gain):
    def change(log_psi, begun, before):
        log_psi = log_psi.clone()
        log_psi[:, token] += gain
        return log_psi

    return change


def constant_after(t):
    """Right until step t, constant after it."""
    return lambda log_psi, begun, before: (
        log_psi if begun.shape[1] < t else torch.zeros_like(log_psi)
    )


def wrong_after(t):
    """Right until step t; after it noise of the same spread."""

    def change(log_psi, begun, before):
        if begun.shape[1] < t:
            return log_psi
        vocab = torch.arange(log_psi.shape[1]).double()
        return 1.5 * torch.sin(71.3 * (scrambled(begun).unsqueeze(1) + 1.7 * vocab) * (vocab + 1.1))

    return change


def random_toy(prompt=(0,), *, seed=3, vocab=3, num_steps=5, scale=1.5, temperature=1.0):
    """A model whose every prefix has its own distribution, and a phi of every sequence."""
    generator = torch.Generator().manual_seed(seed + 100)
    table = scale * torch.randn(*(vocab,) * num_steps, generator=generator, dtype=torch.float64)
    lm = tw.TabularLM.random(vocab, num_steps + 1, seed=seed, concentration=0.8)
    if temperature != 1:
        lm = tw.Tempered(lm, temperature=temperature)
    return tw.Target(lm, TablePhi(table), prompt=list(prompt), num_steps=num_steps)


def counting_toy(prompt=(0,), *, worth=(0.8, -0.6, 0.0, -1.0), seed=8, temperature=1.0):
    """Four symbols, each worth something at each step; the last one ends the text."""
    lm = tw.TabularLM.random(4, 7, seed=seed, concentration=0.8)
    values = torch.tensor(worth, dtype=torch.float64)
    if temperature != 1:
        lm = tw.Tempered(lm, temperature=temperature)
    phi = tw.TokenFunction(lambda tokens: values[tokens].sum(1))
    return tw.Target(lm, phi, prompt=list(prompt), num_steps=6)
