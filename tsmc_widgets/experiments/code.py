"""A spec as the Python that makes its run, to paste into a script, and in words."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from tsmc_widgets.experiments.spec import RunSpec, twist_card
from tsmc_widgets.targets.description import (
    RULES,
    SETTINGS,
    TABLE,
    describe_problem,
    every_part,
    formula_of,
    named_functions,
    observation_of,
    parts_of,
    prompt_text,
    tempered_of,
)
from tsmc_widgets.targets.functions import TypedFunction, importable, registered_function
from tsmc_widgets.targets.notation import code_value
from tsmc_widgets.targets.protocol import KINDS, is_packages
from tsmc_widgets.targets.protocol import code_of as code_of_potential
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
    lines, notes = [], []
    for name in named_functions(spec.problem):
        shown = code_value(name)
        if importable(name):
            module, _, inside = name.partition(":")
            lines.append(f"from {module} import {inside.partition('.')[0]}")
        elif isinstance(typed := registered_function(name), TypedFunction):
            notes.append(f"{typed.source}\n\ntw.register_function(log_phi, name={shown})")
        else:
            notes.append(f"# {shown} is a function of the session: elsewhere, register it first.")
    for name in dict.fromkeys(part["kind"] for part in every_part(spec.problem)):
        if is_packages(KINDS[name]):
            continue
        if KINDS[name].__module__ == "__main__":
            notes.append(f"# {name} is a class of the session: elsewhere, define it first.")
        else:
            lines.append(f"from {KINDS[name].__module__} import {name}")
    lines += ["", "import tsmc_widgets as tw"] if lines else ["import tsmc_widgets as tw"]
    return "\n".join([*lines, *(line for note in notes for line in ("", note))])


def _target(spec: RunSpec) -> str:
    where = {name: getattr(spec, name) for name in ("device", "dtype") if getattr(spec, name)}
    if isinstance(spec.problem, str):
        options = [code_value(spec.lm)] if spec.lm else []
        options += _keywords({"classifier": spec.classifier} if spec.classifier else {})
        options += _keywords(where)
        made = f"target = tw.load_problem({code_value(spec.problem)}).target({', '.join(options)})"
        return f"{_FRESH}\n    {made}"
    problem = spec.problem
    model = spec.lm or problem["model"]
    lm = f"tw.load_language_model({', '.join([code_value(model), *_keywords(where)])})"
    if model.startswith(TABLE):
        lm = f"tw.load_problem({code_value(model.removeprefix(TABLE))}).target().lm"
    names = ["prompt", "num_steps", *(name for name in ("eos", *RULES) if name in problem)]
    given = {name: problem[name] for name in names}
    arguments = _keywords({k: v for k, v in given.items() if (k, v) != ("eos", "ignore")})
    factors = [code_of_potential(part) for part in parts_of(problem)]
    phi = textwrap.indent(_assigned("phi", factors), "    ")
    target = f"target = tw.Target(lm, phi, {', '.join(arguments)})"
    cuts = _keywords(tempered_of(problem))
    lm = f"tw.Tempered({', '.join([lm, *cuts])})" if cuts else lm
    return f"lm = {lm}\n{_FRESH}\n{phi}\n{target}"


def _keywords(given: Mapping[str, Any]) -> list[str]:
    return [f"{name}={code_value(value)}" for name, value in given.items()]


_FRESH = "with tw.own_caches():  # as in a fresh process, to the byte"


def _assigned(name: str, factors: list[str]) -> str:
    line = f"{name} = {' * '.join(factors)}"
    if len(line) <= _WIDTH or len(factors) == 1:
        return line
    return f"{name} = (\n    " + "\n    * ".join(factors) + "\n)"


def noise_words(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Whether two runs, in words as by ``words_of``, were drawn on one noise.

    Noise is addressed by seed and run, so that the runs both have are the same at any R.
    """
    if any(before.get(name) != now.get(name) for name in ("seed", "K")):
        return "other noise"
    both = min(before["R"], now["R"])
    if before["R"] == now["R"]:
        return "the same noise"
    return f"the same noise in {'run 1' if both == 1 else f'runs 1 to {both}'}"


def _twist(spec: RunSpec, conditional: bool) -> str:
    made = _TWISTS[spec.method].format(
        seed=spec.seed, name=code_value(spec.problem_name), folder=code_value(spec.twist)
    )
    line = f"twist = {made}"
    observed = observation_of(spec.problem, None) if conditional else None
    if observed is not None:
        line += f".condition({code_value(observed)})"
    if spec.twist_power != 1:
        line += f"\ntwist = tw.TemperedTwist(twist, {code_value(spec.twist_power)})"
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
    given["resampler"] = code_value(spec.resampler)
    rule = "never" if proposal_only else spec.rule[0]
    if rule == "ess":
        given["ess_threshold"] = code_value(spec.ess_threshold)
    else:
        given["rule"] = code_value(rule)
    given["seed"] = spec.seed
    if top_k:
        given["top_k"] = top_k
    given["dead_runs"] = code_value("keep")
    lines = [f"    {name}={value}," for name, value in given.items()]
    return "trace = tw.run_smc(\n    target,\n" + "\n".join(lines) + "\n)"


def words_of(spec: RunSpec) -> dict[str, Any]:
    """What a spec says, in the words of the controls: name and value."""
    described = describe_problem(spec.problem)
    words: dict[str, Any] = {
        "model": spec.lm or described["model"],
        "prompt": prompt_text(described["prompt"]),
        "T": described["num_steps"],
        "EOS": described.get("eos", "ignore"),
        "φ": formula_of(described).removeprefix("log φ(s) = "),
        "twist ψ": {"shipped": f"shipped for {spec.problem_name}", "saved": spec.twist}.get(
            spec.method, spec.method
        ),
    }
    words |= {name: described[name] for name in SETTINGS if name in described}
    words |= {"dtype": spec.dtype} if spec.dtype else {}
    induced = spec.method != "none" and spec.proposal != "base"
    words["ψ power"] = spec.twist_power
    words["proposal q"] = "twist-induced" if induced else "base"
    words["resampling"] = spec.resampler
    words["rule"] = {"ess": f"ESS < {spec.ess_threshold:g} K"}.get(spec.rule[0], spec.rule[0])
    return words | {"K": spec.num_particles[0], "R": spec.num_runs, "seed": spec.seed}
