"""A button that copies a text, and the looks of the page around it."""

from __future__ import annotations

import anywidget
import traitlets

from tsmc_widgets.widgets.front_end import join_modules


class CodeButton(anywidget.AnyWidget):
    """Copies ``text`` to the clipboard; shows it where the browser does not let it.

    Attributes:
        text: any text.
    """

    _esm = join_modules("js/code_button.js")
    _css = join_modules("workbench.css")

    text = traitlets.Unicode("").tag(sync=True)
