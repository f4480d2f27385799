"""How good a twist or proposal is: bounds on log Z and what follows from them."""

from tsmc_widgets.evaluation.baselines import BASELINES, BaselineRun, run_baseline, summary_frame
from tsmc_widgets.evaluation.bellman import BellmanError, bellman_error
from tsmc_widgets.evaluation.bounds import ConditionalLogZBounds, log_z_bounds, log_z_bounds_given
from tsmc_widgets.evaluation.bracket import Bracket, BracketSearch, bracket_log_z
from tsmc_widgets.evaluation.diagnosis import Finding
from tsmc_widgets.evaluation.divergences import Divergences, KLEstimate, kl_divergences
from tsmc_widgets.evaluation.estimates import (
    BoundsTable,
    LogZ,
    LogZBounds,
    MeanOverRuns,
    PooledOverRuns,
)
from tsmc_widgets.evaluation.run_quality import (
    FactorShare,
    factor_breakdown,
    increment_variance,
    profiles,
    run_diagnostics,
)
from tsmc_widgets.evaluation.twist_quality import (
    Prefixes,
    PsiComparison,
    all_prefixes,
    compare_log_psi,
    estimate_step_divergences,
    pick_prefixes,
    roll_out,
    step_divergences,
)
from tsmc_widgets.evaluation.twist_report import TwistReport, twist_report
from tsmc_widgets.evaluation.what_if import Fork, fork, power_sweep

__all__ = [
    "BASELINES",
    "BaselineRun",
    "BellmanError",
    "BoundsTable",
    "Bracket",
    "BracketSearch",
    "ConditionalLogZBounds",
    "Divergences",
    "FactorShare",
    "Finding",
    "Fork",
    "KLEstimate",
    "LogZ",
    "LogZBounds",
    "MeanOverRuns",
    "PooledOverRuns",
    "Prefixes",
    "PsiComparison",
    "TwistReport",
    "all_prefixes",
    "bellman_error",
    "bracket_log_z",
    "compare_log_psi",
    "estimate_step_divergences",
    "factor_breakdown",
    "fork",
    "increment_variance",
    "kl_divergences",
    "log_z_bounds",
    "log_z_bounds_given",
    "pick_prefixes",
    "power_sweep",
    "profiles",
    "roll_out",
    "run_baseline",
    "run_diagnostics",
    "step_divergences",
    "summary_frame",
    "twist_report",
]
