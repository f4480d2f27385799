"""Targets sigma proportional to p0 phi: potentials, their algebra, and the Target."""

from tsmc_widgets.targets.automata import TokenAutomaton
from tsmc_widgets.targets.protocol import (
    Constant,
    Context,
    Potential,
    Power,
    Product,
    SupportsLogPhi,
    as_potential,
)
from tsmc_widgets.targets.target import Target
from tsmc_widgets.targets.tokens import AvoidsToken, ContainsToken, CountToken, Length

__all__ = [
    "AvoidsToken",
    "Constant",
    "ContainsToken",
    "Context",
    "CountToken",
    "Length",
    "Potential",
    "Power",
    "Product",
    "SupportsLogPhi",
    "Target",
    "TokenAutomaton",
    "as_potential",
]
