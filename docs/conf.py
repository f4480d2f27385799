"""Sphinx with MyST: pages in Markdown, and a reference from docstrings by the same generator.

Chosen over MkDocs and Zensical, tried on one page each: a reference by autodoc, and a missing
page or anchor fails the build without a network.
"""

import sys
from pathlib import Path

import tsmc_widgets

sys.path.insert(0, str(Path(__file__).parent))

project = "tsmc_widgets"
author = "tsmc_widgets contributors"
release = version = tsmc_widgets.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "mathml"]
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
exclude_patterns = ["tables/*.md"]
html_theme = "furo"
html_title = "tsmc_widgets"
html_extra_path = ["extra"]
html_copy_source = False
autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_use_ivar = True
