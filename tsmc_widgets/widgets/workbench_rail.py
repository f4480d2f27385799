"""The workbench's controls: what to sample and how, each under the phrase that it changes."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping
from typing import Any

import ipywidgets as ipw

from tsmc_widgets.errors import TsmcError, message_of
from tsmc_widgets.experiments.spec import DTYPES, RunSpec
from tsmc_widgets.files import page_path
from tsmc_widgets.models.checkpoint import INSTALL_SMOLLM2, SMOLLM2, has_smollm2, smollm2_file
from tsmc_widgets.targets.description import (
    SETTINGS,
    TABLE,
    describe_problem,
    is_conditional_kind,
    parts_of,
    prompt_text,
    with_text,
)
from tsmc_widgets.targets.problems import PROBLEMS
from tsmc_widgets.twists.storage import shipped_twists
from tsmc_widgets.widgets.controls import (
    PROMPTS,
    Note,
    Quiet,
    Rail,
    button,
    classed,
    dress,
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
    unfold,
)
from tsmc_widgets.widgets.factor_editor import PotentialEditor, Typing

MODELS = ("storybook", SMOLLM2, *(f"{TABLE}{name}" for name, p in PROBLEMS.items() if p.table))
UNCHANGED = {"temperature": 1.0, "top_p": 1.0, "power": 1.0}
"""Settings of the model that have controls, and where they change nothing."""
_LONGEST = 64
_OWN = "my own"


class ProblemPanel(Quiet):
    """Controls whose values are a problem: its name, or a description where something was changed.

    Args:
        problem: what they show at first.
        changed: called after each change of a person.
        likely: as for ``PotentialEditor``.
        typing: as for ``PotentialEditor``.

    Attributes:
        fields: the controls by name, the chooser included.
        editor: the potential's.
        note: what the chosen problem teaches.
    """

    def __init__(
        self,
        problem: str | dict[str, Any],
        changed: Callable[[], None],
        likely: Callable[[], str] = lambda: "",
        typing: Typing = None,
    ) -> None:
        self._changed = changed
        self.fields = _problem_fields()
        self.note = classed(ipw.HTML(), "tw-note")
        self.editor = PotentialEditor([], self._edited, likely, typing)
        self._given: set[str] = set()
        self._chosen = False
        self.set(problem)
        self.fields["problem"].observe(self._choose, "value")
        self.fields["model"].observe(self._choose_model, "value")
        for name in ("prompt", "num_steps", "eos", *UNCHANGED):
            self.fields[name].observe(lambda _: self._edited(), "value")

    @property
    def described(self) -> dict[str, Any]:
        """The problem as a description."""
        fields = self.fields
        own = {
            "name": self._base,
            "model": fields["model"].value,
            "prompt": with_text(self._prompt, fields["prompt"].value),
            "num_steps": fields["num_steps"].value,
            "potential": self.editor.parts,
        }
        if fields["eos"].value != "ignore":
            own["eos"] = fields["eos"].value
        # What has no control stays as it is; a stop goes with EOS.
        own |= {name: v for name, v in self._kept.items() if name != "stop" or "eos" in own}
        for name, unchanged in UNCHANGED.items():
            value = fields[name].value
            if value != own.get(name, unchanged):
                own.pop(name, None)
                own |= {} if value == unchanged else {name: value}
        return own if self._form is None else {**own, "form": self._form}

    @property
    def problem(self) -> str | dict[str, Any]:
        """The name of a problem where all is as it is there, else the description."""
        described = self.described
        if self._base not in PROBLEMS:
            return described
        named = describe_problem(self._base)
        if described == named:
            return described if PROBLEMS[self._base].conditional else self._base
        if PROBLEMS[self._base].conditional and _but_observed(described) == _but_observed(named):
            return described
        return {**described, "name": f"{self._base}, changed"}

    def set(self, problem: str | dict[str, Any]) -> None:
        """Show another problem; nothing is told."""
        described = describe_problem(problem)
        self._base = described["name"].removesuffix(", changed")
        self._given.add(described["model"])
        self._model_before: str | None = None
        self._form = described.get("form")
        self._kept = {name: described[name] for name in SETTINGS if name in described}
        self._prompt = described["prompt"]
        with self._quietly():
            values = {"eos": "ignore"} | UNCHANGED | described
            values["prompt"] = prompt_text(self._prompt)
            for name in ("model", "prompt", "num_steps", "eos", *UNCHANGED):
                put(self.fields[name], values[name])
            self.editor.set(described["potential"])
        self._settle()

    def _choose(self, change: Any) -> None:
        if self._quiet or not change["new"]:
            return
        self.set(change["new"])
        self._chosen = True
        self._changed()

    def take_choice(self) -> bool:
        """Whether a person has just chosen another problem by name; False when asked again."""
        chosen, self._chosen = self._chosen, False
        return chosen

    def _choose_model(self, change: Any) -> None:
        """Take a model that the page may read; whether it can be loaded is seen in the run."""
        if self._quiet:
            return
        name, self._model_before = change["new"].strip(), self._model_before or change["old"]
        try:
            if name not in self._given:
                page_path(name)
            if name == SMOLLM2:
                smollm2_file()
        except (TsmcError, ValueError) as error:
            self.take_model_back(error)
            return
        self._edited()

    @property
    def model_is_new(self) -> bool:
        """Whether a person has chosen the model, and it was not loaded yet."""
        return self._model_before is not None

    def take_model(self, facts: str) -> None:
        """Keep the model that was chosen, and say what it costs."""
        self._model_before = None
        if facts:
            self._say(facts)

    def take_model_back(self, error: Exception) -> None:
        """Show the model before the one that was chosen, and why that cannot be used."""
        with self._quietly():
            self.fields["model"].value = self._model_before
        self._model_before = None
        self._say(message_of(error))

    def _say(self, text: str) -> None:
        self.note.value = f"<span>{html.escape(text)}</span>"

    def _edited(self) -> None:
        if self._quiet:
            return
        self._settle()
        self._changed()

    def _settle(self) -> None:
        """Name the problem in the menu, or say that it is one's own."""
        problem = self.problem
        name = problem if isinstance(problem, str) else problem["name"]
        with self._quietly():
            self.fields["problem"].value = name if name in PROBLEMS else ""
        text = PROBLEMS[name].teaches if name in PROBLEMS else ""
        if not text and self._base in PROBLEMS:
            text = f"Changed from {self._base}."
        self._say(text)


def _but_observed(described: dict[str, Any]) -> Any:
    """All of a description but which observation it is about."""
    parts = [{**part, "observed": None} for part in described["potential"]]
    return {**described, "potential": parts}


def _problem_fields() -> dict[str, Any]:
    smollm2 = "" if has_smollm2() else f"; {SMOLLM2} needs {INSTALL_SMOLLM2}"
    options = [(_OWN, ""), *((each.title, name) for name, each in PROBLEMS.items())]
    colder = "Of the model: below 1 sharper, above 1 flatter; p₀ is normalised again"
    likely = "Only the likeliest tokens that together have this probability; 1 keeps all"
    power = "σ ∝ p₀^α φ: a power of the whole text's probability, not of each token's"
    return {
        "problem": menu("problem", "Named problems; change anything of them", "", options),
        "model": dress(
            ipw.Combobox, "model p₀",
            f"What ships, a toy's table, a transformers name, a folder or GGUF file{smollm2}",
            options=MODELS, continuous_update=False,
        ),
        "prompt": dress(
            ipw.Combobox, "prompt s₀",
            "The text that every particle starts from; of a chat, what the user says",
            options=PROMPTS, continuous_update=False,
        ),
        "num_steps": dress(ipw.IntSlider, "tokens T", "Tokens to write", min=1, max=_LONGEST),
        "temperature": slider("temperature", colder, 1.0, 0.05, 2.0, 0.05),
        "top_p": slider("top-p", likely, 1.0, 0.05, 1.0, 0.05),
        "power": slider("power α", power, 1.0, 0.05, 4.0, 0.05),
        "eos": menu(
            "texts", "Whether the model may end a text before T", "ignore",
            [("have T tokens", "ignore"), ("may end at EOS", "absorb")],
        ),
    }  # fmt: skip


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
        self.fields = _sampler_fields()
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
        values: dict[str, Any] = {
            "folder": folder,
            "twist_power": spec.twist_power,
            "proposal": "base" if spec.proposal == "base" else "twist",
            **{name: getattr(spec, name) for name in _AS_THEY_ARE},
        }
        values |= {name: values[name][0] for name in ("rule", "num_particles")}
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


def _sampler_fields() -> dict[str, Any]:
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
        "num_particles": particles(64),
        "num_runs": sizes("runs R", "Independent runs; the view shows one at a time", 1, RUNS),
        "seed": seed_field(0, most=_MOST_SEED),
        "dtype": menu(
            "dtype", "Of the model's parameters", "",
            [("as usual here", ""), *((name, name) for name in DTYPES if name)],
        ),
    }  # fmt: skip


class ModelFields(ipw.VBox):
    """The field of the model, with a button that unfolds what is set of it."""

    def __init__(self, problem: ProblemPanel, sampler: SamplerPanel) -> None:
        self._usual = {"dtype": "", **UNCHANGED}
        self._settings = {name: (sampler.fields | problem.fields)[name] for name in self._usual}
        what = "dtype, temperature, top-p and power of the model"
        self.button = button("settings", what, ipw.ToggleButton)
        row = classed(ipw.HBox([problem.fields["model"], self.button]), "tw-model")
        self.folded = classed(ipw.VBox(list(self._settings.values())), "tw-model-settings")
        super().__init__([row, self.folded])
        unfold(self.button, self.folded)

    def unfold_what_is_set(self) -> None:
        """Show the settings where one of them changes the model."""
        if any(self._settings[name].value != usual for name, usual in self._usual.items()):
            self.button.value = True


def rail_of(problem: ProblemPanel, sampler: SamplerPanel, model: ModelFields) -> Rail:
    """Every control under the phrase that it changes."""
    fields = problem.fields | sampler.fields
    names = {
        "size": ("num_particles", "num_runs", "seed"),
        "steps": ("num_steps", "eos"),
        "prompt": ("prompt",),
        "model": (),
        "phi": (),
        "twist": ("twist", "folder", "twist_power"),
        "proposal": ("proposal",),
        "rule": ("rule", "ess_threshold", "resampler"),
    }
    folds: dict[str, list[Any]] = {
        name: [fields[each] for each in own] for name, own in names.items()
    }
    folds["model"] = [model]
    folds["phi"] = [problem.editor]
    folds["twist"].append(sampler.note)
    return Rail(folds)
