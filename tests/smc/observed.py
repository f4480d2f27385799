"""An enumerable target that waits for an observation, and a conditional twist of tables."""

import itertools
from dataclasses import dataclass

import torch
from torch import nn

import tsmc_widgets as tw
from tsmc_widgets.smc.exact import EnumeratedOracle
from tsmc_widgets.twists.protocol import TwistStep
from tsmc_widgets.twists.trainable import TrainableModule

VOCAB = 3


def infilling(steps=3, width=1, *, seed=5):
    """p(o | s) for the ``width`` tokens that follow ``steps``, under an explicit random p0."""
    lm = tw.TabularLM.random(VOCAB, steps + width, seed=seed)
    return tw.Target(lm, tw.Infilling(num_tokens=width), prompt="", num_steps=steps)


def every(width):
    """All rows of so many tokens."""
    return torch.tensor(list(itertools.product(range(VOCAB), repeat=width)))


def number(tokens):
    """Each row of tokens as one number."""
    return tokens @ (VOCAB ** torch.arange(tokens.shape[1] - 1, -1, -1))


@dataclass(frozen=True)
class TableCarry:
    t: int
    o: torch.Tensor
    prefix: torch.Tensor

    def select(self, rows):
        return TableCarry(self.t, self.o[rows], self.prefix[rows])


class ConditionalTables(TrainableModule):
    """Log psi_t(s_{1:t}, o) as parameters: (V**width, V**t) for each t."""

    is_conditional = True

    def __init__(self, steps=3, width=1, *, seed=None, link="log", scale=0.5):
        super().__init__(tw.TabularLM.random(VOCAB, 1, seed=0), link)
        self.width = width
        generator = torch.Generator().manual_seed(seed or 0)
        scale = 0.0 if seed is None else scale
        self.tables = nn.ParameterList(
            scale * torch.randn(VOCAB**width, VOCAB**t, generator=generator, dtype=torch.float64)
            for t in range(1, steps + 1)
        )

    @classmethod
    def optimal(cls, target):
        """psi*_t of each observation, by enumeration."""
        width = target.potential.num_tokens
        twist = cls(target.num_steps, width)
        for o in every(width):
            best = EnumeratedOracle(target.condition(o)).optimal_twist()
            for t, table in enumerate(twist.tables, start=1):
                rows = every(t)
                table.data[number(o.unsqueeze(0))[0], number(rows)] = best.log_psi(rows, 0)[:, -1]
        return twist

    def read(self, carry):
        table = self.tables[carry.t]
        return self._linked(table.reshape(len(table), -1, VOCAB)[carry.o, carry.prefix])

    def _last_layer(self):
        return list(self.tables)

    @torch.no_grad()
    def prefill(self, tokens, lm_step, observed):
        carry = TableCarry(tokens.shape[1], number(observed), number(tokens))
        return TwistStep(self.read(carry), carry)

    @torch.no_grad()
    def advance(self, tokens, carry, lm_step):
        carry = TableCarry(carry.t + 1, carry.o, carry.prefix * VOCAB + tokens)
        return TwistStep(self.read(carry), carry)

    def log_psi_next(self, tokens, prompt_length, base=None, observed=None):
        steps = range(prompt_length, tokens.shape[1])
        o = number(observed)
        return torch.stack(
            [self.read(TableCarry(t, o, number(tokens[:, :t]))) for t in steps], dim=1
        )

    def condition(self, observed):
        return UnderOne(self, torch.as_tensor(observed).reshape(1, -1))


class UnderOne:
    """The tables of one observation."""

    def __init__(self, twist, observed):
        self.twist, self.observed, self.advance = twist, observed, twist.advance

    def prefill(self, tokens, lm_step):
        return self.twist.prefill(tokens, lm_step, self.observed.expand(len(tokens), -1))

    def log_psi(self, tokens, prompt_length):
        return self.twist.log_psi(
            tokens, prompt_length, observed=self.observed.expand(len(tokens), -1)
        )
