"""Learning of twists: recorded samples, losses, positives and the training loop."""

from tsmc_widgets.learning.conditional import (
    ConditionalPositives,
    JointPositives,
    RetainedPositives,
)
from tsmc_widgets.learning.objectives import (
    METHODS,
    AdaptiveKL,
    FixedKL,
    PPOSettings,
    advantages_and_returns,
    cd_loss,
    ctl_loss,
    dpg_loss,
    fudge_loss,
    nvi_loss,
    ppo_loss,
    rl_loss,
    sixo_loss,
)
from tsmc_widgets.learning.positives import (
    ExactPool,
    Positives,
    ReplayedPositives,
    WeightedPositives,
)
from tsmc_widgets.learning.rates import ConstantRate, FallingRate
from tsmc_widgets.learning.samples import Samples, Scored, score
from tsmc_widgets.learning.trainer import TwistTrainer, Update

__all__ = [
    "METHODS",
    "AdaptiveKL",
    "ConditionalPositives",
    "ConstantRate",
    "ExactPool",
    "FallingRate",
    "FixedKL",
    "JointPositives",
    "PPOSettings",
    "Positives",
    "ReplayedPositives",
    "RetainedPositives",
    "Samples",
    "Scored",
    "TwistTrainer",
    "Update",
    "WeightedPositives",
    "advantages_and_returns",
    "cd_loss",
    "ctl_loss",
    "dpg_loss",
    "fudge_loss",
    "nvi_loss",
    "ppo_loss",
    "rl_loss",
    "score",
    "sixo_loss",
]
