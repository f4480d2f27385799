"""What runs share: models, exact samples and trained twists, each made once for each process.

Samples and twists are also kept on disk where there is a folder, so that other workers and later
sessions find them. They are made from targets of their own: whether a run found them or made them
changes nothing in its numbers.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import filelock
import torch
from jaxtyping import Int
from torch import Tensor

from tsmc_widgets.errors import (
    BudgetError,
    MissingExtraError,
    PotentialError,
    TsmcError,
    TwistFormatError,
)
from tsmc_widgets.experiments.spec import TEXT_METHODS, VERSION, RunSpec, Training
from tsmc_widgets.learning.objectives import link_for
from tsmc_widgets.learning.positives import ExactPool
from tsmc_widgets.learning.trainer import TwistTrainer
from tsmc_widgets.smc.exact import Oracle, exact
from tsmc_widgets.targets.classifier import own_caches
from tsmc_widgets.targets.description import observation_of, problem_of
from tsmc_widgets.targets.exact_samples import ExactSamples, JointSamples
from tsmc_widgets.targets.target import Target
from tsmc_widgets.twists.forms import make_twist
from tsmc_widgets.twists.lookahead import LookAheadTwist, TemperedTwist
from tsmc_widgets.twists.protocol import is_conditional_twist
from tsmc_widgets.twists.storage import load_twist, save_twist

STORE_FORMAT = "tsmc_widgets.Result"
STORE_VERSION = 1


class DamagedFileError(TsmcError, ValueError):
    """A file of the store is cut short, changed, or none of this package's."""


def dumps(value: Any) -> str:
    """JSON with sorted keys; numbers that JSON has no word for become objects.

    Two equal values give equal texts, so that files can be compared byte by byte.
    """
    return json.dumps(_spell(value), sort_keys=True, allow_nan=False, ensure_ascii=False)


def loads(text: str) -> Any:
    """What ``dumps`` was given."""
    return json.loads(text, object_hook=_read_checked)


def write_file(path: Path, value: Any) -> Path:
    """Write a value with its checksum; a reader sees the old file, the new one, or none."""
    payload = dumps(value)
    sha256 = hashlib.sha256(payload.encode()).hexdigest()
    head = json.dumps({"format": STORE_FORMAT, "version": STORE_VERSION, "sha256": sha256})
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        part.write_text(f"{head}\n{payload}\n", encoding="utf-8")
        part.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise
    return path


def read_file(path: Path) -> Any:
    """The value of a file that ``write_file`` wrote.

    Raises:
        FileNotFoundError: no such file.
        DamagedFileError: it is cut short, changed, of a newer version or not of this package.
    """
    try:
        head, payload = path.read_text(encoding="utf-8").removesuffix("\n").split("\n", 1)
        said = json.loads(head)
        if said["format"] != STORE_FORMAT or said["version"] > STORE_VERSION:
            raise DamagedFileError(
                f"{str(path)!r} is of format {said['format']!r}, version {said['version']!r}; this "
                f"version of the package reads {STORE_FORMAT!r} up to {STORE_VERSION}."
            )
        if hashlib.sha256(payload.encode()).hexdigest() != said["sha256"]:
            raise ValueError("its checksum is another")
        return loads(payload)
    except DamagedFileError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedFileError(f"{str(path)!r} is damaged or cut short: {error}.") from error


def _spell(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _spell(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_spell(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": repr(value)}
    return value


def _read_checked(entry: dict[str, Any]) -> Any:
    return float(entry["$float"]) if set(entry) == {"$float"} else entry


POOL_SEED = 1_000_003
"""Pools to learn from are drawn apart from the samples that measure what was learned."""

_LOADING = threading.RLock()
_MOST = 32


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Exact samples, and where they come from.

    Attributes:
        samples: as ``target.exact_samples`` gives them; None where there is no way to any.
        source: in words.
        oracle: what is known exactly; None elsewhere.
    """

    samples: ExactSamples | JointSamples | None
    source: str
    oracle: Oracle | None = None

    @property
    def tokens(self) -> Int[Tensor, "n steps"] | None:
        """The texts; None where there are none."""
        return None if self.samples is None else self.samples.tokens


def fresh_target(spec: RunSpec) -> Target:
    """The spec's target, sharing models with others and nothing else."""
    with _LOADING, own_caches():
        return problem_of(spec.problem).target(
            spec.lm or None, classifier=spec.classifier or None, device=spec.device or None
        )


def oracle_of(spec: RunSpec, target: Target) -> Oracle | None:
    """The oracle of a problem that is known to be small; None for others."""
    if target.is_conditional or not problem_of(spec.problem).exact:
        return None
    return exact(target)


def held_out(spec: RunSpec, n: int, seed: int, folder: Path | None) -> HeldOut:
    """Exact samples of a spec's problem, the same for all specs of it."""
    if not n:
        return HeldOut(None, "none were asked for")
    key = _key("samples", spec, {"n": n, "seed": seed, "max_draws": spec.max_draws})

    def find() -> dict[str, Any] | None:
        return None if folder is None else _read(folder / "samples" / f"{key}.json")

    def make() -> dict[str, Any]:
        made = _draw(spec, n, seed)
        if folder is not None:
            _keep(lambda: write_file(folder / "samples" / f"{key}.json", made))
        return made

    def find_or_make() -> dict[str, Any]:
        with _alone(folder, key):
            return find() or make()

    found = _once(key, find_or_make)
    target_oracle = None
    if found["kind"] == "oracle":
        target_oracle = oracle_of(spec, fresh_target(spec))
    return HeldOut(_samples(found, spec), found["source"], target_oracle)


def _draw(spec: RunSpec, n: int, seed: int) -> dict[str, Any]:
    target = fresh_target(spec)
    oracle = oracle_of(spec, target)
    if oracle is not None:
        tokens = oracle.sample(n, seed)
        numbers = {"proposed": n, "accepted": n, "log_z": oracle.log_z, "error": 0.0}
        log_phi = target.log_phi(tokens).tolist()
        return {"kind": "oracle", "source": "the oracle", "tokens": tokens.tolist(),
                "log_phi": log_phi, **numbers}  # fmt: skip
    try:
        found = target.exact_samples(n, seed=seed, budget=spec.max_draws, progress=False)
    except PotentialError as error:
        return {"kind": "none", "source": f"none: {error}"}
    except BudgetError as error:
        found = error.samples
    if isinstance(found, JointSamples):
        return {"kind": "joint", "source": "joint draws", "tokens": found.tokens.tolist(),
                "observed": found.observed.tolist()}  # fmt: skip
    if len(found.tokens) < 2:
        text = f"none: {found.proposed:,} draws from p0 gave {len(found.tokens)}"
        return {"kind": "none", "source": text}
    return {
        "kind": "rejection",
        "source": f"rejection, {len(found.tokens):,} from {found.proposed:,} draws",
        "tokens": found.tokens.tolist(),
        "log_phi": found.log_phi.tolist(),
        "proposed": found.proposed,
        "accepted": found.accepted,
        "log_z": found.log_z,
        "error": found.log_z_standard_error,
    }


def _samples(found: dict[str, Any], spec: RunSpec) -> ExactSamples | JointSamples | None:
    if found["kind"] == "none":
        return None
    device = spec.device or None
    tokens = torch.tensor(found["tokens"], dtype=torch.int64, device=device)
    if found["kind"] == "joint":
        observed = torch.tensor(found["observed"], dtype=torch.int64, device=device)
        return JointSamples(tokens, observed)
    return ExactSamples(
        tokens,
        torch.tensor(found["log_phi"], dtype=torch.float64, device=device),
        found["proposed"],
        found["accepted"],
        found["log_z"],
        found["error"],
    )


def twist_of(spec: RunSpec, target: Target, folder: Path | None) -> Any:
    """The spec's twist on a target's model, to its power; None for psi = 1.

    Raises:
        TwistFormatError: a saved twist is not the one that the spec was written for.
        BudgetError: the optimal twist of a target that is too large for it.
    """
    if spec.method in ("none", *TEXT_METHODS):
        return None
    twist = _plain_twist(spec, target, folder)
    return twist if spec.twist_power == 1 else TemperedTwist(twist, spec.twist_power)


def _plain_twist(spec: RunSpec, target: Target, folder: Path | None) -> Any:
    if spec.method == "look-ahead":
        return LookAheadTwist(target, seed=spec.seed)
    if spec.method == "optimal":
        return exact(target).optimal_twist()
    if spec.method in ("saved", "shipped"):
        return _saved(spec, target)
    return _learned(spec, target, folder)


def _saved(spec: RunSpec, target: Target) -> Any:
    where = spec.twist or spec.problem_name
    twist = load_twist(where, target.lm)
    found = twist.card["weights_sha256"]
    if spec.twist_sha256 and found != spec.twist_sha256:
        raise TwistFormatError(
            f"the twist in {where!r} has other weights ({found[:12]}...) than the spec says "
            f"({spec.twist_sha256[:12]}...): write the spec again for the new twist."
        )
    observed = observation_of(spec.problem, target.lm)
    if observed is not None and is_conditional_twist(twist):
        return twist.condition(observed)
    return twist


def _learned(spec: RunSpec, target: Target, folder: Path | None) -> Any:
    """Trained once for all specs that ask for the same training."""
    key = training_key(spec)

    def make() -> Any:
        where = None if folder is None else folder / "twists" / key
        with _alone(folder, key):
            if where is not None and where.is_dir():
                with contextlib.suppress(TwistFormatError, FileNotFoundError):
                    return load_twist(where, target.lm)
            twist, history = train(spec, folder)
            if where is not None:
                _keep(lambda: _save_whole(twist, where, target, history))
            return twist

    return _once(key, make)


def train(spec: RunSpec, folder: Path | None = None) -> tuple[Any, list[dict[str, Any]]]:
    """Train a spec's twist from the beginning: the twist, and what each update did."""
    plan = spec.training
    target = fresh_target(spec)
    form = plan.form or problem_of(spec.problem).form
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
        said = {"update": update.number, "ess": update.ess, "skipped": update.skipped}
        history.append({**said, **update.losses, "positives": update.positives})
    return trainer.twist, history


def _pool(spec: RunSpec, plan: Training, folder: Path | None) -> ExactPool | None:
    if not plan.pool:
        return None
    wanted = spec.with_(max_draws=plan.max_draws)
    found = held_out(wanted, plan.pool, POOL_SEED + plan.seed, folder).samples
    if found is None or len(found.tokens) < plan.pool / 4:
        return None
    return ExactPool(found.tokens, found.log_phi, plan.seed)


def training_key(spec: RunSpec) -> str:
    """A stable hash of all that a spec's trained twist depends on."""
    return _key("twist", spec, {"method": spec.method, "training": asdict(spec.training)})


def _key(kind: str, spec: RunSpec, more: dict[str, Any]) -> str:
    whole = {name: getattr(spec, name) for name in ("problem", "lm", "classifier", "device")}
    text = dumps({"kind": kind, "version": VERSION, **whole, **more})
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@lru_cache(maxsize=_MOST)
def _lock(key: str) -> threading.Lock:
    return threading.Lock()


_MADE: dict[str, Any] = {}


def _once(key: str, make: Callable[[], Any]) -> Any:
    """What was made under a key in this process, or make it; others wait meanwhile."""
    with _LOADING:
        lock = _lock(key)
    with lock:
        if key not in _MADE:
            while len(_MADE) >= _MOST:
                _MADE.pop(next(iter(_MADE)))
            _MADE[key] = make()
        return _MADE[key]


@contextlib.contextmanager
def _alone(folder: Path | None, key: str) -> Iterator[None]:
    """Let one worker make what others wait for; the lock goes when its holder does, killed or not.

    Where files can not be locked every worker makes its own, which is the same to the byte.
    """
    lock = None
    if folder is not None:
        with contextlib.suppress(OSError, NotImplementedError):
            (folder / "locks").mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(folder / "locks" / key)
            lock.acquire()
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def forget() -> None:
    """Drop every sample and twist from memory; files stay."""
    _MADE.clear()


def _read(path: Path) -> Any:
    try:
        return read_file(path)
    except (OSError, DamagedFileError):
        return None


def _keep(write: Callable[[], Any]) -> None:
    """Write a shared file if that is possible; a worker without the folder does without."""
    with contextlib.suppress(OSError, MissingExtraError):
        write()


def _save_whole(twist: Any, where: Path, target: Target, history: list[dict[str, Any]]) -> None:
    part = where.with_name(f"{where.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        save_twist(twist, part, target=target, history=history)
        if where.is_dir():
            shutil.rmtree(where, ignore_errors=True)
        part.replace(where)
    finally:
        shutil.rmtree(part, ignore_errors=True)
