"""How to sample: twist, proposal, resampling, sizes and the seed."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping
from typing import Any

import ipywidgets as ipw

from tsmc_widgets.experiments.spec import RunSpec
from tsmc_widgets.smc.resampling import SCHEMES
from tsmc_widgets.targets.description import TABLE, WAITING, parts_of
from tsmc_widgets.targets.problems import PROBLEMS
from tsmc_widgets.twists.storage import shipped_twists
from tsmc_widgets.widgets.controls import SIZES, dress

_MOST_SEED = 2**53 - 1
"""The largest number that browsers count to."""
RUNS = (1, 2, 4, 8, 16, 32, 64, 100)
SHIP = "ship:"
TRAINED = "trained"
_NOTES = {
    "none": "ψ = 1: φ is heard at the last step and nowhere before.",
    "look-ahead": "Guessed from φ, nothing is learned: right on average, quick where φ is words.",
    "optimal": "ψ* by enumeration: with the twist-induced proposal every run gives log Z.",
    "saved": "A folder that save_twist wrote, or TrainSession.",
}


class SamplerPanel:
    """Controls of how to sample; ``values`` are fields of a ``RunSpec``.

    Args:
        spec: what they show at first.
        described: its problem in place.
        changed: called after each change of a person.
        trained: gives the label of a twist that is being trained elsewhere; None for no such.
    """

    def __init__(
        self,
        spec: RunSpec,
        described: Mapping[str, Any],
        changed: Callable[[], None],
        *,
        trained: Callable[[], str] | None = None,
    ) -> None:
        self._changed, self._trained = changed, trained
        self._quiet = False
        self.fields = _fields(spec)
        self.note = ipw.HTML()
        self.note.add_class("tw-note")
        self.set(spec, described)
        for field in self.fields.values():
            field.observe(self._edited, "value")

    @property
    def wants_trained(self) -> bool:
        """Whether the twist that is being trained has just been asked for."""
        return self.fields["twist"].value == TRAINED

    def values(self, problem_name: str) -> dict[str, Any]:
        """Fields of a spec for a problem of this name."""
        now = {name: field.value for name, field in self.fields.items()}
        twist = now["twist"]
        method, folder = twist, ""
        if twist.startswith(SHIP):
            name = twist.removeprefix(SHIP)
            method, folder = ("shipped", "") if name == problem_name else ("saved", name)
        elif twist == "saved":
            folder = now["folder"].strip()
            if not folder:
                raise ValueError("Give the folder of the saved twist, beside “folder”.")
        return {
            "method": method,
            "twist": folder,
            "twist_sha256": "",
            "twist_power": 1.0 if method == "none" else now["twist_power"],
            "proposal": "" if method == "none" else now["proposal"],
            "resampler": now["resampler"],
            "rule": (now["rule"],),
            "ess_threshold": now["ess_threshold"],
            "num_particles": (now["num_particles"],),
            "num_runs": now["num_runs"],
            "seed": now["seed"],
        }

    def set(self, spec: RunSpec, described: Mapping[str, Any]) -> None:
        """Show another spec; nothing is told."""
        twist, folder = spec.method, spec.twist
        if spec.method == "shipped":
            twist, folder = f"{SHIP}{spec.problem_name}", ""
        elif spec.method == "saved" and spec.twist in shipped_twists():
            twist, folder = f"{SHIP}{spec.twist}", ""
        values = {
            "folder": folder,
            "twist_power": spec.twist_power,
            "proposal": "base" if spec.proposal == "base" else "twist",
            "resampler": spec.resampler,
            "rule": spec.rule[0],
            "ess_threshold": spec.ess_threshold,
            "num_particles": spec.num_particles[0],
            "num_runs": spec.num_runs,
            "seed": spec.seed,
        }
        self._quiet = True
        try:
            self.fields["twist"].options = self._options(described, twist)
            self.fields["twist"].value = twist
            _make_room(self.fields, values)
            for name, value in values.items():
                if name != "proposal" or spec.method != "none":
                    self.fields[name].value = value
        finally:
            self._quiet = False
        self.show_what_matters()

    def fit(self, described: Mapping[str, Any]) -> None:
        """Offer the twists that may serve a problem; the one in use stays in the menu."""
        field = self.fields["twist"]
        options = self._options(described, field.value)
        if list(field.options) != options:
            self._quiet = True
            now = field.value
            field.options = options
            field.value = now
            self._quiet = False

    def show_what_matters(self, only_proposes: bool = False) -> None:
        """Controls that would do nothing are disabled or away, and a note says why."""
        fields, twist = self.fields, self.fields["twist"].value
        shown = {
            "folder": twist == "saved",
            "twist_power": twist != "none",
            "ess_threshold": fields["rule"].value == "ess" and not only_proposes,
        }
        for name, matters in shown.items():
            fields[name].layout.display = None if matters else "none"
        fields["proposal"].disabled = twist == "none"
        fields["rule"].disabled = fields["resampler"].disabled = only_proposes
        note = _NOTES.get(twist, "Learned for this problem, on the model that ships.")
        if twist.startswith(SHIP):
            note = f"Learned for: {PROBLEMS[twist.removeprefix(SHIP)].summary}."
        if only_proposes:
            note += (
                " This twist is known up to a function of the prefix: it can propose and not "
                "weigh, so nothing is resampled."
            )
        self.note.value = f"<span>{html.escape(note)}</span>"

    def _edited(self, change: Any) -> None:
        if self._quiet:
            return
        self.show_what_matters()
        self._changed()

    def _options(self, described: Mapping[str, Any], now: str) -> list[tuple[str, str]]:
        options = [("none: ψ = 1", "none"), ("look-ahead, from φ", "look-ahead")]
        ships = _shipped_for(described)
        if now.startswith(SHIP) and now.removeprefix(SHIP) not in ships:
            ships.append(now.removeprefix(SHIP))
        name = described["name"]
        options += [
            (f"shipped for {'this problem' if ship == name else ship}", f"{SHIP}{ship}")
            for ship in ships
        ]
        if described["model"].startswith(TABLE) or now == "optimal":
            options.append(("optimal ψ*, enumerated", "optimal"))
        if self._trained is not None:
            options.append((f"just trained: {self._trained()}", TRAINED))
        return [*options, ("saved in a folder", "saved")]


def _shipped_for(described: Mapping[str, Any]) -> list[str]:
    """Twists that ship for the model, the nearest problem's first."""
    if described["model"] != "storybook":
        return []
    parts = parts_of(described)
    waits = [part["kind"] for part in parts if part["kind"] in WAITING]
    asks = {part.get("model", part.get("reward")) for part in parts}

    def distance(name: str) -> tuple[bool, bool, bool, int]:
        problem = PROBLEMS[name]
        return (
            name != described["name"].removesuffix(", changed"),
            problem.prompt != described["prompt"],
            problem.classifier not in asks,
            abs(problem.num_steps - described["num_steps"]),
        )

    fitting = [
        name for name in shipped_twists()
        if not PROBLEMS[name].conditional or (waits and _observes(name, parts))
    ]  # fmt: skip
    return sorted(fitting, key=distance)


def _observes(name: str, parts: list[Mapping[str, Any]]) -> bool:
    """Whether a conditional twist reads what some factor observes."""
    if PROBLEMS[name].classifier:
        return any(part["kind"] == "ClassConditional" for part in parts)
    width = int(name.rpartition("-")[2])
    return any(part["kind"] == "Infilling" and int(part["num_tokens"]) == width for part in parts)


def _make_room(fields: dict[str, Any], values: dict[str, Any]) -> None:
    """Widen sliders, so that they can show what code has asked for."""
    for name in ("num_particles", "num_runs"):
        field = fields[name]
        if values[name] not in field.options:
            field.options = sorted({*field.options, values[name]})
    power = fields["twist_power"]
    power.min = min(power.min, values["twist_power"])
    power.max = max(power.max, values["twist_power"])


def _fields(now: RunSpec) -> dict[str, Any]:
    rules = [("ESS below a share of K", "ess"), ("every step", "always"), ("never", "never")]
    return {
        "twist": dress(ipw.Dropdown, "twist ψ", "What a prefix is worth", options=["none"]),
        "folder": dress(
            ipw.Text, "folder", "Where save_twist wrote it", continuous_update=False
        ),
        "twist_power": dress(
            ipw.FloatSlider, "ψ power", "1 as it is; less listens less; below 0 the wrong way",
            value=1.0, min=-1.0, max=2.0, step=0.25, readout_format=".2f",
        ),
        "proposal": dress(
            ipw.Dropdown, "proposal q", "Where tokens are drawn from",
            options=[("base model p₀", "base"), ("twist-induced p₀ ψ", "twist")],
            value="twist",
        ),
        "rule": dress(ipw.Dropdown, "resample", "When to resample", options=rules),
        "ess_threshold": dress(
            ipw.FloatSlider, "ESS below", "A share of K", value=0.5, min=0.0, max=1.0, step=0.05,
            readout_format=".0%",
        ),
        "resampler": dress(
            ipw.Dropdown, "scheme", "How ancestors are drawn", options=sorted(SCHEMES)
        ),
        "num_particles": dress(
            ipw.SelectionSlider, "particles K", "Texts written side by side",
            options=sorted({*SIZES, now.num_particles[0]}), value=now.num_particles[0],
        ),
        "num_runs": dress(
            ipw.SelectionSlider, "runs R", "Independent runs; the view shows one at a time",
            options=sorted({*RUNS, now.num_runs}), value=now.num_runs,
        ),
        "seed": dress(
            ipw.BoundedIntText, "seed", "Equal seeds give equal runs", value=now.seed,
            max=_MOST_SEED,
        ),
    }  # fmt: skip
