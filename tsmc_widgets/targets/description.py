"""Potentials and problems as JSON, and back."""

from __future__ import annotations

import difflib
import inspect
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache, reduce
from operator import mul
from pathlib import Path
from typing import Any

from tsmc_widgets.errors import check_integer, check_number, check_one_of, listed, quoted
from tsmc_widgets.models.protocol import LanguageModel
from tsmc_widgets.models.tempered import check_settings
from tsmc_widgets.targets.classifier import CachedClassifier
from tsmc_widgets.targets.functions import NamedFunction
from tsmc_widgets.targets.problems import Problem, load_problem
from tsmc_widgets.targets.protocol import KINDS, Potential, take_apart, term_of
from tsmc_widgets.targets.target import is_chat
from tsmc_widgets.targets.tokens import check_pattern, token_ids

TABLE = "table:"
"""Before the name of a toy: the table that is its model."""
_REQUIRED = ("name", "model", "prompt", "num_steps", "potential")
TEMPERED = ("temperature", "top_k", "top_p", "min_p")
"""Fields that make a ``Tempered`` model of the model."""
RULES = ("stop", "power")
"""Fields that go to ``Target``, where they are given."""
SETTINGS = (*TEMPERED, *RULES)
_FIELDS = (*_REQUIRED, "eos", "form", *SETTINGS)
OBSERVED_SEED = 0
"""Of the observation that a conditional problem is shown with."""


def parse_problem(problem: Any) -> Problem:
    """The problem of a name, of a ``Problem``, or of a description in JSON's types.

    A description has the fields name, model, prompt, num_steps and potential, and may have eos,
    stop and power (as for ``Target``), temperature, top_k, top_p and min_p (as for ``Tempered``),
    and form (recommended form of the twist). Its potential is an object such as ``{"kind":
    "ClassProbability", "model": "storybook/stars", "label": 1, "beta": 2}``: the name of a
    potential, its arguments by keyword (what it takes without a name as ``"args": [...]``), and a
    power ``beta``; or a list of these, which are multiplied. Kinds are the package's potentials
    and the subclasses of ``Potential`` that this process has; ``OfProblem`` with ``problem``, a
    named problem's own; and ``TextFunction`` with ``function``, a name that ``register_function``
    knows: the one thing that JSON alone cannot bring back. A conditional kind may be given its
    observation as ``observed``. The model is a name that ``load_language_model`` takes, or
    ``"table:"`` and the name of a toy. Models are loaded by ``target()``, not here.

    Raises:
        ValueError: no such problem, or a description that makes none.
    """
    if isinstance(problem, Problem):
        return problem if problem.description is not None else load_problem(problem.name)
    if isinstance(problem, str):
        return load_problem(problem)
    described = _checked(problem)
    toy = _toy_of(described["model"])
    return Problem(
        name=described["name"],
        summary="a problem of its own",
        teaches="",
        model=described["model"],
        table=None if toy is None else toy.table,
        prompt=described["prompt"],
        num_steps=described["num_steps"],
        potential=lambda _: _potential_of(described["potential"]),
        eos=described.get("eos", "ignore"),
        tempered=tempered_of(described),
        stop=described.get("stop"),
        power=described.get("power", 1),
        form=described.get("form", ""),
        description=described,
    )


def problem_reference(problem: Any) -> str | dict[str, Any]:
    """What a spec stores of a problem: its name, or its description where it has no name."""
    parsed = parse_problem(problem)
    return parsed.name if parsed.description is None else dict(parsed.description)


def describe_problem(problem: str | Problem | Mapping[str, Any]) -> dict[str, Any]:
    """A problem as a description: the same target, its factors as a list.

    A potential of a named problem that no other can have is the factor ``OfProblem``. A conditional
    one is given an observation: the last class, or tokens that p0 drew.
    """
    if isinstance(problem, str):
        described = _described(problem)
    else:
        described = parse_problem(problem).description or _described(problem.name)
    return {**described, "potential": [dict(part) for part in parts_of(described)]}


def prompt_text(prompt: Any) -> str:
    """A prompt as a person reads it: the text, the last message of a chat, or token ids."""
    if is_chat(prompt):
        return prompt[-1]["content"]
    return prompt if isinstance(prompt, str) else " ".join(f"#{each}" for each in prompt)


def with_text(prompt: Any, text: str) -> Any:
    """The same prompt, or one with another text: of a chat its last message."""
    if text == prompt_text(prompt):
        return prompt
    return [*prompt[:-1], {**prompt[-1], "content": text}] if is_chat(prompt) else text


def parse_potential(described: Mapping[str, Any] | Sequence[Any]) -> Potential:
    """The potential that a description asks for; see ``parse_problem``.

    Raises:
        ValueError: it describes none.
    """
    _check_potential(described)
    return _potential_of(described)


def _potential_of(described: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> Potential:
    if not isinstance(described, Mapping):
        return reduce(mul, map(_potential_of, described))
    kind, arguments, observed, beta = take_apart(described)
    options = {name: _parsed(value) for name, value in arguments.items()}
    potential = kind(*options.pop("args", ()), **options)
    if observed is not None:
        potential = potential.condition(observed)
    return potential if beta == 1 else potential**beta


def describe_potential(phi: Potential) -> list[dict[str, Any]]:
    """The factors of a potential as descriptions, from which ``parse_potential`` makes it again.

    Raises:
        ValueError: an argument is an object that JSON cannot hold.
    """
    return [_described_factor(factor) for factor in phi.factors()]


def formula_of(problem: str | Problem | Mapping[str, Any]) -> str:
    """``log φ(s) = 2 log p(5 stars | s) + log 1[no “broken” in s]``, as plain text."""
    terms = map(term_of, describe_problem(problem)["potential"])
    return "log φ(s) = " + (" + ".join(terms) or "0")


def tempered_of(described: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of ``Tempered`` in a description."""
    return {name: described[name] for name in TEMPERED if name in described}


def parts_of(problem: Any) -> list[Mapping[str, Any]]:
    """The factors of a description, as a list; none of a named problem."""
    if not isinstance(problem, Mapping):
        return []
    parts = problem["potential"]
    return [parts] if isinstance(parts, Mapping) else list(parts)


def is_conditional_kind(name: str) -> bool:
    """Whether potentials of this kind depend on an observation until they are given it."""
    return KINDS[name].draw_joint is not None


def named_functions(problem: Any) -> tuple[str, ...]:
    """Registered functions that a description names, which JSON alone cannot bring back."""
    parts = [part for part in every_part(problem) if issubclass(KINDS[part["kind"]], NamedFunction)]
    return tuple(dict.fromkeys(part["function"] for part in parts))


def every_part(problem: Any) -> list[Mapping[str, Any]]:
    """The factors of a description and what is inside of them."""
    found = list(parts_of(problem))
    for part in found:  # grows while it is read
        for value in part.values():
            inside = value if isinstance(value, list) else [value]
            found += [each for each in inside if isinstance(each, Mapping) and "kind" in each]
    return found


def models_of(problem: Any) -> set[str]:
    """Names and folders of the models that a description reads, its factors' included."""
    found = [problem["model"]] if isinstance(problem, Mapping) else []
    for part in every_part(problem):
        kind, options, _, _ = take_apart(part)
        given = inspect.signature(kind).bind(*options.pop("args", ()), **options).arguments
        found += [given[name] for name in ("model", "reward") if name in given]
    return {str(each) for each in found if not isinstance(each, Mapping)}


def observation_of(problem: Any, lm: LanguageModel | None) -> Any:
    """What a description's potential is conditioned on, as conditional twists take it.

    Token ids, or text where ``lm`` is None; of a class its index; None where nothing is observed.
    """
    for part in parts_of(problem):
        kind, arguments, observed, _ = take_apart(part)
        if observed is None:
            continue
        taken = kind(*arguments.pop("args", ()), **arguments).observation(observed)
        return taken if lm is None else list(token_ids(check_pattern(taken), lm))
    return None


def _parsed(value: Any) -> Any:
    if isinstance(value, Mapping) and "kind" in value:
        return _potential_of(value)
    return [_parsed(each) for each in value] if isinstance(value, list) else value


def _described_factor(phi: Potential) -> dict[str, Any]:
    part, power = phi.unpowered()
    if part is not phi:
        factor = _described_factor(part)
        if "beta" not in factor:
            beta = int(power) if power % 1 == 0 else power
            return factor if beta == 1 else {**factor, "beta": beta}
    name = type(phi).__name__
    if KINDS.get(name) is not type(phi):
        raise ValueError(
            f"{phi.describe()} cannot be described in JSON: {name} is not a kind of potential; "
            "make it a subclass of Potential."
        )
    return {"kind": name, **{key: _json(phi, key, v) for key, v in phi.arguments.items()}}


def _json(phi: Potential, name: str, value: Any) -> Any:
    if isinstance(value, Potential):
        return _described_factor(value)
    if isinstance(value, list | tuple):
        return [_json(phi, name, each) for each in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, CachedClassifier) and value.source:
        return value.source
    if isinstance(value, Mapping):
        return {str(key): _json(phi, name, each) for key, each in value.items()}
    if value is None or isinstance(value, str | int | float):
        return value
    raise ValueError(
        f"{phi.describe()} cannot be described in JSON: its {name} is an object, {quoted(value)}; "
        "give "
        "it by a name or a folder."
    )


def _checked(problem: Any) -> dict[str, Any]:
    """A description, with every name and argument checked and no model loaded."""
    if not isinstance(problem, Mapping):
        raise ValueError(
            "problem must be a name in PROBLEMS, or a description with the fields "
            f"{', '.join(_REQUIRED)}; got {quoted(problem)}."
        )
    for name in problem:
        if name not in _FIELDS:
            near = difflib.get_close_matches(str(name), _FIELDS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"a problem has no field {quoted(name)}; it has {listed(_FIELDS)}.{hint}"
            )
    missing = [name for name in _REQUIRED if name not in problem]
    if missing:
        raise ValueError(f"the problem lacks {', '.join(missing)}; got {quoted(dict(problem))}.")
    check_integer("num_steps", problem["num_steps"])
    check_one_of("eos", problem.get("eos", "ignore"), ("ignore", "absorb"))
    check_number("power", problem.get("power", 1), "(0, inf)")
    check_settings(tempered_of(problem))
    if problem.get("stop") is not None and problem.get("eos") != "absorb":
        raise ValueError(f"stop={quoted(problem['stop'])} says where texts end: give eos='absorb'.")
    _toy_of(problem["model"])
    _check_potential(problem["potential"])
    try:
        return json.loads(json.dumps(dict(problem), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"a problem must be described by texts, numbers and lists: {error}"
        ) from error


def _check_potential(described: Any) -> None:
    if isinstance(described, Sequence) and not isinstance(described, str) and described:
        for part in described:
            _check_potential(part)
        return
    if not isinstance(described, Mapping) or "kind" not in described:
        raise ValueError(
            "a potential must be described as {'kind': its name, ...its arguments}, or as a list "
            f"of these; got {quoted(described)}."
        )
    check_one_of("kind of a potential", described["kind"], sorted(KINDS))
    kind, arguments, _, beta = take_apart(described)
    if isinstance(beta, bool) or not isinstance(beta, float | int) or not beta > 0:
        raise ValueError(f"beta of a potential must be a positive number; got {quoted(beta)}.")
    for value in arguments.values():
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, Mapping) and "kind" in each:
                _check_potential(each)
    options = dict(arguments)
    try:
        inspect.signature(kind).bind(*options.pop("args", ()), **options)
    except TypeError as error:
        raise ValueError(f"{described['kind']} does not take what is given: {error}.") from error


def _toy_of(model: Any) -> Problem | None:
    """The toy whose table is a model of this name."""
    if not str(model).startswith(TABLE):
        return None
    toy = load_problem(model.removeprefix(TABLE))
    if toy.table is None:
        raise ValueError(f"model {quoted(model)} is none: {toy.name!r} is no toy with a table.")
    return toy


@lru_cache(maxsize=64)
def _described(name: str) -> Mapping[str, Any]:
    problem = load_problem(name)
    described = {
        "name": name,
        "model": problem.model if problem.table is None else f"{TABLE}{name}",
        "prompt": problem.prompt,
        "num_steps": problem.num_steps,
        "potential": _own_factors(problem),
        "form": problem.form,
    }
    return described if problem.eos == "ignore" else {**described, "eos": problem.eos}


def _own_factors(problem: Problem) -> list[dict[str, Any]]:
    own = [{"kind": "OfProblem", "problem": problem.name}]
    if problem.group == "paper":
        # Its classifier may not be here, and would take its time.
        return own
    phi: Any = problem.own_potential()
    if phi.draw_joint:

        def joint() -> tuple[Any, Any]:
            target = problem.target()
            return target.lm, target.exact_samples(1, seed=OBSERVED_SEED, progress=False).observed

        return [{**_described_factor(phi), "observed": phi.example(joint)}]
    return describe_potential(phi) if KINDS.get(type(phi.factors()[0]).__name__) else own
