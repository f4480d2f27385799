"""A target with a name, and how a collection of them shows itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Literal

import torch

from tsmc_widgets.errors import check_integer, check_one_of
from tsmc_widgets.models.loading import load_classifier, load_language_model
from tsmc_widgets.models.protocol import LanguageModel
from tsmc_widgets.targets.classifier import CachedClassifier, ClassifierLike, cached_classifier
from tsmc_widgets.targets.protocol import Potential
from tsmc_widgets.targets.target import Target

Maker = Callable[[CachedClassifier | None], Potential]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A target with a name, made where and when it is wanted.

    Attributes:
        name: in ``PROBLEMS``.
        summary: the problem in a line.
        teaches: what it is good for: the lesson of a toy, or the experiment of the paper.
        model: name of the base model: "storybook", a transformers name, or "table" for a toy.
        classifier: name of the classifier that judges texts; "" where phi needs none.
        prompt: s_0.
        num_steps: T.
        potential: makes phi, of the classifier or None.
        table: makes the toy's model; None for other models.
        eos: "ignore" or "absorb", as for ``Target``.
        form: recommended form of the twist, a name of ``twists.forms``; that of a toy is for its
            target once it is conditioned.
        conditional: whether phi waits for an observation o, so that samples come with one.
        exact: whether ``tw.exact`` knows everything about it.
        twin: name of the problem that is the same experiment on the other model; "" for none.
    """

    name: str
    summary: str
    teaches: str
    model: str
    prompt: str
    num_steps: int
    potential: Maker = field(repr=False)
    classifier: str = ""
    table: Callable[[], LanguageModel] | None = field(default=None, repr=False)
    eos: Literal["ignore", "absorb"] = "ignore"
    form: str = "MLP head"
    conditional: bool = False
    exact: bool = False
    twin: str = ""

    def __post_init__(self) -> None:
        """Check what a typing slip would break later."""
        check_integer("num_steps", self.num_steps)
        check_one_of("eos", self.eos, ("ignore", "absorb"))

    def target(
        self,
        lm: LanguageModel | str | Path | None = None,
        *,
        classifier: ClassifierLike | None = None,
        device: str | torch.device | None = None,
    ) -> Target:
        """The target; models are loaded when this is called, once for each process.

        Args:
            lm: a model, name or folder in place of the problem's own, such as a local copy of it.
            classifier: an object, name or folder in place of the problem's own.
            device: where models that are loaded by name go; None is the CPU.

        Raises:
            FileNotFoundError: a checkpoint is neither here nor can be fetched.
            ValueError: a classifier for a problem that has none.
        """
        if classifier is not None and not self.classifier:
            raise ValueError(f"The problem {self.name!r} reads no classifier; leave it out.")
        if lm is None:
            lm = self.model if self.table is None else _made(self.table)
        if isinstance(lm, str | Path):
            lm = load_language_model(lm, device=device)
        phi = self.own_potential(classifier, device=device)
        return Target(lm, phi, prompt=self.prompt, num_steps=self.num_steps, eos=self.eos)

    def own_potential(
        self,
        classifier: ClassifierLike | None = None,
        *,
        device: str | torch.device | None = None,
    ) -> Potential:
        """Phi, for a target of another prompt or length; arguments are those of ``target``."""
        if not self.classifier:
            return self.potential(None)
        return self.potential(judge_of(classifier or self.classifier, device))


class Problems(Mapping[str, Problem]):
    """Problems by name; shows itself as a table in a notebook."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        self._problems = {problem.name: problem for problem in problems}

    def __getitem__(self, name: str) -> Problem:
        return self._problems[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._problems)

    def __len__(self) -> int:
        return len(self._problems)

    def __repr__(self) -> str:
        width = max(len(name) for name in self)
        return "\n".join(f"{name:{width}}  {problem.summary}" for name, problem in self.items())

    def _repr_html_(self) -> str:
        head = "<tr><th>name</th><th>problem</th><th>what for</th></tr>"
        rows = "".join(
            "<tr>"
            + "".join(
                f'<td style="text-align:left">{escape(part)}</td>'
                for part in (name, problem.summary, problem.teaches)
            )
            + "</tr>"
            for name, problem in self.items()
        )
        return f"<table><thead>{head}</thead><tbody>{rows}</tbody></table>"


def judge_of(
    classifier: ClassifierLike, device: str | torch.device | None = None
) -> CachedClassifier:
    """The classifier of a problem, by object, name or folder."""
    if device is None or not isinstance(classifier, str | Path):
        return cached_classifier(classifier, argument="classifier")
    return CachedClassifier(load_classifier(classifier, device=device), Path(classifier).name)


@lru_cache
def _made(table: Callable[[], LanguageModel]) -> LanguageModel:
    """A toy's model, made once for each process as others are loaded once."""
    return table()
