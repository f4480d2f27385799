"""Plotly figures: pure functions from tables, in one theme, light and dark."""

from tsmc_widgets.errors import extras_named

with extras_named(__name__):
    from tsmc_widgets.figures.evaluation_figures import (
        bounds_figure,
        frontier_figure,
        gap_figure,
        kl_forest_figure,
        psi_scatter,
    )
    from tsmc_widgets.figures.run_figures import (
        calibration_figure,
        gains_figure,
        log_z_histogram,
        power_figure,
        profiles_figure,
        target_figure,
        where_figure,
    )
    from tsmc_widgets.figures.theme import THEMES, Theme, theme_of

__all__ = [
    "THEMES",
    "Theme",
    "bounds_figure",
    "calibration_figure",
    "frontier_figure",
    "gains_figure",
    "gap_figure",
    "kl_forest_figure",
    "log_z_histogram",
    "power_figure",
    "profiles_figure",
    "psi_scatter",
    "target_figure",
    "theme_of",
    "where_figure",
]
