"""Small targets on which everything is known."""

import torch

import tsmc_widgets as tw
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


def z_score(values, expected):
    """How many standard errors the mean of values lies from what is expected."""
    return float((values.mean() - expected) / (values.std() / values.shape[0] ** 0.5))
