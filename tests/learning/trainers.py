"""Trainings on a toy: what the tests of the trainer share."""

import torch
from learning.tables import Everything, unit_target

from tsmc_widgets.learning.objectives import link_for
from tsmc_widgets.learning.positives import ExactPool, ReplayedPositives, WeightedPositives
from tsmc_widgets.learning.trainer import TwistTrainer
from tsmc_widgets.twists import TableHeadTwist


def make_trainer(method="ctl", *, target=None, seed=0, **options):
    target = unit_target() if target is None else target
    link = "sigmoid" if method == "fudge" else "log"
    twist = TableHeadTwist(target.lm, num_steps=target.num_steps, link=link)
    options = {"batch_size": 64, "learning_rate": 0.05, **options}
    return TwistTrainer(target, twist, method=method, seed=seed, **options)


def shifted(constant, *, bounded=True):
    """The toy with another constant in log phi; its bound is moved too, or stays where it was."""
    target = unit_target()
    target.potential.log_table += constant
    target.potential.log_phi_max = constant if bounded else 0.0
    return target


def fresh(target, method="rl"):
    return TableHeadTwist(target.lm, num_steps=target.num_steps, link=link_for(method))


def sources(target):
    tokens = Everything(target).oracle.sample(40, 5)
    return {
        "replayed": ReplayedPositives(target, start=64, keep=3),
        "one batch": WeightedPositives(),
        "exact": ExactPool(tokens, target.log_phi(tokens)),
    }


def trained(target, method, source="replayed", updates=8):
    trainer = TwistTrainer(
        target,
        fresh(target, method),
        method=method,
        batch_size=24,
        learning_rate=0.05,
        positives=sources(target)[source],
    )
    list(trainer.updates(updates))
    return trainer


def parameters(trainer):
    return torch.cat([p.detach().reshape(-1) for p in trainer._modules.parameters()])


def resumed(make, path, first, more, *, into=None):
    """Train without a break, and again with a file after the first updates: to the same bytes.

    Returns the trainings; ``into`` makes the one that reads the file, if ``make`` does not.
    """
    whole, part, rest = make(), make(), (into or make)()
    list(whole.updates(first + more))
    list(part.updates(first))
    rest.load(part.save(path))
    assert rest.history == part.history
    list(rest.updates(more))
    assert torch.equal(parameters(rest), parameters(whole))
    return whole, rest


def divergence(target, twist):
    """KL(sigma || q) of the twist-induced proposal, by enumeration."""
    world = Everything(target)
    log_q = world.scored(twist).log_q_psi.detach().sum(1)
    log_sigma = world.oracle.log_sigma
    return float((log_sigma.exp() * (log_sigma - log_q)).sum())
