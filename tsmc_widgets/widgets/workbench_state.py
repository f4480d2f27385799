"""All that a workbench shows, as a value: JSON both ways, saved, and in words."""

from __future__ import annotations

import json
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tsmc_widgets.errors import PageFormatError, check_one_of, set_integers, whole_number
from tsmc_widgets.experiments.code import noise_words
from tsmc_widgets.experiments.spec import TEXT_METHODS, RunSpec
from tsmc_widgets.files import load_json, page_path, write_atomically
from tsmc_widgets.targets.description import describe_problem, models_of, named_functions
from tsmc_widgets.targets.functions import find_function
from tsmc_widgets.targets.problems import PROBLEMS

FORMAT = "tsmc_widgets.Workbench"
VERSION = 1
BEGINS = f'{{\n "format": "{FORMAT}"'
"""The first characters of a saved page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkbenchState:
    """What is on screen.

    Attributes:
        spec: the run, in the form that the controls have: one K, one rule, the proposal named.
        pinned: the run that is kept beside it as A; None for none.
        run: which of the R runs is on show.
        replay: whether a change of phi alone re-weights the record where that is valid.
    """

    spec: RunSpec
    pinned: RunSpec | None = None
    run: int = 0
    replay: bool = True

    def __post_init__(self) -> None:
        """Bring the runs into the controls' form."""
        set_integers(self, run=0)
        check_one_of("replay", self.replay, (True, False))
        object.__setattr__(self, "spec", normal(self.spec))
        if self.pinned is not None:
            object.__setattr__(self, "pinned", normal(self.pinned))

    @property
    def functions(self) -> tuple[str, ...]:
        """Python functions that it names, which JSON alone cannot bring back."""
        specs = [self.spec] if self.pinned is None else [self.spec, self.pinned]
        names = [name for spec in specs for name in named_functions(spec.problem)]
        return tuple(dict.fromkeys(names))

    def check(self, given: Set[str] = frozenset()) -> None:
        """Raise ValueError where a page of a stranger may not name what this one names.

        That is a function that is not registered here, or a model, twist or classifier outside of
        the notebook's folder.

        Args:
            given: places that Python named.
        """
        for name in self.functions:
            find_function(name)
        for spec in filter(None, (self.spec, self.pinned)):
            check_places(spec, given)

    def to_json(self) -> str:
        """JSON for people to read; ``from_json`` reads it back."""
        whole = {
            "format": FORMAT,
            "version": VERSION,
            "needs_functions": list(self.functions),
            "spec": self.spec.to_dict(),
            "pinned": None if self.pinned is None else self.pinned.to_dict(),
            "run": self.run,
            "replay": self.replay,
        }
        return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> WorkbenchState:
        """The state that ``to_json`` wrote.

        Raises:
            PageFormatError: the text is no such thing.
        """
        try:
            given = load_json(text)
        except ValueError as error:
            raise PageFormatError(
                f"A saved workbench must be a JSON object; got {text[:60]!r}: {error}"
            ) from error
        if not isinstance(given, Mapping) or given.get("format") != FORMAT:
            raise PageFormatError(
                f"This is no saved workbench: its format must be {FORMAT!r}; got {text[:60]!r}."
            )
        version = whole_number(given.get("version", 0))
        if version is None or version > VERSION:
            raise PageFormatError(
                f"The saved workbench is of version {given['version']!r}, and this one reads up to "
                f"{VERSION}: update tsmc_widgets."
            )
        pinned = given.get("pinned")
        try:
            return cls(
                spec=RunSpec.from_dict(given.get("spec")),
                pinned=None if pinned is None else RunSpec.from_dict(pinned),
                run=given.get("run", 0),
                replay=given.get("replay", True),
            )
        except (ValueError, TypeError) as error:
            raise PageFormatError(f"The saved workbench cannot be shown: {error}") from error

    def save(self, path: str | Path) -> Path:
        """Write it to a file; an existing one is replaced whole."""
        path = Path(path)
        with write_atomically(path) as part:
            # Lone surrogates become what JSON writes for them.
            part.write_text(self.to_json(), encoding="utf-8", errors="backslashreplace")
        return path

    @classmethod
    def read(cls, path: str | Path) -> WorkbenchState:
        """Read what ``save`` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            PageFormatError: it is none of a workbench.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"There is no file {str(path)!r} to load a workbench from.")
        return cls.from_json(path.read_text(encoding="utf-8", errors="replace"))


def normal(spec: RunSpec) -> RunSpec:
    """A spec in the form that the controls have: one K, one rule, the proposal named.

    Raises:
        ValueError: it is no run with weights, or trains a twist.
    """
    if spec.learns or spec.method in TEXT_METHODS:
        raise ValueError(
            f"A workbench shows runs with weights; method {spec.method!r} "
            + ("trains a twist: train it in tw.TrainSession, and hand that over as train=."
               if spec.learns else "gives texts alone: measure it with tw.execute.")
        )  # fmt: skip
    proposal = "" if spec.method == "none" else spec.proposal or "twist"
    problem = spec.problem
    if isinstance(problem, str) and PROBLEMS[problem].conditional:
        problem = describe_problem(problem)
    elif isinstance(problem, Mapping) and isinstance(problem["potential"], Mapping):
        problem = {**problem, "potential": [problem["potential"]]}
    return spec.with_(
        problem=problem,
        proposal=proposal,
        rule=spec.rule[:1],
        num_particles=spec.num_particles[:1],
        twist_power=1.0 if spec.method == "none" else spec.twist_power,
    )


def places_of(spec: RunSpec) -> set[str]:
    """Names and folders that a run reads: of its twist, its model and its classifiers."""
    return {spec.twist, spec.lm, spec.classifier, *models_of(spec.problem)} - {""}


def check_places(spec: RunSpec, given: Set[str] = frozenset()) -> None:
    """Raise ValueError where a run reads what is outside of the notebook's folder.

    Args:
        spec: of the run.
        given: places that Python named.
    """
    for place in places_of(spec) - given:
        page_path(place)


def replay_words(
    *, reweighed: bool, why_not: str, before: dict[str, Any] | None, now: dict[str, Any]
) -> tuple[str, str]:
    """Which of the two was done, and why.

    Args:
        reweighed: whether the record was re-weighted.
        why_not: what stood against it; empty if no replay was asked for.
        before: the run before, in words; None for none.
        now: this run, in words.
    """
    if reweighed:
        return "Re-weighted", (
            "the recorded run under the new φ: ψ and q do not depend on φ and every decision to "
            "resample came out the same, so this is what a fresh run on the same noise gives, "
            "number for number. No model was called."
        )
    if before is None:
        return "", ""
    changed = [name for name in now if before.get(name) != now.get(name)]
    done = f"Run again on {noise_words(before, now)}"
    if changed != ["φ"]:
        return done, ""
    if now["twist ψ"] in ("look-ahead", "optimal"):
        return done, f"because the {now['twist ψ']} twist is made of φ, and steers every step."
    return done, f"because {why_not}." if why_not else ""
