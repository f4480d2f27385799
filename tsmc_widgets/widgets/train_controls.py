"""The controls of a training: ipywidgets whose values are a ``TrainSettings``."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import ipywidgets as ipw

from tsmc_widgets.errors import check_one_of
from tsmc_widgets.widgets.controls import dress, group
from tsmc_widgets.widgets.problems import (
    FORMS,
    LEAST_RATE,
    METHODS,
    MOST_RATE,
    MOST_SEED,
    PROBLEMS,
    TrainSettings,
)

METHOD_NAMES = {
    "ctl": "CTL: contrastive twist learning",
    "ctl+dpg": "CTL + DPG: both, 1 to 10",
    "rl": "RL: path consistency",
    "sixo": "SIXO: classify σ against p₀",
    "fudge": "FUDGE: predict φ from a prefix",
    "nvi": "NVI: nested variational inference",
    "cd": "CD: regress φ on a prefix",
    "dpg": "DPG: policy gradient (proposal only)",
    "ppo": "PPO: clipped policy (proposal only)",
}
BATCHES = (10, 20, 50, 100, 200, 500)
UPDATES = (20, 40, 60, 120, 240, 500, 1000, 2000)
SIZES = (1, 2, 4, 8, 16, 32)


class TrainControls(ipw.Box):
    """Three groups of controls, side by side where there is room.

    Args:
        settings: what they show at first.
        changed: called with the new settings after each change.
    """

    def __init__(self, settings: TrainSettings, changed: Callable[[TrainSettings], None]) -> None:
        self.settings = settings
        self.fields = _task_fields(settings) | _training_fields(settings)
        self.rivals = {
            name: ipw.Checkbox(
                name in settings.rivals,
                description=name.upper().replace("+", " + "),
                indent=False,
                layout={"width": "104px" if "+" in name else "82px", "margin": "0"},
            )
            for name in METHODS
        }
        self._changed = changed
        self._many = False
        label = {"width": "92px", "justify_content": "flex-end", "margin": "0 8px 0 0"}
        race = ipw.HBox(
            [ipw.Label("race", layout=label),
             ipw.HBox(list(self.rivals.values()), layout={"flex_flow": "row wrap", "flex": "1"})],
            layout={"margin": "1px 0"},
        )  # fmt: skip
        fields = self.fields
        groups = [
            group("What to learn", [fields["problem"], fields["method"], race], grow=1.5),
            group("Twist ψ", [fields[name] for name in ("form", "learning_rate", "batch_size")]),
            group("Training", [fields[n] for n in ("num_updates", "bound_particles", "seed")]),
        ]
        layout = {"flex_flow": "row wrap", "width": "100%", "padding": "4px 0 4px 14px"}
        super().__init__(groups, layout=layout)
        self._show_what_matters()
        for name, field in fields.items():
            field.observe(lambda change, name=name: self._note({name: change["new"]}), "value")
        for box in self.rivals.values():
            box.observe(lambda _: self._note({"rivals": self._ticked()}), "value")

    def set(self, **values: Any) -> None:
        """Move controls from code, as a hand would."""
        for name in values:
            check_one_of("the control", name, [*self.fields, "rivals"])
        self._show(_follow(self.settings, values))

    def _note(self, values: dict[str, Any]) -> None:
        if not self._many:
            self._show(_follow(self.settings, values))

    def _show(self, settings: TrainSettings) -> None:
        """Put every control where the settings say, and tell of them."""
        before, self.settings, self._many = self.settings, settings, True
        try:
            forms = PROBLEMS[settings.problem].forms
            if self.fields["form"].options != forms:
                self.fields["form"].options = forms
            for name, field in self.fields.items():
                value = getattr(settings, name)
                if isinstance(field, ipw.SelectionSlider) and value not in field.options:
                    field.options = sorted({*field.options, value})
                field.value = value
            for name, box in self.rivals.items():
                box.value = name in settings.methods
        finally:
            self._many = False
        self._show_what_matters()
        if settings != before:
            self._changed(settings)

    def _ticked(self) -> tuple[str, ...]:
        now = self.settings.method
        return tuple(name for name, box in self.rivals.items() if box.value and name != now)

    def _show_what_matters(self) -> None:
        """The chosen method always takes part in its race."""
        for name, box in self.rivals.items():
            box.disabled = name == self.settings.method
            if box.disabled:
                self._many, was = True, self._many
                box.value = True
                self._many = was


def _follow(settings: TrainSettings, values: dict[str, Any]) -> TrainSettings:
    """Settings after a change; what no longer fits goes back to its usual value."""
    asked = asdict(settings) | values
    if asked["form"] not in PROBLEMS[asked["problem"]].forms:
        asked["form"] = ""
    moved = asked["form"] != settings.form
    if moved and "learning_rate" not in values:
        asked["learning_rate"] = 0.0
    if "method" in values and "rivals" not in values:
        asked["rivals"] = tuple(name for name in settings.rivals if name != values["method"])
    return replace(settings, **asked)


def _task_fields(now: TrainSettings) -> dict[str, Any]:
    return {
        "problem": dress(
            ipw.Dropdown,
            "problem",
            "Which texts the twist is to lead to",
            options=list(PROBLEMS),
            value=now.problem,
        ),
        "method": dress(
            ipw.Dropdown,
            "method",
            "How the twist is learned; tick others below to race them",
            options=[(METHOD_NAMES.get(name, name), name) for name in METHODS],
            value=now.method,
        ),
        "form": dress(
            ipw.Dropdown,
            "form",
            "What computes log psi from the text so far",
            options=PROBLEMS[now.problem].forms,
            value=now.form,
        ),
        "learning_rate": dress(
            ipw.FloatLogSlider,
            "learning rate",
            "Of Adam at the start; it falls as training goes on. Usual: "
            + ", ".join(f"{n} {f.learning_rate:g}" for n, f in FORMS.items()),
            value=now.learning_rate,
            base=10,
            min=math.log10(LEAST_RATE),
            max=math.log10(MOST_RATE),
            step=0.05,
            readout_format=".1e",
            continuous_update=False,
        ),
    }


def _training_fields(now: TrainSettings) -> dict[str, Any]:
    return {
        "batch_size": dress(
            ipw.SelectionSlider,
            "batch",
            "Texts drawn for each update, and positives read",
            options=sorted({*BATCHES, now.batch_size}),
            value=now.batch_size,
        ),
        "num_updates": dress(
            ipw.SelectionSlider,
            "updates",
            "That one press of Start takes, with each method",
            options=sorted({*UPDATES, now.num_updates}),
            value=now.num_updates,
        ),
        "bound_particles": dress(
            ipw.SelectionSlider,
            "bounds' K",
            "Particles of the bounds on log Z; with 1 their gap is KL(q||σ) + KL(σ||q)",
            options=sorted({*SIZES, now.bound_particles}),
            value=now.bound_particles,
        ),
        "seed": dress(
            ipw.BoundedIntText,
            "seed",
            "Equal seeds give equal trainings",
            value=now.seed,
            max=MOST_SEED,
        ),
    }
