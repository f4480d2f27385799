"""A spec as one run that can be stepped and looked at, in place of measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tsmc_widgets.evaluation.inline import observation_of
from tsmc_widgets.evaluation.resources import fresh_target, twist_of
from tsmc_widgets.evaluation.spec import TEXT_METHODS, RunSpec
from tsmc_widgets.evaluation.ways import Way
from tsmc_widgets.smc.api import start_smc
from tsmc_widgets.smc.replay import Recording, ReplaySession
from tsmc_widgets.targets.target import Target

_MOST_TWISTS = 4
_DEAF = ("saved", "shipped")
"""Methods whose twist is what it is whatever phi: it can serve one run after another."""


@dataclass(slots=True)
class Shelf:
    """Twists that do not depend on phi, kept for the runs to come."""

    _twists: dict[tuple, Any] = field(default_factory=dict)

    def twist(self, spec: RunSpec, target: Target) -> Any:
        """The spec's twist: the very object of an earlier run where it would be equal."""
        if spec.method not in _DEAF:
            return twist_of(spec, target, None)
        key = (spec.method, spec.twist, spec.twist_sha256, spec.twist_power, id(target.lm),
               str(observation_of(spec.problem, target.lm)))  # fmt: skip
        if key not in self._twists:
            while len(self._twists) >= _MOST_TWISTS:
                self._twists.pop(next(iter(self._twists)))
            self._twists[key] = twist_of(spec, target, None)
        return self._twists[key]


def start_spec(
    spec: RunSpec,
    *,
    top_k: int = 0,
    shelf: Shelf | None = None,
    recording: Recording | None = None,
) -> ReplaySession:
    """Prepare the runs of a spec, all in one batch, with its first K and its first rule.

    Dead runs are kept: their log Z_hat is -inf.

    Args:
        spec: what to sample and how; its twist is loaded or computed, not trained.
        top_k: next tokens to record.
        shelf: where twists are kept between runs.
        recording: the run before, which is weighed anew where that gives the same trace.

    Raises:
        ValueError: the spec has no single run: its method learns, or gives texts alone.
    """
    if spec.learns or spec.method in TEXT_METHODS:
        raise ValueError(
            f"method {spec.method!r} is no single run with weights: train its twist first and "
            "take method 'saved', or measure the spec with tw.execute."
        )
    target = fresh_target(spec)
    if target.is_conditional:
        raise ValueError(
            f"{target.potential.describe()} waits for an observation: give the problem in place, "
            'with "observed" beside the kind of its potential.'
        )
    way = Way.of(spec, (shelf or Shelf()).twist(spec, target))
    session = start_smc(
        target,
        num_particles=spec.num_particles[0],
        num_runs=spec.num_runs,
        twist=way.twist,
        proposal=way.proposal,
        resampler=spec.resampler,
        rule=way.rules[0],
        seed=spec.seed,
        top_k=top_k,
        dead_runs="keep",
    )
    return ReplaySession(target, session.config, recording)
