"""Widgets for notebooks: they hold sessions and show traces; the numbers come from below."""

from tsmc_widgets.errors import extras_named

with extras_named(__name__):
    from tsmc_widgets.widgets.compare_page import CompareSession
    from tsmc_widgets.widgets.compare_runs import CompareSettings
    from tsmc_widgets.widgets.front_end import CompareView, DebugView, TrainView
    from tsmc_widgets.widgets.particle_view import ParticleView, RunPanels
    from tsmc_widgets.widgets.train_page import TrainSession
    from tsmc_widgets.widgets.training_run import TrainSettings
    from tsmc_widgets.widgets.twist_debugger import TwistDebugger
    from tsmc_widgets.widgets.watch import Judges, RunSettings, WatchSMC
    from tsmc_widgets.widgets.workbench import Workbench, WorkbenchState

__all__ = [
    "CompareSession",
    "CompareSettings",
    "CompareView",
    "DebugView",
    "Judges",
    "ParticleView",
    "RunPanels",
    "RunSettings",
    "TrainSession",
    "TrainSettings",
    "TrainView",
    "TwistDebugger",
    "WatchSMC",
    "Workbench",
    "WorkbenchState",
]
