"""Twists psi_t: estimates of the expected potential of a prefix's continuations."""

from tsmc_widgets.twists.bodies import (
    BodyTwist,
    ConditionalBodyTwist,
    ConditionalHeadTwist,
    ConditionedTwist,
    LinearHeadTwist,
    LoRATwist,
    MLPHeadTwist,
)
from tsmc_widgets.twists.forms import default_twist
from tsmc_widgets.twists.lookahead import LookAheadTwist, PowerRamp, TemperedTwist
from tsmc_widgets.twists.protocol import TrainableTwist, Twist, TwistStep
from tsmc_widgets.twists.storage import load_twist, save_twist, shipped_twists
from tsmc_widgets.twists.tied import TiedHeadTwist
from tsmc_widgets.twists.trainable import TableHeadTwist, TableTwist

__all__ = [
    "BodyTwist",
    "ConditionalBodyTwist",
    "ConditionalHeadTwist",
    "ConditionedTwist",
    "LinearHeadTwist",
    "LoRATwist",
    "LookAheadTwist",
    "MLPHeadTwist",
    "PowerRamp",
    "TableHeadTwist",
    "TableTwist",
    "TemperedTwist",
    "TiedHeadTwist",
    "TrainableTwist",
    "Twist",
    "TwistStep",
    "default_twist",
    "load_twist",
    "save_twist",
    "shipped_twists",
]
