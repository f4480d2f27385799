"""An editor for a log phi of one's own, for those who run code in the kernel anyway."""

from __future__ import annotations

import html
import math
import os
from collections.abc import Callable, Sequence

import ipywidgets as ipw
from IPython import get_ipython

from tsmc_widgets.errors import shortened
from tsmc_widgets.targets.functions import (
    TypedFunction,
    register_function,
    registered_function,
    unwrapped,
)
from tsmc_widgets.widgets.controls import Note, button, classed

START = """def log_phi(text):
    # In nats; float("-inf") rules a text out.
    return -abs(len(text.split()) - 12)
"""


def made_by_a_cell() -> bool:
    """Whether a person is just running a cell of a notebook: no app, and no message of a page.

    Front ends name the cell that they send to be run. Voila does not, nor does anything that runs a
    notebook for its visitors; what a page sends later is no request to run code.
    """
    kernel = getattr(get_ipython(), "kernel", None)
    if kernel is None or any(name.startswith("VOILA_") for name in os.environ):
        return False
    if os.environ.get("SERVER_SOFTWARE", "").lower().startswith("voila"):
        return False
    request = kernel.get_parent() or {}
    runs = request.get("header", {}).get("msg_type") == "execute_request"
    return runs and request.get("metadata", {}).get("cellId") is not None


class CodeEditor(ipw.VBox):
    """Source of ``log_phi``, what it gives for a few texts, and a button that takes it.

    Whatever is typed is run in the kernel: never show one to anybody who may not run code there.

    Args:
        name: of the function that is edited; one that was not typed starts again.
        texts: gives the texts of the preview.
        use: called with the name under which the function was registered.
    """

    def __init__(
        self, name: str, texts: Callable[[], Sequence[str]], use: Callable[[str], None]
    ) -> None:
        known = registered_function(name)
        self._texts, self._use = texts, use
        self.area = ipw.Textarea(
            known.source if isinstance(known, TypedFunction) else START,
            rows=6,
            continuous_update=False,
            layout={"width": "auto"},
        )
        self.area.tooltip = "Python that defines log_phi(text)"
        self.button = button("Use this φ", "Run with it")
        self.error = Note("tw-wrong-code", role="alert")
        self.preview = ipw.HTML()
        super().__init__([self.area, self.error, self.preview, self.button])
        classed(self, "tw-code-editor")
        self.area.observe(lambda _: self.check(), "value")
        self.button.on_click(lambda _: self._press())
        self.check()

    def check(self) -> TypedFunction | None:
        """Show what the function gives for the texts, or what is wrong with it."""
        texts = list(self._texts())
        try:
            function = TypedFunction(self.area.value)
            values = [_log_phi(function, text) for text in texts]
        except ValueError as error:
            self.error.say(str(error))
            self.preview.value, self.button.disabled = "", True
            return None
        self.error.say("")
        rows = "".join(
            f"<tr><td>{value:.2f}</td><td>{html.escape(shortened(text, 90))}</td></tr>"
            for value, text in zip(values, texts, strict=True)
        )
        self.preview.value = f"<table><tr><th>log φ</th><th>text</th></tr>{rows}</table>"
        self.button.disabled = False
        return function

    def _press(self) -> None:
        function = self.check()
        if function is not None:
            self._use(register_function(function, name=function.name))


def _log_phi(function: TypedFunction, text: str) -> float:
    found = function(text)
    try:
        value = float(unwrapped(found))
    except (TypeError, ValueError) as error:
        raise ValueError(f"log_phi must return a number, in nats: {error}.") from error
    if math.isnan(value) or value == math.inf:
        raise ValueError(f"log_phi must be a number or −∞; it gave {value} for “{text[:60]}”.")
    return value
