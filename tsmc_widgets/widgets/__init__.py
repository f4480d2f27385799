"""Widgets for notebooks: they hold sessions and show traces; the numbers come from below."""

from tsmc_widgets.widgets.compare_page import CompareSession, CompareSettings
from tsmc_widgets.widgets.compare_view import CompareView
from tsmc_widgets.widgets.lesson import TrainSettings
from tsmc_widgets.widgets.particle_view import ParticleView
from tsmc_widgets.widgets.run_panels import RunPanels
from tsmc_widgets.widgets.settings import Judges, RunSettings
from tsmc_widgets.widgets.train_page import TrainSession
from tsmc_widgets.widgets.train_view import TrainView
from tsmc_widgets.widgets.workbench import WatchSMC, Workbench
from tsmc_widgets.widgets.workbench_state import WorkbenchState

__all__ = [
    "CompareSession",
    "CompareSettings",
    "CompareView",
    "Judges",
    "ParticleView",
    "RunPanels",
    "RunSettings",
    "TrainSession",
    "TrainSettings",
    "TrainView",
    "WatchSMC",
    "Workbench",
    "WorkbenchState",
]
