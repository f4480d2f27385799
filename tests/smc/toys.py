"""Small targets on which everything is known."""

from dataclasses import fields

import torch

import tsmc_widgets as tw
from tsmc_widgets.smc.replay import ReplaySession
from tsmc_widgets.targets import Potential


class TablePhi(Potential):
    """Log phi of every sequence, from a table of V**T entries."""

    def __init__(self, log_table):
        self.log_table = log_table

    def log_phi(self, tokens):
        vocab = self.log_table.shape[0]
        index = torch.zeros(tokens.shape[0], dtype=torch.int64)
        for t in range(tokens.shape[1]):
            index = index * vocab + tokens[:, t]
        return self.log_table.reshape(-1)[index]


def table_target(vocab, num_steps, *, seed, zeros=0.0):
    """Explicit random p0 and an asymmetric random phi, a fraction of it zero."""
    generator = torch.Generator().manual_seed(seed)
    log_phi = 1.5 * torch.randn(*(vocab,) * num_steps, generator=generator, dtype=torch.float64)
    forbidden = torch.rand(log_phi.shape, generator=generator) < zeros
    log_phi[forbidden] = -torch.inf
    lm = tw.TabularLM.random(vocab, num_steps, seed=seed)
    return tw.Target(lm, TablePhi(log_phi), prompt="", num_steps=num_steps)


def chain(*, eos=None):
    """A Markov chain over a, b, c."""
    return tw.TabularLM.markov(
        [0.7, 0.2, 0.1],
        [[0.7, 0.2, 0.1], [0.5, 0.4, 0.1], [0.1, 0.3, 0.6]],
        symbols="abc",
        eos=eos,
    )


def eos_target(num_steps=4, *, potential=None):
    """Texts that end at c, with a potential that looks at the whole text."""
    worth = torch.tensor([-0.4, 0.7, 0.9], dtype=torch.float64)
    weigh = tw.TokenFunction(
        lambda tokens: (worth[tokens] * (1 + torch.arange(tokens.shape[1]))).sum(-1)
    )
    return tw.Target(
        chain(eos="c"), potential or weigh, prompt="ab", num_steps=num_steps, eos="absorb"
    )


def differing_columns(a, b):
    """Names of the columns that are not the same to the byte in two traces."""
    return [
        f.name
        for f in fields(a.columns)
        if not torch.equal(getattr(a.columns, f.name), getattr(b.columns, f.name))
    ]


def differing(a, b):
    """Names of everything in which two traces differ: columns to the byte, tables, info, texts."""
    found = differing_columns(a, b)
    for name in ("rows", "tokens", "log_p", "log_q", "log_psi"):
        pairs = zip(a.tables, b.tables, strict=True)
        if not all(torch.equal(getattr(x, name), getattr(y, name)) for x, y in pairs):
            found.append(f"tables.{name}")
    if a.info != b.info:
        found.append("info")
    if [list(texts) for texts in a.final_texts] != [list(texts) for texts in b.final_texts]:
        found.append("final_texts")
    return found


def counted_reads(monkeypatch, lm):
    """Rows of each call of ``advance`` from now on, filled in as the model is asked."""
    read, advance = [], type(lm).advance
    monkeypatch.setattr(
        type(lm),
        "advance",
        lambda lm, tokens, carry: (read.append(len(tokens)), advance(lm, tokens, carry))[1],
    )
    return read


def reweight(recording, target, config):
    """The trace that a fresh run of the target would give, from the record of another."""
    session = ReplaySession(target, config, recording)
    session.reweight()
    return session.trace


def z_score(values, expected):
    """How many standard errors the mean of values lies from what is expected."""
    return float((values.mean() - expected) / (values.std() / values.shape[0] ** 0.5))
