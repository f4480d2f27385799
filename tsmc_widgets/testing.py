"""Contract checks for what a user plugs in: each raises AssertionError and says what is broken."""

from tsmc_widgets.models.contract import check_language_model
from tsmc_widgets.smc.contract import check_proposal, check_resampler
from tsmc_widgets.targets.contract import check_potential
from tsmc_widgets.twists.contract import check_twist

__all__ = [
    "check_language_model",
    "check_potential",
    "check_proposal",
    "check_resampler",
    "check_twist",
]
