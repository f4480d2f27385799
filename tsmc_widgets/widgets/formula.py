"""Descriptions in words: log phi as a formula, and a spec as a person would say it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tsmc_widgets.experiments.spec import RunSpec
from tsmc_widgets.targets.description import describe_problem, parts_of
from tsmc_widgets.targets.problems import load_problem


def formula(problem: str | Mapping[str, Any]) -> str:
    """``log φ(s) = 2 log p(5 stars | s) + log 1[no “broken” in s]``, as plain text."""
    described = describe_problem(problem) if isinstance(problem, str) else problem
    terms = [term_of(part) for part in parts_of(described)]
    return "log φ(s) = " + (" + ".join(terms) or "0")


def term_of(part: Mapping[str, Any]) -> str:
    """What one factor adds to log phi."""
    kind = part["kind"]
    if kind == "TemperedReward":
        return f"{_times(part.get('beta', 1))}{_name(part.get('reward'))}(s)"
    if kind == "Constant":
        return f"{part.get('value', 0):g}"
    return f"{_times(part.get('beta', 1))}{_log(part)}"


def _log(part: Mapping[str, Any]) -> str:
    kind = part["kind"]
    if kind == "TextFunction":
        return f"{str(part['function']).rpartition(':')[2]}(s)"
    if kind == "OfProblem":
        return _own(part["problem"])
    if kind in ("Continuation", "Infilling", "ClassProbability", "ClassConditional"):
        return f"log p{_given(part)}"
    return f"log 1[{_condition(part)}]"


def _given(part: Mapping[str, Any]) -> str:
    kind = part["kind"]
    if kind == "Continuation":
        return f"₀({_quoted(part['observed'])} | s)"
    if kind == "Infilling":
        observed = part.get("observed")
        what = f"next {part['num_tokens']} tokens" if observed is None else _quoted(observed)
        return f"₀({what} | s)"
    label = part.get("label", part.get("observed", "o"))
    name = _name(part.get("model"))
    if isinstance(label, int):
        label = f"{label} star{'s' * (label != 1)}" if name == "stars" else f"{name} {label}"
    return f"({label} | s)"


def _condition(part: Mapping[str, Any]) -> str:
    kind, args = part["kind"], [_quoted(arg) for arg in part.get("args", ())]
    scope = "s₀ s" if part.get("scope") == "full" else "s"
    if kind == "ContainsWord":
        return f"{' or '.join(args)} in {scope}"
    if kind in ("AvoidsWord", "AvoidsToken"):
        return f"no {' or '.join(args)} in {scope}"
    if kind == "ContainsToken":
        return f"token {' or '.join(args)} in s"
    if kind == "MatchesRegex":
        return f"/{part['pattern']}/ in {scope}"
    if kind == "RewardThreshold":
        return _between(f"{_name(part.get('reward'))}(s)", part)
    if kind == "Length":
        return _between("tokens of s", part)
    if kind == "CountToken":
        return _between(f"count of {' or '.join(args)}", part)
    return f"{kind}(s)"


def _between(what: str, part: Mapping[str, Any]) -> str:
    low, high = part.get("at_least"), part.get("at_most")
    left = "" if low is None else f"{_number(low)} ≤ "
    right = "" if high is None else f" ≤ {_number(high)}"
    if left and not right:
        return f"{what} ≥ {_number(low)}"
    return f"{left}{what}{right}"


def _own(name: str) -> str:
    if load_problem(name).table is None:
        return f"log φ of {name}(s)"
    line = load_problem(name).own_potential().describe()
    inner = re.fullmatch(r"exp\((.*)\)", line)
    return f"({inner[1]})" if inner else f"log {line}"


def _quoted(value: Any) -> str:
    if isinstance(value, list | tuple):
        words = all(isinstance(token, str) for token in value)
        return " then ".join(f"“{t}”" if words else f"#{t}" for t in value)
    return f"“{value}”"


def _name(model: Any) -> str:
    return str(model or "?").rstrip("/").rpartition("/")[2]


def _times(beta: Any) -> str:
    return "" if beta == 1 else f"{_number(beta)} "


def _number(value: Any) -> str:
    return f"{value:g}".replace("-", "−")


def words_of(spec: RunSpec) -> dict[str, Any]:
    """What a spec says, in the words of the controls: name and value."""
    described = describe_problem(spec.problem) if isinstance(spec.problem, str) else spec.problem
    words: dict[str, Any] = {
        "model": spec.lm or described["model"],
        "prompt": described["prompt"],
        "T": described["num_steps"],
        "EOS": described.get("eos", "ignore"),
        "φ": formula(described).removeprefix("log φ(s) = "),
        "twist ψ": {"shipped": f"shipped for {spec.problem_name}", "saved": spec.twist}.get(
            spec.method, spec.method
        ),
    }
    if spec.method != "none":
        words["ψ power"] = spec.twist_power
        words["proposal q"] = "base" if spec.proposal == "base" else "twist-induced"
    words["resampling"] = spec.resampler
    words["rule"] = {"ess": f"ESS < {spec.ess_threshold:g} K"}.get(spec.rule[0], spec.rule[0])
    return words | {"K": spec.num_particles[0], "R": spec.num_runs, "seed": spec.seed}
