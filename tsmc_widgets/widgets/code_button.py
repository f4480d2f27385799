"""A button that copies a text, and the looks of the page around it."""

from __future__ import annotations

from pathlib import Path

import anywidget
import traitlets

_HERE = Path(__file__).parent


class CodeButton(anywidget.AnyWidget):
    """Copies ``text`` to the clipboard; shows it where the browser does not let it.

    Attributes:
        text: any text.
    """

    _esm = (_HERE / "js" / "code_button.js").read_text("utf-8")
    _css = (_HERE / "workbench.css").read_text("utf-8")

    text = traitlets.Unicode("").tag(sync=True)
