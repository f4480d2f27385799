"""A spec as the Python that makes its run: what to paste into a script."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tsmc_widgets.experiments.spec import RunSpec
from tsmc_widgets.targets.description import (
    TABLE,
    WAITING,
    named_functions,
    observation_of,
    parts_of,
)
from tsmc_widgets.targets.functions import importable
from tsmc_widgets.twists.storage import shipped_folder
from tsmc_widgets.twists.trainable import PROPOSAL_ONLY

_WIDTH = 88
_TWISTS = {
    "look-ahead": "tw.LookAheadTwist(target, seed={seed})",
    "optimal": "tw.exact(target).optimal_twist()",
    "shipped": "tw.load_twist({name}, target.lm)",
    "saved": "tw.load_twist({folder}, target.lm)",
}


def code_of(spec: RunSpec, *, top_k: int = 0) -> str:
    """Python that gives the very trace of ``start_spec(spec, top_k=top_k)``.

    What a saved twist can do is read from its folder, which must be here.
    """
    card = twist_card(spec)
    blocks = [_imports(spec), _target(spec)]
    if spec.method != "none":
        blocks.append(_twist(spec, conditional=card.get("form", "").startswith("Conditional")))
    blocks.append(_run(spec, top_k, card.get("method") in PROPOSAL_ONLY))
    blocks.append("tw.ParticleView(trace)")
    return "\n\n".join(block.rstrip() for block in blocks) + "\n"


def _imports(spec: RunSpec) -> str:
    names = named_functions(spec.problem)
    lines = []
    for name in names:
        if importable(name):
            module, _, inside = name.partition(":")
            lines.append(f"from {module} import {inside.partition('.')[0]}")
    if lines:
        lines.append("")
    lines.append("import tsmc_widgets as tw")
    for name in names:
        if not importable(name):
            said = f"# {_said(name)} is a function of the session: elsewhere, register it first."
            lines += ["", said]
    return "\n".join(lines)


def _target(spec: RunSpec) -> str:
    if isinstance(spec.problem, str):
        options = []
        if spec.lm:
            options.append(_said(spec.lm))
        if spec.classifier:
            options.append(f"classifier={_said(spec.classifier)}")
        if spec.device:
            options.append(f"device={_said(spec.device)}")
        made = f"target = tw.load_problem({_said(spec.problem)}).target({', '.join(options)})"
        return f"{_FRESH}\n    {made}"
    problem = spec.problem
    where = f", device={_said(spec.device)}" if spec.device else ""
    model = spec.lm or problem["model"]
    lm = f"tw.load_language_model({_said(model)}{where})"
    if model.startswith(TABLE):
        lm = f"tw.load_problem({_said(model.removeprefix(TABLE))}).target().lm"
    arguments = [f"prompt={_said(problem['prompt'])}", f"num_steps={problem['num_steps']}"]
    if problem.get("eos", "ignore") != "ignore":
        arguments.append(f"eos={_said(problem['eos'])}")
    factors = [_factor(part) for part in parts_of(problem)]
    phi = textwrap.indent(_assigned("phi", factors), "    ")
    target = f"target = tw.Target(lm, phi, {', '.join(arguments)})"
    return f"lm = {lm}\n{_FRESH}\n{phi}\n{target}"


_FRESH = "with tw.own_caches():  # as in a fresh process, to the byte"


def _assigned(name: str, factors: list[str]) -> str:
    line = f"{name} = {' * '.join(factors)}"
    if len(line) <= _WIDTH or len(factors) == 1:
        return line
    return f"{name} = (\n    " + "\n    * ".join(factors) + "\n)"


def _factor(part: Mapping[str, Any]) -> str:
    """One factor as an expression."""
    options = dict(part)
    kind, args = options.pop("kind"), options.pop("args", ())
    observed = options.pop("observed", None) if kind in WAITING else None
    power = "" if kind == "TemperedReward" else _power(options.pop("beta", 1))
    if kind == "OfProblem":
        return f"tw.load_problem({_said(part['problem'])}).own_potential(){power}"
    given = [_said(arg) for arg in args]
    if kind == "TextFunction":
        name = options.pop("function")
        inside = name.rpartition(":")[2]
        given.append(inside if importable(name) else f"tw.find_function({_said(name)})")
        options["name"] = inside
    elif kind in ("ClassProbability", "ClassConditional") and "model" in options:
        given.append(_said(options.pop("model")))
    elif kind == "Continuation" and "observed" in options:
        given.append(_said(options.pop("observed")))
    elif kind in ("RewardThreshold", "TemperedReward") and "reward" in options:
        given.append(_said(options.pop("reward")))
    given += [f"{name}={_said(value)}" for name, value in options.items()]
    condition = "" if observed is None else f".condition({_said(observed)})"
    return f"tw.{kind}({', '.join(given)}){condition}{power}"


def _said(value: Any) -> str:
    """The value as an expression, texts in double quotes where that needs no escape."""
    if isinstance(value, list):
        return f"[{', '.join(map(_said, value))}]"
    plain = isinstance(value, str) and '"' not in value and "'" not in value
    return f'"{repr(value)[1:-1]}"' if plain else repr(value)


def _power(beta: Any) -> str:
    return "" if beta == 1 else f" ** {_said(beta)}"


def twist_card(spec: RunSpec) -> dict[str, Any]:
    """What stands beside the weights of a spec's saved twist; empty where there is none here."""
    if spec.method not in ("saved", "shipped"):
        return {}
    name = spec.twist or spec.problem_name
    card = (shipped_folder(name) or Path(name)) / "twist.json"
    return json.loads(card.read_bytes()) if card.is_file() else {}


def _observed(spec: RunSpec) -> Any:
    """What a conditional twist is told: text or token ids, or the index of a class."""
    for part in parts_of(spec.problem):
        if part["kind"] == "Infilling":
            return part.get("observed")
        if part["kind"] == "ClassConditional":
            return observation_of({"potential": part}, None)
    return None


def _twist(spec: RunSpec, conditional: bool) -> str:
    made = _TWISTS[spec.method].format(
        seed=spec.seed, name=_said(spec.problem_name), folder=_said(spec.twist)
    )
    line = f"twist = {made}"
    observed = _observed(spec) if conditional else None
    if observed is not None:
        line += f".condition({_said(observed)})"
    if spec.twist_power != 1:
        line += f"\ntwist = tw.TemperedTwist(twist, {_said(spec.twist_power)})"
    return line


def _run(spec: RunSpec, top_k: int, proposal_only: bool) -> str:
    proposes = spec.method != "none" and spec.proposal != "base"
    inside = "twist" if proposal_only else ""
    given = {
        "num_particles": spec.num_particles[0],
        "num_runs": spec.num_runs,
        "proposal": f"tw.TwistInduced({inside})" if proposes else "tw.Base()",
    }
    if spec.method != "none" and not proposal_only:
        given["twist"] = "twist"
    given["resampler"] = _said(spec.resampler)
    rule = "never" if proposal_only else spec.rule[0]
    if rule == "ess":
        given["ess_threshold"] = _said(spec.ess_threshold)
    else:
        given["rule"] = _said(rule)
    given["seed"] = spec.seed
    if top_k:
        given["top_k"] = top_k
    given["dead_runs"] = _said("keep")
    lines = [f"    {name}={value}," for name, value in given.items()]
    return "trace = tw.run_smc(\n    target,\n" + "\n".join(lines) + "\n)"
