"""Base models p0: the protocol, exact tables, and any causal model of transformers."""

from tsmc_widgets.errors import attach_lazy_names

__getattr__, __dir__, __all__ = attach_lazy_names(__name__, __file__)
