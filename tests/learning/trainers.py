"""Trainings on a toy: what the tests of the trainer share."""

import torch
from learning.tables import Everything
from smc.toys import table_target

from tsmc_widgets.learning.trainer import TwistTrainer
from tsmc_widgets.twists import TableHeadTwist


def unit_target():
    """A toy with phi <= 1, rejection possible."""
    target = table_target(3, 3, seed=21)
    table = target.potential.log_table
    table -= table.max() + 0.1
    target.potential.log_phi_max = 0.0
    return target


def make_trainer(method="ctl", *, target=None, seed=0, **options):
    target = unit_target() if target is None else target
    link = "sigmoid" if method == "fudge" else "log"
    twist = TableHeadTwist(target.lm, num_steps=target.num_steps, link=link)
    options = {"batch_size": 64, "learning_rate": 0.05, **options}
    return TwistTrainer(target, twist, method=method, seed=seed, **options)


def parameters(trainer):
    return torch.cat([p.detach().reshape(-1) for p in trainer._modules.parameters()])


def divergence(target, twist):
    """KL(sigma || q) of the twist-induced proposal, by enumeration."""
    world = Everything(target)
    log_q = world.scored(twist).log_q_psi.detach().sum(1)
    log_sigma = world.oracle.log_sigma
    return float((log_sigma.exp() * (log_sigma - log_q)).sum())
