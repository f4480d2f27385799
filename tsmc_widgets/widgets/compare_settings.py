"""What a comparison is asked for, and which methods fit which problems."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from tsmc_widgets.errors import check_integer, check_one_of
from tsmc_widgets.evaluation.inline import check_problem, problem_of
from tsmc_widgets.evaluation.spec import METHODS as ALL_METHODS
from tsmc_widgets.evaluation.spec import TEXT_METHODS, RunSpec, Training
from tsmc_widgets.learning.recipes import METHODS as LEARNING_METHODS
from tsmc_widgets.smc.resampling import RULES
from tsmc_widgets.targets.problems import PROBLEMS
from tsmc_widgets.twists.shipped import shipped_twists

METHODS = tuple(name for name in ALL_METHODS if name != "saved")
MEASURES = ("bounds", "kl", "profiles", "runs")
_COUNTS = {"seeds": 1, "num_runs": 2, "num_exact": 0, "num_samples": 2, "num_updates": 1,
           "batch_size": 2}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareSettings:
    """Problems by methods by seeds, and what each run measures.

    Attributes:
        problems: names in ``PROBLEMS``, or descriptions as for ``RunSpec``.
        methods: as for ``Comparison``; one that does not fit a problem is left out there.
        num_particles: one or more K.
        seeds: how many; each seeds a training and the runs that measure it.
        num_runs: forward runs for each K and rule.
        num_exact: exact samples for upper bounds and KL(sigma||q); 0 does without.
        num_samples: texts drawn from q for the KL divergences.
        rules: one or more of "always", "ess", "never".
        num_updates: what each learning method may spend.
        batch_size: texts drawn for each update.
        profiles: whether ESS, surviving ancestors and log Z_hat of single runs are recorded too,
            which takes a second sweep for each K and rule.
    """

    problems: Any
    methods: str | Iterable[str]
    num_particles: int | Iterable[int] = (1, 4, 16, 64)
    seeds: int = 3
    num_runs: int = 50
    num_exact: int = 50
    num_samples: int = 500
    rules: str | Iterable[str] = ("ess",)
    num_updates: int = 100
    batch_size: int = 100
    profiles: bool = True

    def __post_init__(self) -> None:
        """Check every choice, and bring each into its one form."""
        problems = [check_problem(problem) for problem in _several("problems", self.problems)]
        names = [problem_of(problem).name for problem in problems]
        if len(set(names)) < len(names):
            raise ValueError(f"every problem must have a name of its own; got {', '.join(names)}.")
        object.__setattr__(self, "problems", tuple(problems))
        for name, allowed in (("methods", METHODS), ("rules", tuple(sorted(RULES)))):
            chosen = _several(name, getattr(self, name))
            for choice in chosen:
                check_one_of(name, choice, allowed)
            kept = dict.fromkeys(chosen)
            object.__setattr__(self, name, tuple(c for c in allowed if c in kept))
        sizes = _several("num_particles", self.num_particles)
        for size in sizes:
            check_integer("num_particles", size)
        object.__setattr__(self, "num_particles", tuple(sorted({int(size) for size in sizes})))
        for name, least in _COUNTS.items():
            check_integer(name, getattr(self, name), at_least=least)
        check_one_of("profiles", self.profiles, (True, False))

    @property
    def problem_names(self) -> tuple[str, ...]:
        """Names of the problems, also of those described in place."""
        return tuple(problem_of(problem).name for problem in self.problems)

    @property
    def misfits(self) -> dict[tuple[str, str], str]:
        """Why a method is left out, by (problem, method)."""
        found = {
            (problem_of(problem).name, method): misfit(problem, method)
            for problem in self.problems
            for method in self.methods
        }
        return {pair: why for pair, why in found.items() if why}

    def specs(self) -> list[RunSpec]:
        """One spec for each seed, method and problem that fit; first seeds first."""
        return [
            self._spec(problem, method, seed)
            for seed in range(self.seeds)
            for problem in self.problems
            for method in self.methods
            if not misfit(problem, method)
        ]

    def to_dict(self) -> dict[str, Any]:
        """In JSON's types."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> CompareSettings:
        """Settings from their fields; those left out have their usual value."""
        known = [field.name for field in fields(cls)]
        for name in given:
            check_one_of("the setting", name, known)
        return cls(**given)

    def _spec(self, problem: Any, method: str, seed: int) -> RunSpec:
        texts = bool(set(self.methods) & set(TEXT_METHODS))
        measures = MEASURES if self.profiles else ("bounds", "kl")
        if texts and not problem_of(problem).conditional:
            measures = (*measures, "texts")
        training = None
        if method in LEARNING_METHODS:
            training = Training(num_updates=self.num_updates, batch_size=self.batch_size, seed=seed)
        return RunSpec(
            problem=problem,
            method=method,
            training=training,
            num_particles=self.num_particles,
            num_runs=self.num_runs,
            num_exact=self.num_exact,
            num_samples=self.num_samples,
            rule=self.rules,
            seed=seed,
            measures=("texts",) if method in TEXT_METHODS else measures,
        )


def misfit(problem: Any, method: str) -> str:
    """Why a method can not be run on a problem; "" where it can."""
    about = problem_of(problem)
    if method == "shipped" and about.name not in shipped_twists():
        return "no twist ships for it"
    if method == "optimal" and not about.exact:
        return "too large to be enumerated"
    if about.conditional and method in (*TEXT_METHODS, "look-ahead", "optimal"):
        return "φ waits for an observation"
    if about.conditional and about.form == "table" and method in LEARNING_METHODS:
        return "its table learns one observation at a time"
    return ""


def menu(settings: CompareSettings) -> dict[str, Any]:
    """What can be chosen, with words on each, for the view."""
    own = [problem for problem in settings.problems if not isinstance(problem, str)]
    return {
        "problems": [_entry(problem) for problem in (*PROBLEMS, *own)],
        "methods": [
            {"name": name, "group": kind}
            for kind, names in (
                ("given", [m for m in METHODS if m not in (*TEXT_METHODS, *LEARNING_METHODS)]),
                ("learned", LEARNING_METHODS),
                ("texts", TEXT_METHODS),
            )
            for name in names
        ],
    }


def _entry(problem: Any) -> dict[str, Any]:
    about = problem_of(problem)
    return {
        "value": problem,
        "name": about.name,
        "summary": about.summary,
        "teaches": about.teaches,
        "group": _group(about.name, about.model),
        "misfits": {m: why for m in METHODS if (why := misfit(problem, m))},
    }


def _group(name: str, model: str) -> str:
    if name not in PROBLEMS:
        return "own"
    return {"table": "toys", "storybook": "storybook"}.get(model, "paper")


def _several(name: str, value: Any) -> list[Any]:
    one = isinstance(value, str | int | Mapping) or not isinstance(value, Iterable)
    values = [value] if one else list(value)
    if not values:
        raise ValueError(f"{name} must hold at least one choice; got none.")
    return values
