"""How a spec samples: what weighs, what proposes, and when to resample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tsmc_widgets.evaluation.spec import RunSpec
from tsmc_widgets.smc.proposals import Base, Proposal, TwistInduced
from tsmc_widgets.smc.resampling import ESSBelow, ResampleRule, resolve_rule


@dataclass(frozen=True, slots=True)
class Way:
    """How to sample: a twist that weighs, a proposal, and when to resample.

    Attributes:
        twist: None where psi = 1, or where the twist can only propose.
        proposal: q.
        rules: when to resample.
    """

    twist: Any
    proposal: Proposal
    rules: tuple[ResampleRule, ...]

    @classmethod
    def of(cls, spec: RunSpec, twist: Any) -> Way:
        """The spec's way with a twist."""
        rules = tuple(
            ESSBelow(spec.ess_threshold) if rule == "ess" else resolve_rule(rule, None)
            for rule in spec.rule
        )
        proposes = twist is not None and spec.proposal != "base"
        if getattr(twist, "proposal_only", False):
            # Its psi is known up to a function of the prefix, so that it can not weigh.
            proposal = TwistInduced(twist) if proposes else Base()
            return cls(None, proposal, (resolve_rule("never", None),))
        return cls(twist, TwistInduced() if proposes else Base(), rules)
