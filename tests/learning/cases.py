"""Trainings that one process or several can do, by name."""

from learning.tables import unit_target
from learning.trainers import make_trainer, rare
from smc.observed import ConditionalTables, infilling

from tsmc_widgets.learning import TwistTrainer
from tsmc_widgets.learning.positives import ReplayedPositives, WeightedPositives


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
        return make_trainer(
            target=rare(4), batch_size=12, positives=WeightedPositives(), accelerator=accelerator
        )
    target, positives = unit_target(), None
    if kind == "replayed":
        # A buffer that is used at every update, and short enough to drop batches.
        kind, positives = "ctl", ReplayedPositives(target, keep=2, start=64, on_policy_ess=2.0)
    return make_trainer(
        kind, target=target, positives=positives, batch_size=32, accelerator=accelerator
    )
