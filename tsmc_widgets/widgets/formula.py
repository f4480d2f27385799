"""A spec in the words of the controls."""

from __future__ import annotations

from typing import Any

from tsmc_widgets.experiments.spec import RunSpec
from tsmc_widgets.targets.description import describe_problem, formula_of


def words_of(spec: RunSpec) -> dict[str, Any]:
    """What a spec says, in the words of the controls: name and value."""
    described = describe_problem(spec.problem)
    words: dict[str, Any] = {
        "model": spec.lm or described["model"],
        "prompt": described["prompt"],
        "T": described["num_steps"],
        "EOS": described.get("eos", "ignore"),
        "φ": formula_of(described).removeprefix("log φ(s) = "),
        "twist ψ": {"shipped": f"shipped for {spec.problem_name}", "saved": spec.twist}.get(
            spec.method, spec.method
        ),
    }
    induced = spec.method != "none" and spec.proposal != "base"
    words["ψ power"] = spec.twist_power
    words["proposal q"] = "twist-induced" if induced else "base"
    words["resampling"] = spec.resampler
    words["rule"] = {"ess": f"ESS < {spec.ess_threshold:g} K"}.get(spec.rule[0], spec.rule[0])
    return words | {"K": spec.num_particles[0], "R": spec.num_runs, "seed": spec.seed}
