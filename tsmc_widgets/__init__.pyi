"""Public names and where they live: read by `lazy_loader`, editors and type checkers."""

from .course import check as check
from .evaluation import (
    BoundsTable as BoundsTable,
    Divergences as Divergences,
    LogZ as LogZ,
    LogZBounds as LogZBounds,
    all_prefixes as all_prefixes,
    bellman_error as bellman_error,
    bracket_log_z as bracket_log_z,
    compare_log_psi as compare_log_psi,
    factor_breakdown as factor_breakdown,
    kl_divergences as kl_divergences,
    log_z_bounds as log_z_bounds,
    log_z_bounds_given as log_z_bounds_given,
    pick_prefixes as pick_prefixes,
    power_sweep as power_sweep,
    twist_report as twist_report,
)
from .experiments.compare import (
    Comparison as Comparison,
    compare as compare,
)
from .experiments.execute import execute as execute
from .experiments.runs import run_islands as run_islands
from .experiments.result_table import ResultTable as ResultTable
from .experiments.runs import map_runs as map_runs
from .experiments.spec import (
    RunSpec as RunSpec,
    Training as Training,
)
from .figures import (
    bounds_figure as bounds_figure,
    calibration_figure as calibration_figure,
    frontier_figure as frontier_figure,
    gains_figure as gains_figure,
    gap_figure as gap_figure,
    kl_forest_figure as kl_forest_figure,
    log_z_histogram as log_z_histogram,
    power_figure as power_figure,
    profiles_figure as profiles_figure,
    psi_scatter as psi_scatter,
    where_figure as where_figure,
    target_figure as target_figure,
)
from .learning import (
    ConstantRate as ConstantRate,
    FallingRate as FallingRate,
    TwistTrainer as TwistTrainer,
)
from .models.huggingface import HuggingFaceLM as HuggingFaceLM
from .models.loading import (
    load_classifier as load_classifier,
    load_language_model as load_language_model,
)
from .models.tabular import TabularLM as TabularLM
from .models.tempered import Tempered as Tempered
from .smc import (
    Always as Always,
    Base as Base,
    ESSBelow as ESSBelow,
    EveryNSteps as EveryNSteps,
    ModelProposal as ModelProposal,
    Never as Never,
    SMCConfig as SMCConfig,
    SMCSession as SMCSession,
    SMCTrace as SMCTrace,
    TwistInduced as TwistInduced,
    allow_memory as allow_memory,
    exact as exact,
    run_conditional_smc as run_conditional_smc,
    run_smc as run_smc,
    start_smc as start_smc,
)
from .targets import (
    AvoidsToken as AvoidsToken,
    AvoidsWord as AvoidsWord,
    ClassConditional as ClassConditional,
    ClassProbability as ClassProbability,
    Constant as Constant,
    ContainsToken as ContainsToken,
    ContainsWord as ContainsWord,
    Continuation as Continuation,
    CountToken as CountToken,
    FullMatch as FullMatch,
    Grammar as Grammar,
    Infilling as Infilling,
    JSONSchema as JSONSchema,
    Length as Length,
    MatchesRegex as MatchesRegex,
    Mixture as Mixture,
    Potential as Potential,
    RewardThreshold as RewardThreshold,
    Target as Target,
    TemperedReward as TemperedReward,
    TextFunction as TextFunction,
    TokenFunction as TokenFunction,
)
from .targets.classifier import own_caches as own_caches
from .targets.functions import (
    find_function as find_function,
    register_function as register_function,
)
from .targets.problems import (
    PROBLEMS as PROBLEMS,
    load_problem as load_problem,
)
from .twists import (
    BodyTwist as BodyTwist,
    ConditionalBodyTwist as ConditionalBodyTwist,
    ConditionalHeadTwist as ConditionalHeadTwist,
    LinearHeadTwist as LinearHeadTwist,
    LookAheadTwist as LookAheadTwist,
    LoRATwist as LoRATwist,
    MLPHeadTwist as MLPHeadTwist,
    PowerRamp as PowerRamp,
    TableHeadTwist as TableHeadTwist,
    TableTwist as TableTwist,
    TemperedTwist as TemperedTwist,
    TiedHeadTwist as TiedHeadTwist,
    TrainableTwist as TrainableTwist,
    default_twist as default_twist,
    load_twist as load_twist,
    save_twist as save_twist,
    shipped_twists as shipped_twists,
)
from .widgets import (
    CompareSession as CompareSession,
    ParticleView as ParticleView,
    RunPanels as RunPanels,
    TrainSession as TrainSession,
    TwistDebugger as TwistDebugger,
    WatchSMC as WatchSMC,
    Workbench as Workbench,
)

__version__: str
