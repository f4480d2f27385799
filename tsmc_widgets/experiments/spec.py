"""A run by names and numbers: what to sample, how, and what to measure; JSON both ways."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from tsmc_widgets.errors import (
    SpecFormatError,
    TsmcError,
    TwistFormatError,
    as_list,
    check_integer,
    check_number,
    check_one_of,
    quoted,
    set_integers,
    set_numbers,
    whole_number,
)
from tsmc_widgets.files import load_json
from tsmc_widgets.learning.objectives import METHODS as LEARNING_METHODS
from tsmc_widgets.models.protocol import check_device
from tsmc_widgets.smc.resampling import RULES, SCHEMES, ESSBelow
from tsmc_widgets.targets.description import problem_reference
from tsmc_widgets.twists.forms import TWIST_FORMS
from tsmc_widgets.twists.storage import CARD, shipped_folder, shipped_twists

VERSION = 7
"""Goes into every key: raised when the same spec no longer means the same numbers, as when what is
usual changes."""

FIXED_METHODS = ("none", "look-ahead", "optimal", "shipped", "saved")
TEXT_METHODS = ("rejection", "best-of-n", "beam")
"""Ways to get texts that are no sampler of sigma with weights: only their texts are measured."""
METHODS = (*FIXED_METHODS, *TEXT_METHODS, *LEARNING_METHODS)
MEASURES = ("bounds", "kl", "profiles", "runs", "texts")
PROPOSALS = ("", "base", "twist")
DTYPES = ("", "float32", "bfloat16", "float16", "float64")


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How a twist is learned.

    Attributes:
        form: of the twist, a name of ``twists.forms``; "" is the one recommended for the problem.
        num_updates: how many.
        batch_size: sequences drawn for each update, and positives read.
        learning_rate: of Adam; 0 is the form's usual one.
        seed: of all noise of the training.
        observations: of a conditional target, for each update; 0 is the usual number.
        pool: exact samples of sigma to learn from; 0 learns from the training's own batches, as
            ``ReplayedPositives`` does. A conditional target draws its own again for each update.
        max_draws: draws from p0 that a pool may take; where they give less than a quarter of it,
            the training learns from its own batches.
    """

    form: str = ""
    num_updates: int = 200
    batch_size: int = 100
    learning_rate: float | int = 0.0
    seed: int = 0
    observations: int = 0
    pool: int = 0
    max_draws: int = 20_000

    def __post_init__(self) -> None:
        """Check every number."""
        set_integers(self, num_updates=1, batch_size=2, max_draws=1, seed=0, observations=0, pool=0)
        check_one_of("form", self.form, ("", *TWIST_FORMS))
        set_numbers(self, learning_rate="[0, inf)")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """Everything that a worker must know; equal specs give equal bytes on equal machines.

    Attributes:
        problem: a name in ``PROBLEMS``, or a description as for ``parse_problem``.
        method: where the twist comes from: "none" (psi = 1), "look-ahead" (guessed from phi),
            "optimal" (by enumeration), "shipped" (what comes with the package for this problem),
            "saved" (a folder), or a learning method. "rejection", "best-of-n" and "beam" give
            texts alone, so that their ``measures`` are "texts".
        training: how it is learned, where ``method`` is a learning method; None is the usual.
        twist: folder of a saved twist, where ``method`` is "saved".
        twist_sha256: of its weights; filled in from the folder where that is here.
        twist_power: what psi is raised to: below 1 flattened, below 0 inverted.
        proposal: "base", "twist", or "" for the twist's where there is one.
        resampler: of forward runs; conditional ones are multinomial.
        rule: one or more of "always", "ess", "never"; a twist that only proposes takes "never".
        ess_threshold: a fraction of K, for the rule "ess".
        num_particles: one or more K.
        num_runs: forward runs for each K and rule.
        num_exact: exact samples for upper bounds and KL(sigma||q); 0 does without.
        num_samples: sequences drawn from q for the KL divergences.
        max_draws: draws from p0 that the exact samples may take; fewer samples are used if it ends.
        seed: of the runs and of the exact samples.
        measures: any of "bounds", "kl", "profiles", "runs" for log Z_hat of every forward run, and
            "texts" for what K texts of the method are worth and cost.
        island: (i, M) for the i-th of M parts of each run's particles; () for whole runs.
        lm: name or folder of a model in place of the problem's own; "" for its own.
        classifier: the same for the classifier.
        device: of the models; "" is the CPU.
        memory_limit: bytes that a batch of runs, or a training, may take by estimate; None is half
            of what is free. It changes no number, so it is no part of the key.
        dtype: of the base model's parameters, such as "float32"; "" is the usual one, which may
            depend on the machine: see ``HuggingFaceLM``.
    """

    problem: Any
    method: str = "none"
    training: Training | None = None
    twist: str | Path = ""
    twist_sha256: str = ""
    twist_power: float | int = 1.0
    proposal: str = ""
    resampler: str = "systematic"
    rule: str | Sequence[str] = ("ess",)
    ess_threshold: float | int = 0.5
    num_particles: int | Sequence[int] = (16,)
    num_runs: int = 100
    num_exact: int = 100
    num_samples: int = 500
    max_draws: int = 1_000_000
    seed: int = 0
    measures: str | Sequence[str] = ("bounds",)
    island: Sequence[int] = ()
    lm: str | Path = ""
    classifier: str | Path = ""
    device: str = ""
    memory_limit: float | int | None = field(default=None, compare=False)
    dtype: str = ""
    _text: str = field(default="", init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check every choice, and bring each into its one form."""
        object.__setattr__(self, "problem", problem_reference(self.problem))
        for name, allowed in (
            ("method", METHODS), ("proposal", PROPOSALS), ("resampler", sorted(SCHEMES)),
            ("dtype", DTYPES),
        ):  # fmt: skip
            check_one_of(name, getattr(self, name), allowed)
        for name, allowed in (("rule", sorted(RULES)), ("measures", MEASURES)):
            choices = as_list(name, getattr(self, name))
            for choice in choices:
                check_one_of(name, choice, allowed)
            object.__setattr__(self, name, tuple(choices))
        sizes = as_list("num_particles", self.num_particles)
        sizes = [check_integer("num_particles", size) for size in sizes]
        object.__setattr__(self, "num_particles", tuple(sizes))
        set_integers(self, num_runs=1, num_samples=2, max_draws=1, seed=0, num_exact=0)
        object.__setattr__(self, "ess_threshold", ESSBelow(self.ess_threshold).threshold)
        for name in ("lm", "classifier", "device", "twist", "twist_sha256"):
            value = getattr(self, name)
            if not isinstance(value, str | Path):
                raise TypeError(f"{name} must be a name or a folder; got {quoted(value)}.")
            object.__setattr__(self, name, str(value))
        if self.device:
            check_device(self.device)
        set_numbers(self, twist_power="(-inf, inf)")
        if self.memory_limit is not None:
            check_number("memory_limit", self.memory_limit, "(0, inf]")
        _check_island(self)
        _settle_twist(self)
        object.__setattr__(self, "_text", _canonical(self))

    @property
    def learns(self) -> bool:
        """Whether a twist is trained for it."""
        return self.method in LEARNING_METHODS

    @property
    def label(self) -> str:
        """The method as tables name it: of a saved twist, its folder."""
        return str(self.twist) if self.method == "saved" else self.method

    @property
    def problem_name(self) -> str:
        """The problem's name, also where it is described."""
        return self.problem if isinstance(self.problem, str) else self.problem["name"]

    @property
    def key(self) -> str:
        """A stable hash of everything above: 32 hexadecimal digits."""
        return hashlib.sha256(self._text.encode()).hexdigest()[:32]

    def __hash__(self) -> int:
        """Hash of the key."""
        return hash(self._text)

    def to_dict(self) -> dict[str, Any]:
        """In JSON's types, every field said."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.init}
        values["training"] = None if self.training is None else asdict(self.training)
        return json.loads(json.dumps(values))

    def to_json(self) -> str:
        """One line of JSON; ``from_json`` reads it back."""
        return json.dumps(self.to_dict(), sort_keys=True)

    @classmethod
    def from_dict(cls, given: Any) -> RunSpec:
        """A spec from its fields; those left out have their usual value.

        Raises:
            SpecFormatError: a field that no spec has, or a value that it may not have.
        """
        if not isinstance(given, Mapping):
            raise SpecFormatError(f"a spec must be a JSON object; got {quoted(given)}.")
        try:
            values = dict(_known(cls, given))
            if "problem" not in values:
                raise ValueError("a RunSpec needs a problem: a name in PROBLEMS, or a description.")
            if isinstance(values.get("training"), Mapping):
                values["training"] = Training(**_known(Training, values["training"]))
            return cls(**values)
        except TsmcError:
            raise
        except (ValueError, TypeError) as error:
            raise SpecFormatError(str(error)) from error

    @classmethod
    def from_json(cls, text: str) -> RunSpec:
        """A spec from what ``to_json`` gave, or from what a person wrote.

        Raises:
            SpecFormatError: the text is no JSON object, or not that of a spec.
        """
        try:
            given = load_json(text)
        except (ValueError, TypeError) as error:
            raise SpecFormatError(
                f"a spec must be a JSON object; got {quoted(text)}: {error}"
            ) from error
        return cls.from_dict(given)

    def with_(self, **changes: Any) -> RunSpec:
        """The same spec with some fields changed."""
        return replace(self, **_known(type(self), changes))


def _check_island(spec: RunSpec) -> None:
    given = spec.island
    island = tuple(map(whole_number, given)) if isinstance(given, list | tuple) else (None,)
    object.__setattr__(spec, "island", island)
    if not island:
        return
    if len(island) != 2 or None in island:
        raise ValueError(f"island must be (i, M), the i-th of M parts; got {quoted(given)}.")
    check_integer("number of islands", island[1])
    if not 0 <= island[0] < island[1]:
        raise ValueError(f"island must be one of 0 to {island[1] - 1}; got {island[0]}.")
    if spec.measures != ("runs",):
        raise ValueError(
            "islands give log Z_hat of their runs and nothing else: measures must be ('runs',); "
            f"got {quoted(spec.measures)}."
        )
    for size in spec.num_particles:
        if size % island[1]:
            raise ValueError(
                f"num_particles must be a multiple of the {island[1]} islands; got {size}."
            )


def _settle_twist(spec: RunSpec) -> None:
    """A spec says of the twist what its method needs, and nothing else."""
    if spec.learns and spec.training is None:
        object.__setattr__(spec, "training", Training())
    if not spec.learns and spec.training is not None:
        raise ValueError(
            f"method {quoted(spec.method)} trains nothing: leave training out, or choose one of "
            f"{', '.join(LEARNING_METHODS)}."
        )
    if (spec.method == "saved") != bool(spec.twist):
        raise ValueError(
            "method 'saved' and twist, the folder that save_twist wrote, go together; got "
            f"method={quoted(spec.method)} and twist={quoted(spec.twist)}."
        )
    if spec.method == "shipped" and shipped_folder(spec.problem_name) is None:
        raise ValueError(
            f"no twist ships for {quoted(spec.problem_name)}; there are some for "
            f"{', '.join(shipped_twists())}."
        )
    if not spec.twist_sha256:
        object.__setattr__(spec, "twist_sha256", twist_card(spec).get("weights_sha256", ""))
    if spec.method in TEXT_METHODS and spec.measures != ("texts",):
        raise ValueError(
            f"method {quoted(spec.method)} gives texts and no weights: measures must be "
            "('texts',); got "
            f"{quoted(spec.measures)}."
        )
    if spec.method in ("none", *TEXT_METHODS) and spec.proposal == "twist":
        raise ValueError(
            f"method {quoted(spec.method)} has no twist to propose with: leave proposal out."
        )


def twist_card(spec: RunSpec) -> dict[str, Any]:
    """What stands beside the weights of a spec's saved twist; empty where that is not here.

    Raises:
        TwistFormatError: it does not describe a twist.
    """
    if spec.method not in ("saved", "shipped"):
        return {}
    # A twist that ships is as good as a folder: problems that are like its own may take it.
    name = spec.twist or spec.problem_name
    card = (shipped_folder(name) or Path(name)) / CARD
    if not card.is_file():
        return {}
    try:
        found = load_json(card.read_bytes())
        return {**found, "weights_sha256": str(found["weights_sha256"])}
    except (ValueError, KeyError, TypeError) as error:
        raise TwistFormatError(f"{str(card)!r} does not describe a twist.") from error


def _canonical(spec: RunSpec) -> str:
    """What the key is made of: fields that differ from their usual value.

    A field that a later version adds leaves the keys of stored results as they are.
    """
    values = _unusual(spec)
    if spec.training is not None:
        values["training"] = _unusual(spec.training)
    whole = {"version": VERSION, "spec": values}
    return json.dumps(whole, sort_keys=True, allow_nan=False)


def _unusual(holder: Any) -> dict[str, Any]:
    return {
        f.name: getattr(holder, f.name)
        for f in fields(holder)
        if f.init and f.compare and getattr(holder, f.name) != f.default
    }


def _known(kind: type, given: Mapping[str, Any]) -> Mapping[str, Any]:
    names = [f.name for f in fields(kind) if f.init]
    for name in given:
        if name not in names:
            near = difflib.get_close_matches(str(name), names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(names)}."
            raise ValueError(f"a {kind.__name__} has no field {quoted(name)}: {hint}")
    return given
