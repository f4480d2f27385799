"""How good a twist or proposal is: bounds on log Z and what follows from them."""

from tsmc_widgets.evaluation.bounds import LogZBounds, log_z_bounds

__all__ = ["LogZBounds", "log_z_bounds"]
