"""Trainings on a toy: what the tests of the trainer share."""

import torch
from learning.tables import Everything, unit_target
from smc.toys import chain

import tsmc_widgets as tw
from tsmc_widgets.learning.positives import ExactPool, ReplayedPositives, WeightedPositives
from tsmc_widgets.learning.trainer import TwistTrainer
from tsmc_widgets.twists import TableHeadTwist


def make_trainer(method="ctl", *, target=None, seed=0, **options):
    target = unit_target() if target is None else target
    options = {"batch_size": 64, "learning_rate": 0.05, **options}
    return TwistTrainer(target, fresh(target, method), method=method, seed=seed, **options)


def rare(length):
    """Nothing but c after a, which p0 seldom writes."""
    pattern = tw.MatchesRegex(f"c{{{length}}}")
    return tw.Target(chain(), pattern, prompt="a", num_steps=length)


def shifted(constant, *, bounded=True):
    """The toy with another constant in log phi; its bound is moved too, or stays where it was."""
    target = unit_target()
    target.potential.log_table += constant
    target.potential.log_phi_max = constant if bounded else 0.0
    return target


def fresh(target, method="rl"):
    return TableHeadTwist(
        target.lm,
        num_steps=target.num_steps,
        prompt_length=len(target.prompt_tokens),
        link="sigmoid" if method == "fudge" else "log",
    )


def sources(target):
    tokens = Everything(target).oracle.sample(40, 5)
    return {
        "replayed": ReplayedPositives(target, start=64, keep=3),
        "one batch": WeightedPositives(),
        "exact": ExactPool(tokens, target.log_phi(tokens)),
    }


def trained(target, method, source="replayed", updates=8):
    positives = sources(target)[source]
    trainer = make_trainer(method, target=target, batch_size=24, positives=positives)
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
