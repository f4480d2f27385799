"""A twist with a parameter for every prefix, and everything about its targets enumerated."""

import torch
from smc.toys import table_target
from torch import nn

from tsmc_widgets.learning.samples import Samples, score
from tsmc_widgets.smc.exact import EnumeratedOracle


class ParameterTable(nn.Module):
    """Log psi_t(s_{1:t}) as parameters: V**t for each t."""

    def __init__(self, vocab, steps, *, seed=None, link="log"):
        super().__init__()
        self.vocab, self.link = vocab, link
        generator = torch.Generator().manual_seed(seed or 0)
        scale = 0.0 if seed is None else 0.5
        self.tables = nn.ParameterList(
            scale * torch.randn(vocab**t, generator=generator, dtype=torch.float64)
            for t in range(1, steps + 1)
        )

    def log_psi_next(self, tokens, prompt_length, base=None, observed=None):
        raw = []
        index = torch.zeros_like(tokens[:, 0])
        for t, table in enumerate(self.tables):
            raw.append(table.reshape(-1, self.vocab)[index])
            index = index * self.vocab + tokens[:, prompt_length + t]
        raw = torch.stack(raw, dim=1)
        return raw if self.link == "log" else nn.functional.logsigmoid(raw)


def prefix_index(tokens, t):
    """Place of each sequence's first t + 1 tokens among all of three."""
    return tokens[:, : t + 1] @ (3 ** torch.arange(t, -1, -1))


class Everything:
    """All sequences of a small target, with exact weights."""

    def __init__(self, target):
        self.target = target
        self.oracle = EnumeratedOracle(target)
        self.tokens = self.oracle.tokens
        self.steps = target.num_steps
        self.log_z = self.oracle.log_z
        length = len(target.prompt_tokens)
        whole = torch.cat([target.prompt_tokens.expand(len(self.tokens), -1), self.tokens], 1)
        self.log_psi_star = self.oracle.optimal_twist().log_psi(whole, length).double()

    def samples(self):
        """Each sequence once; weighted for sigma. Prefix weights come out exact.

        Without an EOS each prefix stands in equally many sequences, so log q = 0 is uniform.
        """
        count = len(self.tokens)
        return Samples(
            tokens=self.tokens,
            log_q=torch.zeros(count, self.steps, dtype=torch.float64),
            log_weights=self.oracle.log_sigma,
            log_phi=self.oracle.log_phi,
            group=torch.zeros(count, dtype=torch.int64),
        )

    def scored(self, twist):
        return score(self.target, twist, self.samples())

    def drawn(self, log_q, size, generator):
        """Independent texts of q, whose log q of each token of all sequences is given."""
        whole = log_q.sum(1)
        rows = torch.multinomial(whole.exp(), size, replacement=True, generator=generator)
        return Samples(
            tokens=self.tokens[rows],
            log_q=log_q[rows],
            log_weights=(self.oracle.log_p + self.oracle.log_phi - whole)[rows],
            log_phi=self.oracle.log_phi[rows],
            group=torch.zeros_like(rows),
        )

    def optimal_table(self):
        """psi*_t of every prefix, as parameters."""
        twist = ParameterTable(3, self.steps)
        for t, table in enumerate(twist.tables):
            table.data[prefix_index(self.tokens, t)] = self.log_psi_star[:, t]
        return twist


def full_target(seed=21):
    return Everything(table_target(3, 3, seed=seed))


def unit_target():
    """A toy with phi <= 1, rejection possible."""
    target = table_target(3, 3, seed=21)
    table = target.potential.log_table
    table -= table.max() + 0.1
    target.potential.log_phi_max = 0.0
    return target


def flat_gradient(twist, loss):
    return torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(twist.parameters()))])


def descend(twist, gradient_of, steps=2000, rate=0.3):
    """Follow a gradient that is no derivative of one function (moving targets), with Adam."""
    optimiser = torch.optim.Adam(twist.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimiser, gamma=0.001 ** (1 / steps))
    for _ in range(steps):
        optimiser.zero_grad()
        gradient_of().backward()
        optimiser.step()
        schedule.step()
