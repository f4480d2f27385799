"""Twisted Sequential Monte Carlo on language models, made visible.

Importing the package is cheap: each name is loaded when it is first used, and transformers, plotly
and ipywidgets only when something needs them.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "tsmc_widgets.models.loading": ("load_classifier", "load_language_model"),
    "tsmc_widgets.models.huggingface": ("HuggingFaceLM",),
    "tsmc_widgets.models.tabular": ("TabularLM",),
    "tsmc_widgets.targets": (
        "AvoidsToken", "AvoidsWord", "ClassConditional", "ClassProbability", "Constant",
        "ContainsToken", "ContainsWord", "Continuation", "CountToken", "Infilling", "Length",
        "MatchesRegex", "Mixture", "Potential", "RewardThreshold", "Target", "TemperedReward",
        "TextFunction", "TokenFunction",
    ),
    "tsmc_widgets.targets.classifier": ("own_caches",),
    "tsmc_widgets.targets.problems": ("PROBLEMS", "load_problem"),
    "tsmc_widgets.twists": (
        "BodyTwist", "ConditionalBodyTwist", "ConditionalHeadTwist", "LinearHeadTwist",
        "LoRATwist", "LookAheadTwist", "MLPHeadTwist", "TableHeadTwist", "TableTwist",
        "TemperedTwist", "TrainableTwist", "load_twist", "save_twist", "shipped_twists",
    ),
    "tsmc_widgets.smc": (
        "Always", "Base", "ESSBelow", "EveryNSteps", "ModelProposal", "Never", "SMCConfig",
        "SMCSession", "SMCTrace", "TwistInduced", "exact", "run_conditional_smc", "run_smc",
        "start_smc",
    ),
    "tsmc_widgets.learning": ("ConstantRate", "FallingRate", "TwistTrainer"),
    "tsmc_widgets.experiments.compare": ("Comparison", "compare"),
    "tsmc_widgets.targets.functions": ("find_function", "register_function"),
    "tsmc_widgets.experiments.islands": ("run_islands",),
    "tsmc_widgets.experiments.result_table": ("ResultTable",),
    "tsmc_widgets.experiments.runs": ("map_runs",),
    "tsmc_widgets.experiments.spec": ("RunSpec", "Training"),
    "tsmc_widgets.experiments.execute": ("execute",),
    "tsmc_widgets.evaluation": (
        "BoundsTable", "Divergences", "LogZ", "LogZBounds", "all_prefixes", "bracket_log_z",
        "compare_log_psi", "factor_breakdown",
        "kl_divergences", "log_z_bounds", "log_z_bounds_given", "pick_prefixes",
    ),
    "tsmc_widgets.figures": (
        "bounds_figure", "frontier_figure", "gap_figure", "kl_forest_figure", "log_z_histogram",
        "profiles_figure", "psi_scatter",
    ),
    "tsmc_widgets.widgets": (
        "CompareSession", "ParticleView", "RunPanels", "TrainSession", "WatchSMC", "Workbench",
    ),
}  # fmt: skip
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    """Load a public name from its home."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'tsmc_widgets' has no attribute {name!r}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Public names, for completion."""
    return [*globals(), *__all__]
