"""Artifacts that runs share (models, exact samples, trained twists), and result files.

Each artifact is made once in a process, and kept on disk where there is a folder, so that other
workers and later sessions find it. It is made from a target of its own: whether a run found it or
made it changes nothing in its numbers.
"""

from __future__ import annotations

import contextlib
import json
import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from tsmc_widgets.errors import (
    BudgetError,
    MissingExtraError,
    PotentialError,
    TsmcError,
    TwistFormatError,
    quoted,
)
from tsmc_widgets.experiments.spec import TEXT_METHODS, VERSION, RunSpec, Training
from tsmc_widgets.files import (
    checksum,
    file_lock,
    load_json,
    read_checked,
    write_atomically,
    write_checked,
)
from tsmc_widgets.learning.objectives import link_for
from tsmc_widgets.learning.positives import ExactPool
from tsmc_widgets.learning.trainer import TwistTrainer
from tsmc_widgets.smc.exact import Oracle, exact
from tsmc_widgets.targets.classifier import own_caches
from tsmc_widgets.targets.description import observation_of, parse_problem
from tsmc_widgets.targets.exact_samples import ExactSamples, JointSamples
from tsmc_widgets.targets.target import Target
from tsmc_widgets.twists.forms import make_twist
from tsmc_widgets.twists.lookahead import LookAheadTwist, TemperedTwist
from tsmc_widgets.twists.storage import load_twist, save_twist

STORE_FORMAT = "tsmc_widgets.Result"
STORE_VERSION = 1


class DamagedFileError(TsmcError, ValueError):
    """A result file is truncated, changed, or not of this package."""


def dumps(value: Any) -> str:
    """JSON with sorted keys; NaN and infinite numbers, which JSON lacks, become objects.

    Equal values give equal bytes, so that files can be compared byte by byte.
    """
    return json.dumps(_json_ready(value), sort_keys=True, allow_nan=False)


def loads(text: str | bytes) -> Any:
    """What ``dumps`` was given."""
    return load_json(text, object_hook=_float_of)


def write_file(path: Path, value: Any) -> Path:
    """Write a value with its checksum; a reader sees the old file or the new one, whole."""
    content = dumps(value).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_checked(path, content, file_format=STORE_FORMAT, version=STORE_VERSION)


def read_file(path: Path) -> Any:
    """The value of a file that ``write_file`` wrote.

    Raises:
        FileNotFoundError: no such file.
        DamagedFileError: it is cut short, changed, of a newer version or not of this package.
    """
    try:
        versions = range(1, STORE_VERSION + 1)
        return loads(read_checked(path, file_format=STORE_FORMAT, versions=versions))
    except (ValueError, TypeError) as error:
        raise DamagedFileError(f"{str(path)!r} is no stored result: {error}.") from error


def _json_ready(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _json_ready(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_json_ready(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": repr(value)}
    return value


def _float_of(entry: dict[str, Any]) -> Any:
    return float(entry["$float"]) if set(entry) == {"$float"} else entry


POOL_SEED = 1_000_003
"""Pools to learn from never share their seed with the samples that measure what was learned."""

_LOADING = threading.RLock()
MAX_IN_MEMORY = 32
"""Samples and twists kept in memory; the oldest goes first."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Exact samples, and where they come from.

    Attributes:
        samples: as ``target.exact_samples`` gives them; None where there are none.
        source: in words.
        oracle: what is known exactly; None elsewhere.
    """

    samples: ExactSamples | JointSamples | None
    source: str
    oracle: Oracle | None = None

    @property
    def tokens(self) -> Int[Tensor, "n steps"] | None:
        """The sequences; None where there are none."""
        return None if self.samples is None else self.samples.tokens


def fresh_target(spec: RunSpec) -> Target:
    """The spec's target, sharing models with others and nothing else."""
    with _LOADING, own_caches():
        return parse_problem(spec.problem).target(
            spec.lm or None,
            classifier=spec.classifier or None,
            device=spec.device or None,
            dtype=spec.dtype or None,
        )


def oracle_of(spec: RunSpec, target: Target) -> Oracle | None:
    """The oracle of a problem that is known to be small; None for others."""
    if target.is_conditional or not parse_problem(spec.problem).exact:
        return None
    return exact(target)


def held_out(spec: RunSpec, n: int, seed: int, folder: Path | None) -> HeldOut:
    """Exact samples of a spec's problem, the same for all specs of it."""
    if not n:
        return HeldOut(None, "none were asked for")
    key = _key("samples", spec, {"n": n, "seed": seed, "max_draws": spec.max_draws})
    path = Path(folder or ".") / "samples" / f"{key}.json"
    found = _find_or_make(
        key,
        folder,
        read=lambda: read_file(path),
        make=lambda: _draw(spec, n, seed),
        write=lambda made: write_file(path, made),
    )
    oracle = oracle_of(spec, fresh_target(spec)) if found["kind"] == "oracle" else None
    return HeldOut(_samples(found, spec), found["source"], oracle)


def _draw(spec: RunSpec, n: int, seed: int) -> dict[str, Any]:
    """Exact samples by the oracle, by joint draws or by rejection, in JSON's types."""
    target = fresh_target(spec)
    oracle = oracle_of(spec, target)
    if oracle is not None:
        tokens = oracle.sample(n, seed)
        found = ExactSamples(tokens, target.log_phi(tokens), n, n, oracle.log_z, 0.0)
        return _described("oracle", "the oracle", found)
    try:
        found = target.exact_samples(n, seed=seed, budget=spec.max_draws, progress=False)
    except PotentialError as error:
        return {"kind": "none", "source": f"none: {error}"}
    except BudgetError as error:
        found = error.samples
    if isinstance(found, JointSamples):
        return _described("joint", "joint draws", found)
    drawn, count = f"{found.proposed:,} draws", len(found.tokens)
    if count < 2:
        return {"kind": "none", "source": f"none: {drawn} from p0 gave {count}"}
    return _described("rejection", f"rejection, {count:,} from {drawn}", found)


FIELDS = {
    JointSamples: ("tokens", "observed"),
    ExactSamples: ("tokens", "log_phi", "proposed", "accepted", "log_z", "error"),
}
"""What files call the fields of samples, in their order."""


def _described(kind: str, source: str, found: ExactSamples | JointSamples) -> dict[str, Any]:
    values = (getattr(found, field.name) for field in fields(found))
    plain = (value.tolist() if isinstance(value, Tensor) else value for value in values)
    return {"kind": kind, "source": source, **dict(zip(FIELDS[type(found)], plain, strict=True))}


def _samples(found: dict[str, Any], spec: RunSpec) -> ExactSamples | JointSamples | None:
    if found["kind"] == "none":
        return None
    made = JointSamples if found["kind"] == "joint" else ExactSamples
    values = [found[name] for name in FIELDS[made]]
    for at, name in enumerate(FIELDS[made]):
        if isinstance(values[at], list):
            dtype = torch.float64 if name == "log_phi" else torch.int64
            values[at] = torch.tensor(values[at], dtype=dtype, device=spec.device or None)
    return made(*values)


def twist_of(spec: RunSpec, target: Target, folder: Path | None) -> Any:
    """The spec's twist on a target's model, to its power; None for psi = 1.

    Raises:
        TwistFormatError: a saved twist is not the one that the spec was written for.
        BudgetError: the optimal twist of a target that is too large for it.
    """
    if spec.method in ("none", *TEXT_METHODS):
        return None
    if spec.method == "look-ahead":
        twist = LookAheadTwist(target, seed=spec.seed)
    elif spec.method == "optimal":
        twist = exact(target).optimal_twist()
    elif spec.method in ("saved", "shipped"):
        twist = _saved(spec, target)
    else:
        twist = _learned(spec, target, folder)
    return twist if spec.twist_power == 1 else TemperedTwist(twist, spec.twist_power)


def _saved(spec: RunSpec, target: Target) -> Any:
    where = spec.twist or spec.problem_name
    twist = load_twist(where, target.lm)
    found = twist.card["weights_sha256"]
    if spec.twist_sha256 and found != spec.twist_sha256:
        raise TwistFormatError(
            f"the twist in {quoted(where)} has other weights ({found[:12]}...) than the spec says "
            f"({spec.twist_sha256[:12]}...): write the spec again for the new twist."
        )
    observed = observation_of(spec.problem, target.lm)
    if observed is not None and twist.is_conditional:
        return twist.condition(observed)
    return twist


def _learned(spec: RunSpec, target: Target, folder: Path | None) -> Any:
    """Trained once for all specs that ask for the same training."""
    key = _key("twist", spec, {"method": spec.method, "training": asdict(spec.training)})
    where = Path(folder or ".") / "twists" / key

    def write(trained: tuple[Any, list[dict[str, Any]]]) -> None:
        with write_atomically(where) as part:
            save_twist(trained[0], part, target=target, history=trained[1])

    return _find_or_make(
        key,
        folder,
        read=lambda: (load_twist(where, target.lm), []),
        make=lambda: train(spec, folder),
        write=write,
    )[0]


def train(spec: RunSpec, folder: Path | None = None) -> tuple[Any, list[dict[str, Any]]]:
    """Train a spec's twist from the beginning: the twist, and what each update did."""
    plan = spec.training
    target = fresh_target(spec)
    form = plan.form or parse_problem(spec.problem).form
    twist = make_twist(form, target, link=link_for(spec.method), seed=plan.seed)
    more = {"observations": plan.observations} if plan.observations else {}
    trainer = TwistTrainer(
        target,
        twist,
        method=spec.method,
        batch_size=plan.batch_size,
        learning_rate=plan.learning_rate or None,
        positives=None if target.is_conditional else _pool(spec, plan, folder),
        seed=plan.seed,
        **more,
    )
    history = []
    for update in trainer.updates(plan.num_updates):
        record = {"update": update.number, "ess": update.ess, "skipped": update.skipped}
        history.append({**record, **update.losses, "positives": update.positives})
    return trainer.twist, history


def _pool(spec: RunSpec, plan: Training, folder: Path | None) -> ExactPool | None:
    if not plan.pool:
        return None
    wanted = spec.with_(max_draws=plan.max_draws)
    found = held_out(wanted, plan.pool, POOL_SEED + plan.seed, folder).samples
    if found is None or len(found.tokens) < plan.pool / 4:
        return None
    return ExactPool(found.tokens, found.log_phi, plan.seed)


def _key(kind: str, spec: RunSpec, more: dict[str, Any]) -> str:
    """A stable hash of all that an artifact depends on."""
    whole = {name: getattr(spec, name) for name in ("problem", "lm", "classifier", "device")}
    if spec.dtype:
        whole["dtype"] = spec.dtype
    text = dumps({"kind": kind, "version": VERSION, **whole, **more})
    return checksum(text.encode())[:32]


@lru_cache(maxsize=MAX_IN_MEMORY)
def _lock(key: str) -> threading.Lock:
    return threading.Lock()


_MADE: dict[str, Any] = {}


def _find_or_make(
    key: str,
    folder: Path | None,
    *,
    read: Callable[[], Any],
    make: Callable[[], Any],
    write: Callable[[Any], Any],
) -> Any:
    """An artifact from memory, else from the folder, else made and written there.

    Other threads and processes that ask for the same one wait meanwhile.
    """
    with _LOADING:
        lock = _lock(key)
    with lock:
        made = _MADE.get(key)
        if made is None:
            with file_lock(folder, key):
                made = make() if folder is None else _share(read, make, write)
            with _LOADING:
                while len(_MADE) >= MAX_IN_MEMORY:
                    _MADE.pop(next(iter(_MADE)))
                _MADE[key] = made
        return made


def _share(read: Callable[[], Any], make: Callable[[], Any], write: Callable[[Any], Any]) -> Any:
    """What the folder holds, or make it and write it there.

    A worker that cannot read or write the folder makes its own, which is the same to the byte.
    """
    with contextlib.suppress(OSError, DamagedFileError, TwistFormatError):
        return read()
    made = make()
    with contextlib.suppress(OSError, MissingExtraError):
        write(made)
    return made


def forget() -> None:
    """Drop every sample and twist from memory; files stay."""
    _MADE.clear()
