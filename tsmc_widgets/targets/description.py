"""Problems described in place, in JSON's types: any model, prompt and potential by name."""

from __future__ import annotations

import difflib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, reduce
from operator import mul
from typing import Any

from tsmc_widgets.errors import check_integer, check_one_of
from tsmc_widgets.models.protocol import LanguageModel
from tsmc_widgets.targets.classifier import (
    ClassConditional,
    ClassProbability,
    RewardThreshold,
    TemperedReward,
)
from tsmc_widgets.targets.continuation import Continuation, Infilling
from tsmc_widgets.targets.functions import named_text_function
from tsmc_widgets.targets.problems import Problem, load_problem
from tsmc_widgets.targets.protocol import Constant, Potential
from tsmc_widgets.targets.tokens import (
    AvoidsToken,
    ContainsToken,
    CountToken,
    Length,
    check_pattern,
    token_ids,
)
from tsmc_widgets.targets.words import AvoidsWord, ContainsWord, MatchesRegex


def problems_own(problem: str) -> Potential:
    """The potential of a named problem, whatever it is."""
    return load_problem(problem).own_potential()


POTENTIALS: dict[str, Callable[..., Potential]] = {
    kind.__name__: kind
    for kind in (
        AvoidsToken, AvoidsWord, ClassConditional, ClassProbability, Constant, ContainsToken,
        ContainsWord, Continuation, CountToken, Infilling, Length, MatchesRegex, RewardThreshold,
        TemperedReward,
    )
} | {"OfProblem": problems_own, "TextFunction": named_text_function}  # fmt: skip
WAITING = ("ClassConditional", "Infilling")
"""Kinds that take an observation beside their arguments, or wait for one."""
TABLE = "table:"
"""Before the name of a toy: the table that is its model."""
_NEEDED = ("name", "model", "prompt", "num_steps", "potential")
_FIELDS = (*_NEEDED, "eos", "form")


def check_problem(problem: Any) -> str | dict[str, Any]:
    """A problem's name, or its description with every potential made once to see that it can be.

    A description has the fields name, model, prompt, num_steps and potential, and may have eos and
    form (recommended form of the twist). Its potential is an object such as ``{"kind":
    "ClassProbability", "model": "storybook/stars", "label": 1, "beta": 2}``: the name of a
    potential, its arguments by keyword (what it takes without a name as ``"args": [...]``), and a
    power ``beta``; or a list of these, which are multiplied. Kinds
    are the package's potentials; ``OfProblem`` with ``problem``, a named problem's own; and
    ``TextFunction`` with ``function``, a name that ``register_function`` knows: the one thing that
    JSON alone can not bring back. What waits for an observation is given it as ``observed``. The
    model is a name that ``load_language_model`` takes, or ``"table:"`` and the name of a toy.

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
    _toy_of(problem["model"])
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
    toy = _toy_of(problem["model"])
    return Problem(
        name=problem["name"],
        summary="described in place",
        teaches="",
        model=problem["model"],
        table=None if toy is None else toy.table,
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
    if described["kind"] in WAITING and described.get("observed") is not None:
        potential = potential.condition(described["observed"])
    return potential if beta == 1 else potential**beta


def parts_of(problem: Any) -> list[Mapping[str, Any]]:
    """The factors of a description, as a list; none of a named problem."""
    if not isinstance(problem, Mapping):
        return []
    parts = problem["potential"]
    return [parts] if isinstance(parts, Mapping) else list(parts)


def named_functions(problem: Any) -> tuple[str, ...]:
    """Registered functions that a description names, which JSON alone can not bring back."""
    named = [part["function"] for part in parts_of(problem) if part["kind"] == "TextFunction"]
    return tuple(dict.fromkeys(named))


def observation_of(problem: Any, lm: LanguageModel | None) -> list[int] | None:
    """What a description's potential is conditioned on, as conditional twists take it."""
    for part in parts_of(problem):
        if part["kind"] not in WAITING or part.get("observed") is None:
            continue
        if part["kind"] == "Infilling":
            return list(token_ids(check_pattern(part["observed"]), lm))
        return [potential_of({**part, "beta": 1}).index]
    return None


def _toy_of(model: Any) -> Problem | None:
    """The toy whose table is a model of this name."""
    if not str(model).startswith(TABLE):
        return None
    toy = load_problem(model.removeprefix(TABLE))
    if toy.table is None:
        raise ValueError(f"model {model!r} is none: {toy.name!r} is no toy with a table.")
    return toy


def _taken_apart(described: Mapping[str, Any]) -> tuple[Callable[..., Potential], Any, dict, Any]:
    """What makes a potential, its arguments, and the power it is raised to."""
    options = dict(described)
    if options["kind"] in WAITING:
        options.pop("observed", None)
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
