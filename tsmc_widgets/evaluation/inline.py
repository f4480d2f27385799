"""Problems described in place, in JSON's types: any model, prompt and potential by name."""

from __future__ import annotations

import difflib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from operator import mul
from typing import Any

from tsmc_widgets.errors import check_integer, check_one_of
from tsmc_widgets.targets import (
    AvoidsToken,
    AvoidsWord,
    ClassConditional,
    ClassProbability,
    Constant,
    ContainsToken,
    ContainsWord,
    Continuation,
    CountToken,
    Infilling,
    Length,
    MatchesRegex,
    Potential,
    RewardThreshold,
    TemperedReward,
)
from tsmc_widgets.targets.problem import Problem
from tsmc_widgets.targets.problems import load_problem

POTENTIALS: dict[str, Callable[..., Potential]] = {
    kind.__name__: kind
    for kind in (
        AvoidsToken, AvoidsWord, ClassConditional, ClassProbability, Constant, ContainsToken,
        ContainsWord, Continuation, CountToken, Infilling, Length, MatchesRegex, RewardThreshold,
        TemperedReward,
    )
}  # fmt: skip
_NEEDED = ("name", "model", "prompt", "num_steps", "potential")
_FIELDS = (*_NEEDED, "eos", "form")


def check_problem(problem: Any) -> str | dict[str, Any]:
    """A problem's name, or its description with every potential made once to see that it can be.

    A description has the fields name, model, prompt, num_steps and potential, and may have eos and
    form (recommended form of the twist). Its potential is an object such as ``{"kind":
    "ClassProbability", "model": "storybook/stars", "label": 1, "beta": 2}``: the name of a
    potential, its arguments by keyword (what it takes without a name as ``"args": [...]``), and a
    power ``beta``; or a list of these, which are multiplied.

    Raises:
        ValueError: no such problem, or a description that makes none.
    """
    if isinstance(problem, str):
        return load_problem(problem).name
    if isinstance(problem, Problem):
        return load_problem(problem.name).name
    if not isinstance(problem, Mapping):
        raise ValueError(
            "problem must be a name in PROBLEMS, or a description with the fields "
            f"{', '.join(_NEEDED)}; got {problem!r}."
        )
    for name in problem:
        if name not in _FIELDS:
            near = difflib.get_close_matches(str(name), _FIELDS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"a problem has no field {name!r}; it has {', '.join(_FIELDS)}.{hint}")
    missing = [name for name in _NEEDED if name not in problem]
    if missing:
        raise ValueError(f"the problem lacks {', '.join(missing)}; got {dict(problem)!r}.")
    check_integer("num_steps", problem["num_steps"])
    check_one_of("eos", problem.get("eos", "ignore"), ("ignore", "absorb"))
    _check_potential(problem["potential"])
    try:
        return json.loads(json.dumps(dict(problem), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"a problem must be described by texts, numbers and lists: {error}"
        ) from error


def problem_of(problem: str | Mapping[str, Any]) -> Problem:
    """The problem that a spec names or describes."""
    if isinstance(problem, str):
        return load_problem(problem)
    return Problem(
        name=problem["name"],
        summary="described in place",
        teaches="",
        model=problem["model"],
        prompt=problem["prompt"],
        num_steps=problem["num_steps"],
        potential=lambda _: potential_of(problem["potential"]),
        eos=problem.get("eos", "ignore"),
        form=problem.get("form", "MLP head"),
    )


def potential_of(described: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> Potential:
    """The potential that a description asks for; see ``check_problem``."""
    if not isinstance(described, Mapping):
        return reduce(mul, [potential_of(part) for part in described])
    maker, args, options, beta = _taken_apart(described)
    potential = maker(*args, **options)
    return potential if beta == 1 else potential**beta


def _taken_apart(described: Mapping[str, Any]) -> tuple[Callable[..., Potential], Any, dict, Any]:
    """What makes a potential, its arguments, and the power it is raised to."""
    options = dict(described)
    maker = POTENTIALS[options.pop("kind")]
    own_beta = "beta" in inspect.signature(maker).parameters
    beta = 1 if own_beta else options.pop("beta", 1)
    return maker, options.pop("args", ()), options, beta


def _check_potential(described: Any) -> None:
    """See that names and arguments fit, without loading any model."""
    if isinstance(described, Sequence) and not isinstance(described, str) and described:
        for part in described:
            _check_potential(part)
        return
    if not isinstance(described, Mapping) or "kind" not in described:
        raise ValueError(
            "a potential must be described as {'kind': its name, ...its arguments}, or as a list "
            f"of these; got {described!r}."
        )
    check_one_of("kind of a potential", described["kind"], POTENTIALS)
    maker, args, options, beta = _taken_apart(described)
    if isinstance(beta, bool) or not isinstance(beta, float | int) or not beta > 0:
        raise ValueError(f"beta of a potential must be a positive number; got {beta!r}.")
    try:
        inspect.signature(maker).bind(*args, **options)
    except TypeError as error:
        raise ValueError(f"{described['kind']} does not take what is given: {error}.") from error
