"""Twists that learn: samples on record, losses, positives and the training loop."""

from tsmc_widgets.learning.objectives import (
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
from tsmc_widgets.learning.samples import Samples, Scored, score

__all__ = [
    "Samples",
    "Scored",
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
