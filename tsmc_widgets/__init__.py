"""Twisted Sequential Monte Carlo on language models, made visible.

Importing the package is cheap: each public name (listed in ``__init__.pyi``) is imported when it is
first used, and transformers, plotly and ipywidgets only when something needs them.
"""

from tsmc_widgets.errors import attach_lazy_names

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = attach_lazy_names(__name__, __file__)
