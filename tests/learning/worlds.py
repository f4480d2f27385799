"""A target that waits for an observation, with every pair (o, s) and its exact weight."""

import torch
from smc.observed import ConditionalTables, every, infilling

from tsmc_widgets.learning.samples import Samples, score
from tsmc_widgets.smc.exact import EnumeratedOracle


class EveryPair:
    """All texts under each of the three observations, a group for each."""

    def __init__(self):
        self.target = infilling()
        self.steps = self.target.num_steps
        self.observed = every(1)
        oracles = [EnumeratedOracle(self.target.condition(o)) for o in self.observed]
        self.tokens = oracles[0].tokens
        self.log_z = torch.tensor([oracle.log_z for oracle in oracles], dtype=torch.float64)
        self.log_sigma = torch.stack([oracle.log_sigma for oracle in oracles])
        self.log_phi = torch.stack([oracle.log_phi for oracle in oracles])
        best = ConditionalTables.optimal(self.target)
        self.log_psi_star = self.scored(best).log_psi.detach()

    def samples(self, observations=(0, 1, 2)):
        """Each text once for each observation; log q = 0 is uniform, so prefixes weigh exactly."""
        count, texts = len(observations), len(self.tokens)
        chosen = torch.tensor(observations)
        return Samples(
            tokens=self.tokens.repeat(count, 1),
            log_q=torch.zeros(count * texts, self.steps, dtype=torch.float64),
            log_weights=self.log_sigma[chosen].reshape(-1),
            log_phi=self.log_phi[chosen].reshape(-1),
            group=torch.arange(count).repeat_interleave(texts),
            observed=self.observed[chosen].repeat_interleave(texts, dim=0),
        )

    def scored(self, twist, observations=(0, 1, 2)):
        return score(self.target, twist, self.samples(observations))

    def expected(self, twist, loss):
        """A loss of one observation's texts, over o as it is drawn with s."""
        return sum(self.log_z[o].exp() * loss(self.scored(twist, (o,))) for o in range(3))

    def divergence(self, twist):
        """KL(sigma(.|o) || q(.|o)), over o as it is drawn."""
        log_q = self.scored(twist).log_q_psi.detach().sum(1).reshape(3, -1)
        inner = (self.log_sigma.exp() * (self.log_sigma - log_q)).sum(1)
        return float((self.log_z.exp() * inner).sum())
