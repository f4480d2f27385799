"""How to sample: twist, proposal, resampling, sizes and the seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import ipywidgets as ipw

from tsmc_widgets.experiments.spec import DTYPES, RunSpec
from tsmc_widgets.targets.description import TABLE, is_conditional_kind, parts_of
from tsmc_widgets.targets.problems import PROBLEMS
from tsmc_widgets.twists.storage import shipped_twists
from tsmc_widgets.widgets.controls import (
    Note,
    Quiet,
    button,
    classed,
    ess_slider,
    menu,
    particles,
    proposal,
    put,
    scheme,
    seed_field,
    show_only,
    sizes,
    slider,
    text,
)

_MOST_SEED = 2**53 - 1
"""The largest number that browsers count to."""
RUNS = (1, 2, 4, 8, 16, 32, 64, 100)
_AS_THEY_ARE = (
    "resampler", "rule", "ess_threshold", "num_particles", "num_runs", "seed", "dtype"
)  # fmt: skip
"""Controls whose values are those of the spec."""
SHIP = "ship:"
TRAINED = "trained"
_NOTES = {
    "none": "ψ = 1: φ enters as a text ends and nowhere before.",
    "look-ahead": "Estimated from φ, nothing is learned: Ẑ stays unbiased; quick where φ is words.",
    "optimal": "ψ* by enumeration: with the twist-induced proposal every run gives log Z.",
    "saved": "A folder that save_twist wrote, or TrainSession.",
}


class SamplerPanel(Quiet):
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
        self.fields = _fields(spec)
        self.note = Note()
        self.said = Note(role="status", margin="0")
        self.undo = button("Undo: q = p₀")
        self.undo.on_click(lambda _: self._put_back())
        self.line = classed(ipw.HBox([self.said, self.undo]), "tw-line")
        self._say("")
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
            **{name: now[name] for name in _AS_THEY_ARE},
        }

    def set(self, spec: RunSpec, described: Mapping[str, Any]) -> None:
        """Show another spec, without calling ``changed``."""
        twist, folder = spec.method, spec.twist
        if spec.method == "shipped":
            twist, folder = f"{SHIP}{spec.problem_name}", ""
        elif spec.method == "saved" and spec.twist in shipped_twists():
            twist, folder = f"{SHIP}{spec.twist}", ""
        values = {
            "folder": folder,
            "twist_power": spec.twist_power,
            "proposal": "base" if spec.proposal == "base" else "twist",
            **{name: getattr(spec, name) for name in _AS_THEY_ARE},
            "rule": spec.rule[0],
            "num_particles": spec.num_particles[0],
        }
        with self._quietly():
            self.fields["twist"].options = self._options(described, twist)
            self.fields["twist"].value = twist
            for name, value in values.items():
                if name != "proposal" or spec.method != "none":
                    put(self.fields[name], value)
        self.show_what_matters()

    def leave(self, described: Mapping[str, Any]) -> None:
        """Drop what belongs to the problem before: a twist made for it, and psi's power."""
        twist, power = self.fields["twist"], self.fields["twist_power"]
        ships, now = _shipped_for(described), twist.value
        foreign = now in ("saved", TRAINED) or (
            now.startswith(SHIP) and now.removeprefix(SHIP) != described["name"]
        )
        foreign = foreign or (now == "optimal" and not described["model"].startswith(TABLE))
        if not foreign and power.value == 1:
            return
        what = "The twist" if foreign else "The power of ψ"
        with self._quietly():
            power.value = 1.0
            if foreign:
                own = described["name"] in ships
                now = f"{SHIP}{described['name']}" if own else "look-ahead"
                twist.options = self._options(described, now)
                twist.value = now
        self._say(f"{what} belonged to the problem before, and is dropped.")
        self.show_what_matters()

    def _say(self, text: str, *, undo: bool = False) -> None:
        self.said.say(text)
        self.undo.layout.display = None if undo else "none"
        self.line.layout.display = None if text else "none"

    def _put_back(self) -> None:
        self._say("")
        self.fields["proposal"].value = "base"

    def fit(self, described: Mapping[str, Any]) -> None:
        """Offer the twists that may serve a problem; the one in use stays in the menu."""
        field = self.fields["twist"]
        options = self._options(described, field.value)
        if list(field.options) != options:
            with self._quietly():
                now, field.options = field.value, options
                field.value = now

    def show_what_matters(self, only_proposes: bool = False) -> None:
        """Controls that would do nothing are disabled or away, and a note says why."""
        fields, twist = self.fields, self.fields["twist"].value
        shown = {
            "folder": twist == "saved",
            "twist_power": twist != "none",
            "ess_threshold": fields["rule"].value == "ess" and not only_proposes,
        }
        show_only(fields, shown)
        fields["proposal"].disabled = twist == "none"
        fields["rule"].disabled = fields["resampler"].disabled = only_proposes
        note = _NOTES.get(twist, "Learned for this problem, on the model that ships.")
        if twist.startswith(SHIP):
            note = f"Learned for: {PROBLEMS[twist.removeprefix(SHIP)].summary}."
        if only_proposes:
            note += (
                " This twist is known up to a function of the prefix: it can propose but not "
                "weight, so nothing is resampled."
            )
        self.note.say(note)

    def _edited(self, change: Any) -> None:
        if self._quiet:
            return
        self._say("")
        learned = change["new"] in (TRAINED, "saved") or str(change["new"]).startswith(SHIP)
        if change["owner"] is self.fields["twist"] and learned:
            with self._quietly():
                if self.fields["proposal"].value == "base":
                    self.fields["proposal"].value = "twist"
                    self._say("q is twist-induced now, as a learned twist is made for.", undo=True)
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
    waits = [part["kind"] for part in parts if is_conditional_kind(part["kind"])]
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


def _fields(now: RunSpec) -> dict[str, Any]:
    rules = [("ESS below a share of K", "ess"), ("every step", "always"), ("never", "never")]
    power = "1 as it is; below 1 flatter, above 1 sharper; below 0 inverted"
    return {
        "twist": menu("twist ψ", "What a prefix is worth", "none", ["none"]),
        "folder": text("folder", "Where save_twist wrote it"),
        "twist_power": slider("ψ power", power, 1.0, -1.0, 2.0, 0.25),
        "proposal": proposal("twist", "twist"),
        "rule": menu("resample", "When to resample", "ess", rules),
        "ess_threshold": ess_slider("A share of K", 0.5),
        "resampler": scheme("scheme", "systematic"),
        "num_particles": particles(now.num_particles[0]),
        "num_runs": sizes(
            "runs R", "Independent runs; the view shows one at a time", now.num_runs, RUNS
        ),
        "seed": seed_field(now.seed, most=_MOST_SEED),
        "dtype": menu(
            "dtype", "Of the model's parameters", now.dtype,
            [("as usual here", ""), *((name, name) for name in DTYPES if name)],
        ),
    }  # fmt: skip
