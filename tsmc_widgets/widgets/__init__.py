"""Widgets for notebooks: they hold sessions and show traces, and compute nothing themselves."""

from tsmc_widgets.widgets.particle_view import ParticleView

__all__ = ["ParticleView"]
