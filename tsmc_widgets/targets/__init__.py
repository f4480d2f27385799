"""Targets sigma proportional to p0 phi: potentials, their algebra, and the Target."""

from tsmc_widgets.targets.automata import TokenAutomaton
from tsmc_widgets.targets.classifier import (
    ClassConditional,
    ClassProbability,
    RewardThreshold,
    TemperedReward,
)
from tsmc_widgets.targets.context import Context, SupportsLogPhi
from tsmc_widgets.targets.exact_samples import (
    ExactSamples,
    JointSamples,
    joint_samples,
    rejection_samples,
)
from tsmc_widgets.targets.functions import TextFunction, TokenFunction
from tsmc_widgets.targets.grammar import FullMatch, Grammar, JSONSchema
from tsmc_widgets.targets.protocol import (
    ConditionalPotential,
    Constant,
    Mixture,
    Potential,
    Power,
    Product,
    as_potential,
)
from tsmc_widgets.targets.target import Target
from tsmc_widgets.targets.text import TextPotential
from tsmc_widgets.targets.tokens import (
    AvoidsToken,
    ContainsToken,
    Continuation,
    CountToken,
    Infilling,
    Length,
)
from tsmc_widgets.targets.words import AvoidsWord, ContainsWord, MatchesRegex

__all__ = [
    "AvoidsToken",
    "AvoidsWord",
    "ClassConditional",
    "ClassProbability",
    "ConditionalPotential",
    "Constant",
    "ContainsToken",
    "ContainsWord",
    "Context",
    "Continuation",
    "CountToken",
    "ExactSamples",
    "FullMatch",
    "Grammar",
    "Infilling",
    "JSONSchema",
    "JointSamples",
    "Length",
    "MatchesRegex",
    "Mixture",
    "Potential",
    "Power",
    "Product",
    "RewardThreshold",
    "SupportsLogPhi",
    "Target",
    "TemperedReward",
    "TextFunction",
    "TextPotential",
    "TokenAutomaton",
    "TokenFunction",
    "as_potential",
    "joint_samples",
    "rejection_samples",
]
