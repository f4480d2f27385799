"""What to sample: a named problem or one's own, model, prompt, length."""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import Any

import ipywidgets as ipw

from tsmc_widgets.errors import TsmcError, message_of
from tsmc_widgets.files import page_path
from tsmc_widgets.models.checkpoint import INSTALL_SMOLLM2, SMOLLM2, has_smollm2, smollm2_file
from tsmc_widgets.targets.description import (
    SETTINGS,
    TABLE,
    describe_problem,
    prompt_text,
    with_text,
)
from tsmc_widgets.targets.problems import PROBLEMS
from tsmc_widgets.widgets.controls import PROMPTS, Quiet, dress, menu, put, slider
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
        self._base = problem if isinstance(problem, str) else problem["name"]
        described = describe_problem(problem)
        self._form = described.get("form")
        self._kept = {name: described[name] for name in SETTINGS if name in described}
        self._prompt = described["prompt"]
        self.fields = _fields(described)
        self.note = ipw.HTML()
        self.note.add_class("tw-note")
        self.editor = PotentialEditor(described["potential"], self._edited, likely, typing)
        self._given = {described["model"]}
        self._model_before: str | None = None
        self._chosen = False
        self._settle()
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
        if PROBLEMS[self._base].conditional and _observes(described) == _observes(named):
            return described
        return {**described, "name": f"{self._base}, changed"}

    def set(self, problem: str | dict[str, Any]) -> None:
        """Show another problem; nothing is told."""
        described = describe_problem(problem)
        self._base = described["name"].removesuffix(", changed")
        self._given.add(described["model"])
        self._model_before = None
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


def _observes(described: dict[str, Any]) -> Any:
    """All of a description but which observation it is about."""
    parts = [{**part, "observed": None} for part in described["potential"]]
    return {**described, "potential": parts}


def _fields(now: dict[str, Any]) -> dict[str, Any]:
    name = now["name"] if now["name"] in PROBLEMS else ""
    smollm2 = "" if has_smollm2() else f"; {SMOLLM2} needs {INSTALL_SMOLLM2}"
    options = [(_OWN, ""), *((each.title, name) for name, each in PROBLEMS.items())]
    return {
        "problem": menu("problem", "Named problems; change anything of them", name, options),
        "model": dress(
            ipw.Combobox, "model p₀",
            f"What ships, a toy's table, a transformers name, a folder or GGUF file{smollm2}",
            value=now["model"], options=MODELS, continuous_update=False,
        ),
        "prompt": dress(
            ipw.Combobox, "prompt s₀",
            "The text that every particle starts from; of a chat, what the user says",
            value=prompt_text(now["prompt"]), options=PROMPTS, continuous_update=False,
        ),
        "num_steps": dress(
            ipw.IntSlider, "tokens T", "Tokens to write", value=now["num_steps"], min=1,
            max=max(_LONGEST, now["num_steps"]),
        ),
        **_model_fields(now),
        "eos": menu(
            "texts", "Whether the model may end a text before T", now.get("eos", "ignore"),
            [("have T tokens", "ignore"), ("may end at EOS", "absorb")],
        ),
    }  # fmt: skip


def _model_fields(now: dict[str, Any]) -> dict[str, Any]:
    hints = {
        "temperature": "Of the model: below 1 sharper, above 1 flatter; p₀ is normalised again",
        "top_p": "Only the likeliest tokens that together have this probability; 1 keeps all",
        "power": "σ ∝ p₀^α φ: a power of the whole text's probability, not of each token's",
    }
    names = {"temperature": "temperature", "top_p": "top-p", "power": "power α"}
    most = {"temperature": 2.0, "top_p": 1.0, "power": 4.0}
    fields = {}
    for name, unchanged in UNCHANGED.items():
        fields[name] = slider(names[name], hints[name], unchanged, 0.05, most[name], 0.05)
        put(fields[name], now.get(name, unchanged))
    return fields
