"""Runs that each show one lesson, as buttons."""

from __future__ import annotations

import html
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ipywidgets as ipw

from tsmc_widgets.widgets.controls import NOTHING_ASKED, REVIEW, STORY

_CASTLE = NOTHING_ASKED | {
    "prompt": STORY, "contains": "castle", "num_steps": 20, "seed": 0,
    "resampler": "systematic", "ess_threshold": 0.5,
}  # fmt: skip
_ONE_STAR = NOTHING_ASKED | {
    "prompt": REVIEW, "stars": 1, "star_beta": 10.0, "num_steps": 24, "seed": 0,
    "twist": "look-ahead", "proposal": "base", "resampler": "systematic",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Preset:
    """One lesson.

    Attributes:
        settings: what the controls are set to.
        text: what there is to see, in a sentence or two.
    """

    settings: dict[str, Any]
    text: str


PRESETS: dict[str, Preset] = {
    "Late evidence": Preset(
        _CASTLE | {"twist": "none", "proposal": "base"},
        "Every text must have a castle, and nothing says so before the last step: the ESS stays "
        "at 64, nothing is resampled, and then all weight falls on the few texts that happen to "
        "have one.",
    ),
    "A good twist": Preset(
        _CASTLE | {"twist": "look-ahead", "proposal": "twist-induced"},
        "The same texts with a twist that knows on the way who may still reach a castle: evidence "
        "arrives early, resampling copies the hopeful, and nearly all 64 texts count at the end.",
    ),
    "Why SIS fails": Preset(
        _ONE_STAR | {"ess_threshold": 0.0},
        "Weights multiply from step to step and nothing is resampled: most of the 64 particles "
        "carry no weight long before the end, and are computed for nothing.",
    ),
    "What resampling costs": Preset(
        _ONE_STAR | {"ess_threshold": 1.0, "resampler": "multinomial"},
        "Resampling at every step keeps the ESS high, but families die out by chance: look at the "
        "surviving ancestors, and follow the pale lines that end.",
    ),
    "A bad twist": Preset(
        _ONE_STAR | {"ess_threshold": 0.5, "twist": "reversed"},
        "This twist prefers what φ dislikes: resampling copies the wrong families, and when φ "
        "itself is weighed in at the last step nearly all weight is gone. The mean of Ẑ over many "
        "runs would still be right; one run is useless.",
    ),
}


class PresetBar(ipw.VBox):
    """A button for each lesson, and what it shows.

    Args:
        take: sets the controls.
    """

    def __init__(self, take: Callable[[dict[str, Any]], None]) -> None:
        self.text = ipw.HTML(layout={"margin": "0", "display": "none"})
        self.buttons = {name: _button(name, preset) for name, preset in PRESETS.items()}
        self._take = take
        for name, button in self.buttons.items():
            button.on_click(lambda _, name=name: self.choose(name))
        label = ipw.Label("Lessons", style={"font_weight": "600"})
        row = ipw.Box([label, *self.buttons.values()], layout={"flex_flow": "row wrap"})
        super().__init__([row, self.text], layout={"padding": "4px 0 0 14px", "width": "100%"})

    def choose(self, name: str) -> None:
        """Show a lesson."""
        self._take(PRESETS[name].settings)
        self.show(name)

    def show(self, name: str) -> None:
        """Mark a lesson as the one on show; none where the name is empty."""
        for each, button in self.buttons.items():
            button.button_style = "info" if each == name else ""
        self.text.value = f"<p>{html.escape(PRESETS[name].text)}</p>" if name else ""
        self.text.layout.display = None if name else "none"


def find_preset(settings: Any) -> str:
    """The lesson that these settings show; empty for none."""
    for name, preset in PRESETS.items():
        if all(getattr(settings, field) == value for field, value in preset.settings.items()):
            return name
    return ""


def _button(name: str, preset: Preset) -> ipw.Button:
    layout = {"width": "auto", "margin": "1px 4px 1px 2px"}
    return ipw.Button(description=name, tooltip=preset.text, layout=layout)
