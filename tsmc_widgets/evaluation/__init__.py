"""How good a twist or proposal is: bounds on log Z and what follows from them."""

from tsmc_widgets.evaluation.bounds import log_z_bounds
from tsmc_widgets.evaluation.bounds_table import BoundsTable, LogZBounds
from tsmc_widgets.evaluation.intervals import MeanOverRuns, PooledOverRuns

__all__ = ["BoundsTable", "LogZBounds", "MeanOverRuns", "PooledOverRuns", "log_z_bounds"]
