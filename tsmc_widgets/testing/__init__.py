"""Contract checks for what a user plugs in: each raises AssertionError and says what is broken."""

from tsmc_widgets.testing.language_model_checks import check_language_model
from tsmc_widgets.testing.sampler_checks import (
    check_potential,
    check_proposal,
    check_resampler,
    check_twist,
)

__all__ = [
    "check_language_model",
    "check_potential",
    "check_proposal",
    "check_resampler",
    "check_twist",
]
