"""Proposals and divergences by enumeration, written without the package's samplers."""

import math

import torch

import tsmc_widgets as tw


def log_q_of_all(target, oracle, log_psi):
    """Log q of every sequence for q proportional to p0 psi; ``log_psi`` (sequences, T)."""
    tokens = oracle.tokens
    steps = target.lm.log_prob(
        torch.cat([target.prompt_tokens.expand(len(tokens), -1), tokens], 1),
        len(target.prompt_tokens),
    ).double()
    ended = torch.zeros(len(tokens), dtype=torch.bool)
    total = torch.zeros(len(tokens), dtype=torch.float64)
    for t in range(tokens.shape[1]):
        joint = steps[:, t] + log_psi[:, t]
        # A leading column of zeros makes a family of the empty prefix, too.
        begun = torch.nn.functional.pad(tokens[:, :t], (1, 0))
        _, family = torch.unique(begun, dim=0, return_inverse=True)
        log_q = torch.zeros_like(total)
        for parent in family.unique():
            members = (family == parent).nonzero().squeeze(1)
            last, place = torch.unique(tokens[members, t], return_inverse=True)
            first = torch.stack([members[place == i][0] for i in range(len(last))])
            log_q[members] = joint[members] - torch.logsumexp(joint[first], 0)
        total += torch.where(ended, 0.0, log_q)
        if target.absorbs_eos:
            ended |= tokens[:, t] == target.eos_token_id
    return total


def divergences(oracle, log_q):
    """KL(q||sigma) and KL(sigma||q) by their definitions."""
    q, sigma = log_q.exp(), oracle.log_sigma.exp()
    forward = torch.where(q > 0, q * (log_q - oracle.log_sigma), 0.0).sum()
    backward = torch.where(sigma > 0, sigma * (oracle.log_sigma - log_q), 0.0).sum()
    return float(forward), float(backward)


def twist_psi(target, oracle, twist):
    """A twist's log psi along every sequence."""
    prompt = target.prompt_tokens.expand(len(oracle.tokens), -1)
    return twist.log_psi(torch.cat([prompt, oracle.tokens], 1), prompt.shape[1]).detach().double()


def near(value, truth, error):
    """Whether an estimate lies within 4.5 standard errors."""
    return math.isfinite(value) and abs(value - truth) < 4.5 * error


def other_model(vocab, steps, seed=77):
    """Another language model over the same tokens."""
    return tw.TabularLM.random(vocab, steps, seed=seed)
