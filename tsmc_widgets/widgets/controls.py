"""How the pages make their controls: each kind of ipywidget once, and boxes of them."""

from __future__ import annotations

import html
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import ipywidgets as ipw
import traitlets
from IPython import get_ipython

from tsmc_widgets.errors import check_one_of, shortened
from tsmc_widgets.experiments.code import words_of
from tsmc_widgets.experiments.spec import RunSpec
from tsmc_widgets.smc.resampling import SCHEMES

REVIEW, STORY = "I bought this", "Once upon a time there was a"
PROMPTS = (REVIEW, STORY)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000, 2048, 4096)
MOST_SEED = 2**31 - 1
STAR_NAMES = [f"{n} star{'s' * (n > 1)}" for n in range(1, 6)]


def dress(
    kind: type, description: str, tooltip: str, label: str = "92px", margin: str = "1px 0",
    **options: Any,
) -> Any:  # fmt: skip
    """A control with its name beside it, ``label`` wide, and what it is for as a tooltip."""
    return kind(
        description=description,
        tooltip=tooltip,
        style={"description_width": label},
        layout={"width": "auto", "margin": margin},
        **options,
    )


def menu(name: str, tooltip: str, value: Any, options: Sequence[Any]) -> ipw.Dropdown:
    """One of several choices."""
    return dress(ipw.Dropdown, name, tooltip, value=value, options=options)


def text(name: str, tooltip: str, value: str = "", placeholder: str = "") -> ipw.Text:
    """A line of text, which counts once it is complete."""
    return dress(
        ipw.Text, name, tooltip, value=value, placeholder=placeholder, continuous_update=False
    )


class Slider(ipw.FloatSlider):
    """A slider of decimal numbers: the page adds steps up, and 10 comes as 10.000000000000002."""

    @traitlets.validate("value")
    def _validate_value(self, proposal: Any) -> float:
        return float(f"{super()._validate_value(proposal):.12g}")


def slider(
    name: str, tooltip: str, value: float, low: float, high: float, step: float, show: str = ".2f"
) -> ipw.FloatSlider:
    """A number, shown in the format ``show``."""
    options: dict[str, Any] = {"min": low, "max": high, "step": step, "readout_format": show}
    return dress(Slider, name, tooltip, value=value, **options)


def sizes(name: str, tooltip: str, value: int, options: Iterable[int]) -> ipw.SelectionSlider:
    """One of several sizes, from small to large."""
    options = sorted({*options, value})
    return dress(ipw.SelectionSlider, name, tooltip, value=value, options=options)


def seed_field(value: int, what: str = "runs", most: int = MOST_SEED) -> ipw.BoundedIntText:
    """The seed of all noise."""
    tooltip = f"Equal seeds give equal {what}"
    return dress(ipw.BoundedIntText, "seed", tooltip, value=value, max=most)


def particles(value: int) -> ipw.SelectionSlider:
    """K."""
    return sizes("particles K", "Texts written side by side", value, SIZES)


def proposal(value: str, induced: str) -> ipw.Dropdown:
    """q: the base model, or what the twist induces, under the name ``induced``."""
    options = [("base model p₀", "base"), ("twist-induced p₀ ψ", induced)]
    return menu("proposal q", "Where tokens are drawn from", value, options)


def scheme(name: str, value: str) -> ipw.Dropdown:
    """How ancestors are drawn."""
    return menu(name, "How ancestors are drawn", value, sorted(SCHEMES))


def ess_slider(tooltip: str, value: float) -> ipw.FloatSlider:
    """When to resample, as a share of K."""
    return slider("ESS below", tooltip, value, 0.0, 1.0, 0.05, ".0%")


def close_whole(*widgets: ipw.Widget) -> None:
    """Close widgets with their children, layouts and styles: ipywidgets keeps all that is open."""
    left = list(widgets)
    while left:
        widget = left.pop()
        if widget.comm is None:
            continue
        # First, so that a page drops a whole at once.
        ipw.Widget.close(widget)
        for value in widget.trait_values().values():
            held = value if isinstance(value, list | tuple) else [value]
            left += [each for each in held if isinstance(each, ipw.Widget)]


class ClosesWhole(ipw.Widget):
    """A widget that takes all of its parts with it."""

    def close(self) -> None:
        """Take it from the page."""
        close_whole(self)

    def __del__(self) -> None:
        """Nothing is left to close where Python ends."""
        if not sys.is_finalizing():
            super().__del__()


_IN_CELLS: WeakKeyDictionary[ipw.Widget, tuple[str, str]] = WeakKeyDictionary()
"""The cell that made a widget, and which of its runs that was."""


def _request() -> Mapping[str, Any]:
    """The message that the kernel answers now; empty where there is none."""
    kernel = getattr(get_ipython(), "kernel", None)
    return {} if kernel is None else kernel.get_parent() or {}


def made_by_a_cell() -> bool:
    """Whether a person is just running a cell of a notebook: no app, and no message of a page.

    Front ends name the cell that they send to be run. Voila does not, nor does anything that runs a
    notebook for its visitors; what a page sends later is no request to run code.
    """
    if any(name.startswith("VOILA_") for name in os.environ):
        return False
    if os.environ.get("SERVER_SOFTWARE", "").lower().startswith("voila"):
        return False
    request = _request()
    runs = request.get("header", {}).get("msg_type") == "execute_request"
    return runs and request.get("metadata", {}).get("cellId") is not None


def replace_in_cell(widget: ipw.Widget) -> None:
    """Close what an earlier run of this cell has made: the page has dropped it, nothing else has.

    Without a front end that names its cells, nothing is closed.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    request = _request()
    cell = request.get("metadata", {}).get("cellId")
    if cell is None:
        return
    this_run = (cell, request["header"]["msg_id"])
    _IN_CELLS[widget] = this_run
    for other, run in list(_IN_CELLS.items()):
        if run[0] == cell and run != this_run:
            other.close()
            del _IN_CELLS[other]


class Note(ipw.HTML):
    """A sentence on the page, as plain text; out of the way while it is empty.

    Args:
        css: a class for the style sheets.
        role: for screen readers, such as "alert".
        tag: of the HTML element.
        **layout: of the widget.
    """

    def __init__(
        self, css: str = "tw-note", *, role: str = "", tag: str = "span", **layout: str
    ) -> None:
        super().__init__(layout=layout)
        self._open = f'<{tag} role="{role}">' if role else f"<{tag}>"
        self._close = f"</{tag}>"
        if css:
            self.add_class(css)
        self.say("")

    def say(self, text: str, bold: str = "") -> Note:
        """Show a text, after one in bold print where there is one; gives the note itself."""
        head = f"<b>{html.escape(bold)}</b> " if bold else ""
        shown = f"{self._open}{head}{html.escape(text)}{self._close}"
        self.value = shown if text or bold else ""
        self.layout.display = None if text or bold else "none"
        return self


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Rows of texts under their heads."""

    def row(cells: Sequence[str], tag: str) -> str:
        return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"

    return f"<table>{row(heads, 'th')}{''.join(row(cells, 'td') for cells in rows)}</table>"


def classed(widget: ipw.DOMWidget, *names: str) -> Any:
    """The widget itself, with classes for the style sheets."""
    for name in names:
        widget.add_class(name)
    return widget


def button(words: str, tooltip: str | None = None, kind: type = ipw.Button, **options: Any) -> Any:
    """A button as wide as its words; of ``kind`` ToggleButton, one that stays pressed."""
    return kind(description=words, tooltip=tooltip, layout={"width": "auto"}, **options)


def unfold(pressed: ipw.ToggleButton, box: ipw.Box) -> None:
    """Show a box while a button is pressed."""

    def show(_: Any = None) -> None:
        box.layout.display = None if pressed.value else "none"

    pressed.observe(show, "value")
    show()


def put(field: ipw.ValueWidget, value: Any) -> None:
    """Show a value, making room for it where the control has none."""
    if isinstance(field, ipw.SelectionSlider) and value not in field.options:
        field.options = sorted({*field.options, value})
    if isinstance(field, ipw.FloatSlider | ipw.IntSlider):
        field.min, field.max = min(field.min, value), max(field.max, value)
    field.value = value


def show_only(fields: Mapping[str, ipw.Widget], shown: Mapping[str, bool]) -> None:
    """Put away the controls that would do nothing now, so that none seems broken."""
    for name, matters in shown.items():
        fields[name].layout.display = None if matters else "none"


def group(title: str, children: Sequence[ipw.Widget], *, grow: float = 1.0) -> ipw.VBox:
    """Controls under a heading, as wide as ``grow`` says beside others."""
    heading = ipw.Label(title, style={"font_weight": "600"})
    layout = {"flex": f"{grow} 1 230px", "padding": "0 18px 6px 0"}
    return ipw.VBox([heading, *children], layout=layout)


SENTENCE = {
    "size": "", "steps": "write", "prompt": "after", "model": "with", "phi": "; log φ =",
    "twist": "; ψ =", "proposal": "; q =", "rule": "; resample",
}  # fmt: skip
"""The run in one sentence: what stands before each of its phrases."""


def phrases_of(spec: RunSpec) -> dict[str, str]:
    """Each phrase of the sentence that says what is run."""
    words = words_of(spec)
    size = f"{words['K']} particle{'s' * (words['K'] != 1)}"
    twist = words["twist ψ"] if spec.method != "none" else "1"
    model = Path(words["model"])
    return {
        "size": size if words["R"] == 1 else f"{size} in {words['R']} runs",
        "steps": f"{words['T']} token{'s' * (words['T'] != 1)}",
        "prompt": words["prompt"] or "no prompt",
        "model": model.name if model.is_absolute() else words["model"],
        "phi": words["φ"],
        "twist": twist if spec.twist_power == 1 else f"({twist})^{spec.twist_power:g}",
        "proposal": "p₀ψ (twist-induced)" if words["proposal q"] == "twist-induced" else "p₀",
        "rule": {"ess": f"below {spec.ess_threshold:.0%}", "always": "at every step"}.get(
            spec.rule[0], spec.rule[0]
        ),
    }


def sentence_of(spec: RunSpec) -> str:
    """The run in one sentence."""
    phrases = phrases_of(spec)
    said = " ".join(f"{before} {phrases[name]}" for name, before in SENTENCE.items())
    return said.strip().replace(" ;", ";")


class Rail(ipw.VBox):
    """The run as one sentence; each phrase is a button that unfolds its controls below.

    Args:
        folds: the controls of each phrase of ``SENTENCE``; phrases without any are left out.
    """

    def __init__(self, folds: Mapping[str, Sequence[ipw.Widget]]) -> None:
        self.phrases: dict[str, ipw.ToggleButton] = {}
        said, boxes = [], []
        for name, fields in folds.items():
            phrase = classed(ipw.ToggleButton(name in ("size", "phi")), "tw-phrase")
            phrase.tooltip = "Change this"
            boxes.append(classed(ipw.VBox(list(fields)), "tw-fold"))
            unfold(phrase, boxes[-1])
            self.phrases[name] = phrase
            words = SENTENCE[name]
            if said and words.startswith(";"):
                said[-1].add_class("tw-ends")  # Else it could begin a line.
            said += [ipw.Label(words.removeprefix("; ")), phrase] if words else [phrase]
        sentence = classed(ipw.Box(said), "tw-sentence")
        super().__init__([sentence, *boxes])
        self.add_class("tw-rail")

    def say(self, spec: RunSpec) -> None:
        """Show another run."""
        for name, text in phrases_of(spec).items():
            if name in self.phrases:
                self.phrases[name].description = shortened(text, 60)


def cockpit(rail: ipw.Widget, main: ipw.Widget) -> ipw.Box:
    """Controls beside what comes of them."""
    return classed(ipw.Box([rail, classed(main, "tw-main")]), "tw-cockpit")


class Quiet:
    """Controls whose changes by the page itself are told from those of a person."""

    _quiet = False

    @contextmanager
    def _quietly(self) -> Iterator[None]:
        """Change controls without being called back."""
        before, self._quiet = self._quiet, True
        try:
            yield
        finally:
            self._quiet = before


class SettingsBox(Quiet, ipw.Box):
    """Groups of controls, side by side where there is room; their values are a dataclass.

    Args:
        settings: what they show at first.
        fields: the controls, by the name of their field.
        groups: how they are arranged.
        changed: called with the new settings after each change.
    """

    def __init__(
        self,
        settings: Any,
        fields: dict[str, ipw.ValueWidget],
        groups: Sequence[ipw.Widget],
        changed: Callable[[Any], None],
    ) -> None:
        self.settings, self.fields = settings, fields
        self._changed = changed
        layout = {"flex_flow": "row wrap", "width": "100%", "padding": "4px 0 4px 14px"}
        super().__init__(groups, layout=layout)
        self._show_what_matters()
        for name, field in fields.items():
            field.observe(lambda change, name=name: self._note({name: change["new"]}), "value")

    def set(self, **values: Any) -> None:
        """Move controls from code, as a person would; ``changed`` is called once."""
        for name in values:
            check_one_of("the control", name, self.names())
        self._take(self._follow(values))

    def names(self) -> list[str]:
        """What ``set`` can move."""
        return list(self.fields)

    def _follow(self, values: dict[str, Any]) -> Any:
        """The settings after a change."""
        return replace(self.settings, **values)

    def _note(self, values: dict[str, Any]) -> None:
        if not self._quiet:
            self._take(self._follow(values))

    def _take(self, settings: Any) -> None:
        with self._quietly():
            self._put(settings)
        before, self.settings = self.settings, settings
        self._show_what_matters()
        if settings != before:
            self._changed(settings)

    def _put(self, settings: Any) -> None:
        """Show the settings in every control."""
        for name, field in self.fields.items():
            put(field, getattr(settings, name))

    def _show_what_matters(self) -> None:
        """Disable or put away the controls that would do nothing now."""


def split_words(text: str) -> list[str]:
    """The words and phrases between the commas."""
    return [part.strip() for part in text.split(",") if part.strip()]
