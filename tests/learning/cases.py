"""Trainings that one process or several can do, by name."""

from learning.tables import unit_target
from smc.observed import ConditionalTables, infilling
from smc.toys import chain

import tsmc_widgets as tw
from tsmc_widgets.learning import TwistTrainer
from tsmc_widgets.learning.positives import ReplayedPositives, WeightedPositives
from tsmc_widgets.twists import TableHeadTwist


def make_case(kind, *, accelerator=None, processes=1):
    """A trainer; ``processes`` is how many times as much one process does."""
    if kind == "conditional":
        return TwistTrainer(
            infilling(),
            ConditionalTables(seed=2),
            batch_size=24 * processes,
            observations=6 * processes,
            learning_rate=0.05,
            accelerator=accelerator,
        )
    if kind == "rare":
        target = tw.Target(chain(), tw.MatchesRegex("c{4}"), prompt="a", num_steps=4)
        twist = TableHeadTwist(target.lm, num_steps=4, prompt_length=1)
        return TwistTrainer(
            target,
            twist,
            batch_size=12,
            positives=WeightedPositives(),
            learning_rate=0.05,
            accelerator=accelerator,
            seed=0,
        )
    target = unit_target()
    replayed = kind == "replayed"
    # A buffer that is used at every update, and short enough to drop batches.
    buffer = ReplayedPositives(target, keep=2, start=64, on_policy_ess=2.0)
    return TwistTrainer(
        target,
        TableHeadTwist(target.lm, num_steps=3),
        method="ctl" if replayed else kind,
        positives=buffer if replayed else None,
        batch_size=32,
        learning_rate=0.05,
        accelerator=accelerator,
    )
