"""Named problems described in place, so that every part of them can be changed."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from tsmc_widgets.evaluation.inline import TABLE
from tsmc_widgets.targets.classifier import ClassConditional, ClassProbability
from tsmc_widgets.targets.continuation import Infilling
from tsmc_widgets.targets.problem import Problem
from tsmc_widgets.targets.problems import load_problem
from tsmc_widgets.targets.protocol import Potential
from tsmc_widgets.targets.rewards import RewardThreshold
from tsmc_widgets.targets.tokens import ContainsToken

OBSERVED_SEED = 0
"""Of the observation that a conditional problem is shown with."""


def describe_problem(name: str) -> dict[str, Any]:
    """A named problem as a description: the same target, with its factors in the open.

    A potential that only its problem can make is the factor ``OfProblem``. What waits for an
    observation is given one: the last class, or tokens that p0 wrote.
    """
    return {**_described(name), "potential": [dict(part) for part in _described(name)["potential"]]}


@lru_cache(maxsize=64)
def _described(name: str) -> Mapping[str, Any]:
    problem = load_problem(name)
    described = {
        "name": name,
        "model": problem.model if problem.table is None else f"{TABLE}{name}",
        "prompt": problem.prompt,
        "num_steps": problem.num_steps,
        "potential": _factors(problem),
        "form": problem.form,
    }
    return described if problem.eos == "ignore" else {**described, "eos": problem.eos}


def _factors(problem: Problem) -> list[dict[str, Any]]:
    own = {"kind": "OfProblem", "problem": problem.name}
    if problem.name.startswith("paper/"):
        # Its classifier may not be here, and would take its time.
        return [own]
    phi = problem.own_potential()
    beta = getattr(phi, "beta", 1)
    factor = _factor(problem, getattr(phi, "part", phi)) or own
    return [factor if beta == 1 else {**factor, "beta": int(beta) if beta % 1 == 0 else beta}]


def _factor(problem: Problem, phi: Potential) -> dict[str, Any] | None:
    kind = {"kind": type(phi).__name__}
    if isinstance(phi, ClassProbability):
        return {**kind, "model": problem.classifier, "label": phi.label}
    if isinstance(phi, ClassConditional):
        return {**kind, "model": problem.classifier, "observed": phi.classes[-1]}
    if isinstance(phi, RewardThreshold):
        bounds = {"at_least": phi.at_least, "at_most": phi.at_most}
        finite = {name: value for name, value in bounds.items() if abs(value) < float("inf")}
        return {**kind, "reward": problem.classifier, **finite}
    if isinstance(phi, Infilling):
        return {**kind, "num_tokens": phi.num_tokens, "observed": _some_tokens(problem)}
    if isinstance(phi, ContainsToken):
        patterns = [list(p) if isinstance(p, tuple) else p for p in phi.patterns]
        return {**kind, "args": patterns}
    return None


def _some_tokens(problem: Problem) -> str | list[int]:
    """Tokens that may follow, as text where that is read as the same tokens again."""
    target = problem.target()
    found = target.exact_samples(1, seed=OBSERVED_SEED, progress=False)
    ids = found.observed[0].tolist()
    text = target.lm.decode(found.observed)[0]
    for spelled in (text, f" {text}"):
        try:
            if list(target.lm.encode(spelled)) == ids:
                return spelled
        except ValueError:
            continue
    return ids
