"""Small models and classifiers whose every number can be written down."""

import itertools

import torch

from tsmc_widgets.models.tabular import TabularLM

INITIAL = [0.5, 0.3, 0.2]
TRANSITION = [[0.1, 0.2, 0.7], [0.3, 0.3, 0.4], [0.5, 0.25, 0.25]]


def letters(eos=None):
    """A chain over a, b, c written without spaces."""
    return TabularLM.markov(INITIAL, TRANSITION, symbols="abc", eos=eos)


def words(symbols=("cat", "Cat.", "art"), eos=None):
    """A chain over words with spaces between them."""
    return TabularLM.markov(INITIAL, TRANSITION, symbols=list(symbols), separator=" ", eos=eos)


def every(vocab_size, num_steps):
    """All rows of tokens."""
    return torch.tensor(list(itertools.product(range(vocab_size), repeat=num_steps)))


def log_phi_by_hand(target, tokens, holds):
    """0 or -inf for each row, by a Python function of its list of ids."""
    return torch.tensor([0.0 if holds(row) else -torch.inf for row in tokens.tolist()]).double()


class Stars:
    """Three classes; counts the texts that it reads."""

    labels = ("1 star", "2 stars", "3 stars")

    def __init__(self):
        self.read = []

    def logits(self, texts):
        self.read += texts
        return torch.tensor([[len(t) % 3, t.count("a"), 0.5] for t in texts]).float()


class Tone:
    """A scalar logit, high for polite texts, as the paper's toxicity model."""

    labels = ("LABEL_0",)

    def logits(self, texts):
        return torch.tensor([[1.0 + t.count("a") - 1.5 * t.count("c")] for t in texts])


class ThreeTones:
    """Three classes that tell texts of a tiny transformers model apart."""

    labels = ("low", "middle", "high")

    def logits(self, texts):
        return 0.5 * torch.tensor([[text.count("a"), 2.0, text.count("o")] for text in texts])
