"""The controls of a watched run: ipywidgets whose values are a ``RunSettings``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ipywidgets as ipw

from tsmc_widgets.smc.resampling import SCHEMES
from tsmc_widgets.widgets.settings import Judges, RunSettings

PROMPTS = ("I bought this", "Once upon a time there was a")
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
        stars = ("stars", "star_beta") if judges.stars is not None else ()
        hostility = ("hostility", "hostility_at_least", "hostility_beta")
        hostility = hostility if judges.hostility is not None else ()
        groups = [
            self._group("Text", "prompt", "num_steps", "num_particles", "seed"),
            self._group("Potential φ: which texts", "contains", "avoids", *stars, *hostility),
            self._group("Sampler", "twist", "proposal", "resampler", "ess_threshold"),
        ]
        layout = {"flex_flow": "row wrap", "width": "100%", "padding": "4px 0 4px 14px"}
        super().__init__(groups, layout=layout)
        self._show_what_matters()
        for name, field in self.fields.items():
            field.observe(lambda change, name=name: self._note(name, change["new"]), "value")

    def set(self, **values: Any) -> None:
        """Move controls from code, as a hand would."""
        for name, value in values.items():
            self.fields[name].value = value

    def _note(self, name: str, value: Any) -> None:
        self.settings = replace(self.settings, **{name: value})
        self._show_what_matters()
        self._changed(self.settings)

    def _show_what_matters(self) -> None:
        """Controls that would do nothing now are disabled or away, so that none seems broken."""
        now, fields = self.settings, self.fields
        fields["star_beta"].disabled = now.stars == 0
        shown = {"hostility_at_least": "threshold", "hostility_beta": "tempered"}
        for name, choice in shown.items():
            fields[name].layout.display = None if now.hostility == choice else "none"
        fields["proposal"].disabled = now.twist == "none"

    def _group(self, title: str, *names: str) -> ipw.VBox:
        heading = ipw.Label(title, style={"font_weight": "600"})
        children = [heading, *(self.fields[name] for name in names)]
        return ipw.VBox(children, layout={"flex": "1 1 280px", "padding": "0 18px 6px 0"})

    def _make_fields(self, now: RunSettings) -> dict[str, ipw.ValueWidget]:
        def dress(kind: type, description: str, tooltip: str, **options: Any) -> Any:
            return kind(
                description=description,
                tooltip=tooltip,
                style={"description_width": _LABEL},
                layout={"width": "auto", "margin": "1px 0"},
                **options,
            )

        return (
            _text_fields(dress, now) | _potential_fields(dress, now) | _sampler_fields(dress, now)
        )


def _text_fields(dress: Callable[..., Any], now: RunSettings) -> dict[str, Any]:
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


def _potential_fields(dress: Callable[..., Any], now: RunSettings) -> dict[str, Any]:
    star_names = [("any", 0), *((f"{n} star{'s' * (n > 1)}", n) for n in range(1, 6))]
    hostility = [
        ("any", "any"),
        ("score at least η", "threshold"),
        ("tempered by β", "tempered"),
    ]
    text = {"continuous_update": False, "placeholder": "words, commas between"}
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


def _sampler_fields(dress: Callable[..., Any], now: RunSettings) -> dict[str, Any]:
    return {
        "twist": dress(
            ipw.Dropdown,
            "twist ψ",
            "None waits for phi at the last step; look-ahead asks it about the text so far",
            value=now.twist,
            options=[("none: ψ = 1", "none"), ("look-ahead", "look-ahead")],
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
            readout_format=".2f",
        ),
    }
