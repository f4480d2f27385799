"""The controls of a watched run: ipywidgets whose values are a ``RunSettings``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import ipywidgets as ipw

from tsmc_widgets.errors import check_one_of
from tsmc_widgets.smc.resampling import SCHEMES
from tsmc_widgets.widgets.settings import Judges, RunSettings

REVIEW, STORY = "I bought this", "Once upon a time there was a"
PROMPTS = (REVIEW, STORY)
NOTHING_ASKED = {"contains": "", "avoids": "", "stars": 0, "hostility": "any", "num_particles": 64}
EXAMPLES: dict[str, dict[str, Any]] = {
    "five-star reviews": {"prompt": REVIEW, "stars": 5, "star_beta": 8.0},
    "one star, nothing broken": {
        "prompt": REVIEW, "stars": 1, "star_beta": 5.0, "avoids": "broke, broken"
    },
    "stories with a castle": {"prompt": STORY, "contains": "castle"},
    "hostile stories (rare)": {
        "prompt": STORY, "hostility": "threshold", "hostility_at_least": 0.0, "num_particles": 256
    },
}  # fmt: skip
"""What the menu of examples asks for, beside ``NOTHING_ASKED``; the sampler stays as it is."""
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000, 2048, 4096)
_LABEL = "92px"


class Controls(ipw.Box):
    """Three groups of controls that stand side by side where there is room.

    Args:
        settings: what they show at first.
        judges: potentials without a classifier get no control.
        changed: called with the new settings after each change.
    """

    def __init__(
        self, settings: RunSettings, judges: Judges, changed: Callable[[RunSettings], None]
    ) -> None:
        self.settings = settings
        self.fields = self._make_fields(settings)
        self._changed = changed
        self._many = False
        stars = ("stars", "star_beta") if judges.stars is not None else ()
        hostility = ("hostility", "hostility_at_least", "hostility_beta")
        hostility = hostility if judges.hostility is not None else ()
        self.example = self._make_example(bool(stars and hostility))
        text = ("prompt", "num_steps", "num_particles", "seed")
        sampler = ("twist", "proposal", "resampler", "ess_threshold")
        groups = [
            self._group("Text", *text, first=self.example, grow=1.4),
            self._group("Potential φ: which texts", "contains", "avoids", *stars, *hostility),
            self._group("Sampler", *sampler),
        ]
        layout = {"flex_flow": "row wrap", "width": "100%", "padding": "4px 0 4px 14px"}
        super().__init__(groups, layout=layout)
        self._show_what_matters()
        self.example.observe(self._take_example, "value")
        for name, field in self.fields.items():
            field.observe(lambda change, name=name: self._note(name, change["new"]), "value")

    def set(self, **values: Any) -> None:
        """Move controls from code, as a hand would; a new run follows the last of them."""
        for name in values:
            check_one_of("the control", name, self.fields)
        before, self._many = self.settings, True
        try:
            for name, value in values.items():
                self.fields[name].value = value
        finally:
            self._many = False
            if self.settings != before:
                self._settle()

    def _note(self, name: str, value: Any) -> None:
        self.settings = replace(self.settings, **{name: value})
        if not self._many:
            self._settle()

    def _settle(self) -> None:
        self._show_what_matters()
        self.example.value = find_example(self.settings)
        self._changed(self.settings)

    def _take_example(self, change: Any) -> None:
        name = change["new"]
        if name and name != find_example(self.settings):
            self.set(**NOTHING_ASKED | EXAMPLES[name])

    def _make_example(self, shown: bool) -> ipw.Dropdown:
        """A menu of whole settings; it says "my own" once a control was moved away from one."""
        field = dress(
            ipw.Dropdown,
            "example",
            "Sets the prompt and the potential",
            options=[("my own", ""), *((name, name) for name in EXAMPLES)],
            value=find_example(self.settings),
        )
        field.layout.display = None if shown else "none"
        return field

    def _show_what_matters(self) -> None:
        """Controls that would do nothing now are disabled or away, so that none seems broken."""
        now, fields = self.settings, self.fields
        shown = {
            "star_beta": now.stars != 0,
            "hostility_at_least": now.hostility == "threshold",
            "hostility_beta": now.hostility == "tempered",
        }
        for name, matters in shown.items():
            fields[name].layout.display = None if matters else "none"
        fields["proposal"].disabled = now.twist == "none"

    def _group(
        self, title: str, *names: str, first: ipw.Widget | None = None, grow: float = 1.0
    ) -> ipw.VBox:
        children = [first, *(self.fields[name] for name in names)]
        return group(title, [child for child in children if child is not None], grow=grow)

    def _make_fields(self, now: RunSettings) -> dict[str, ipw.ValueWidget]:
        return _text_fields(now) | _potential_fields(now) | _sampler_fields(now)


def find_example(settings: RunSettings) -> str:
    """The example that these settings show; empty for none."""
    for name, example in EXAMPLES.items():
        asked = NOTHING_ASKED | example
        # How many particles look at it is no part of what is asked.
        asked.pop("num_particles")
        if all(getattr(settings, field) == value for field, value in asked.items()):
            return name
    return ""


def group(title: str, children: Sequence[ipw.Widget], *, grow: float = 1.0) -> ipw.VBox:
    """Controls under a heading, as wide as ``grow`` says beside others."""
    heading = ipw.Label(title, style={"font_weight": "600"})
    layout = {"flex": f"{grow} 1 230px", "padding": "0 18px 6px 0"}
    return ipw.VBox([heading, *children], layout=layout)


def dress(kind: type, description: str, tooltip: str, **options: Any) -> Any:
    """A control with its name beside it, and what it is for as a tooltip."""
    return kind(
        description=description,
        tooltip=tooltip,
        style={"description_width": _LABEL},
        layout={"width": "auto", "margin": "1px 0"},
        **options,
    )


def _text_fields(now: RunSettings) -> dict[str, Any]:
    sizes = sorted({*SIZES, now.num_particles})
    return {
        "prompt": dress(
            ipw.Combobox,
            "prompt",
            "The text that every particle starts from",
            value=now.prompt,
            options=PROMPTS,
            continuous_update=False,
        ),
        "num_steps": dress(
            ipw.IntSlider, "tokens T", "Tokens to write", value=now.num_steps, min=1, max=64
        ),
        "num_particles": dress(
            ipw.SelectionSlider,
            "particles K",
            "Texts written side by side",
            value=now.num_particles,
            options=sizes,
        ),
        "seed": dress(
            ipw.BoundedIntText, "seed", "Equal seeds give equal runs", value=now.seed, max=2**31 - 1
        ),
    }


def _potential_fields(now: RunSettings) -> dict[str, Any]:
    star_names = [("any", 0), *((f"{n} star{'s' * (n > 1)}", n) for n in range(1, 6))]
    hostility = [
        ("any", "any"),
        ("score at least η", "threshold"),
        ("tempered by β", "tempered"),
    ]
    text = {"continuous_update": False, "placeholder": "word, word"}
    return {
        "contains": dress(
            ipw.Text, "contains", "Each of these words must occur", value=now.contains, **text
        ),
        "avoids": dress(
            ipw.Text, "avoids", "None of these words may occur", value=now.avoids, **text
        ),
        "stars": dress(
            ipw.Dropdown,
            "stars",
            "Reviews that a classifier gives this many stars",
            value=now.stars,
            options=star_names,
        ),
        "star_beta": dress(
            ipw.FloatSlider,
            "stars β",
            "p(stars | text) to this power: 0 asks nothing, 10 insists",
            value=now.star_beta,
            min=0.0,
            max=10.0,
            step=0.5,
            readout_format=".1f",
        ),
        "hostility": dress(
            ipw.Dropdown,
            "hostility",
            "What a classifier's hostility score must be",
            value=now.hostility,
            options=hostility,
        ),
        "hostility_at_least": dress(
            ipw.FloatSlider,
            "score ≥ η",
            "phi is 1 at this score and above, else 0",
            value=now.hostility_at_least,
            min=-8.0,
            max=8.0,
            step=0.5,
            readout_format=".1f",
        ),
        "hostility_beta": dress(
            ipw.FloatSlider,
            "hostility β",
            "phi = exp(beta score) above zero; below it phi = p(calm)^-beta",
            value=now.hostility_beta,
            min=-5.0,
            max=5.0,
            step=0.25,
            readout_format=".2f",
        ),
    }


def _sampler_fields(now: RunSettings) -> dict[str, Any]:
    return {
        "twist": dress(
            ipw.Dropdown,
            "twist ψ",
            "None waits for phi at the last step; look-ahead asks it about the text so far",
            value=now.twist,
            options=[
                ("none: ψ = 1", "none"),
                ("look-ahead", "look-ahead"),
                ("look-ahead reversed (bad)", "reversed"),
            ],
        ),
        "proposal": dress(
            ipw.Dropdown,
            "proposal q",
            "Where tokens are drawn from",
            value=now.proposal,
            options=[("base model p₀", "base"), ("twist-induced p₀ ψ", "twist-induced")],
        ),
        "resampler": dress(
            ipw.Dropdown,
            "resampling",
            "How ancestors are drawn",
            value=now.resampler,
            options=sorted(SCHEMES),
        ),
        "ess_threshold": dress(
            ipw.FloatSlider,
            "ESS below",
            "Resample when the effective sample size is below this share of K; 0 never",
            value=now.ess_threshold,
            min=0.0,
            max=1.0,
            step=0.05,
            readout_format=".0%",
        ),
    }
