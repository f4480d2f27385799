"""Training loop: an iterator that can be paused, interrupted, saved and resumed byte for byte.

A checkpoint is one file without pickle: parameters, optimiser, pool and history.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import random
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor, nn

from tsmc_widgets import numerics
from tsmc_widgets.errors import (
    CheckpointError,
    NoSignalError,
    check_integer,
    check_number,
    import_extra,
    quoted,
)
from tsmc_widgets.files import load_json, read_checked, write_checked
from tsmc_widgets.learning.conditional import ConditionalPositives, make_batches
from tsmc_widgets.learning.objectives import (
    RECIPES,
    PolicySteps,
    PPOSettings,
    resolve_method,
    weighted_sum,
)
from tsmc_widgets.learning.positives import (
    ExactPool,
    Positives,
    ReplayedPositives,
    WeightedPositives,
)
from tsmc_widgets.learning.processes import Processes
from tsmc_widgets.learning.rates import (
    Rate,
    RunningAverage,
    resolve_rate,
    resolve_steps,
    set_level,
)
from tsmc_widgets.learning.samples import Samples, TokenSums, score
from tsmc_widgets.smc.memory import check_training
from tsmc_widgets.targets.target import Target, check_target
from tsmc_widgets.twists.protocol import TrainableTwist, as_twist


@dataclass(frozen=True, slots=True)
class Update:
    """What one update did.

    Attributes:
        number: of the update, from 1.
        losses: each loss by name, in nats; empty where the update was skipped.
        ess: effective sample size of the batch's final weights, in [0, batch size]; the mean over
            observations where there are several, each in [0, its texts].
        log_z: log mean weight of the batch, an estimate of log Z in nats, and the mean over
            observations; -inf without a hit.
        hits: texts of the batch with phi > 0, among those whose phi was computed.
        gradient_norm: before clipping; NaN where skipped.
        positives: where samples of sigma came from; None where the method reads none.
        skipped: whether there was no signal (no text with phi > 0), so that nothing changed.
        kl: estimate of KL(q || p0) before it, in nats, and ``kl_coefficient``, what a nat of it
            cost: both for ppo alone, else None.
        seconds: that the update took.
        evaluation: what the evaluation hook returned after it; None where it was not asked.
    """

    number: int
    losses: dict[str, float]
    ess: float
    log_z: float
    hits: int
    gradient_norm: float
    positives: str | None
    skipped: bool
    seconds: float
    evaluation: Any = None
    kl: float | None = None
    kl_coefficient: float | None = None

    @property
    def gap(self) -> float:
        """The evaluation's gap of bounds, in nats; NaN where it has none."""
        return getattr(self.evaluation, "gap", math.nan)


def _check_power(target: Target, weights: Mapping[str, float]) -> None:
    """Refuse losses whose psi is a mean of phi over p0's texts, which is not psi* under a power."""
    regress = sorted({"cd", "fudge"} & set(weights))
    if target.power != 1 and regress:
        raise ValueError(
            f"{regress[0]} learns the mean of phi over p0's texts, and of a target with "
            f"power={target.power!r} psi* is none: use ctl, rl, sixo, nvi, dpg or ppo."
        )


def _check_fits(twist: Any, weights: Mapping[str, float]) -> None:
    """Refuse twists that cannot learn, or not by these losses."""
    if not isinstance(twist, nn.Module) or not isinstance(twist, TrainableTwist):
        raise TypeError(
            f"twist must be a trainable form such as LinearHeadTwist(lm); got "
            f"{type(twist).__name__}."
        )
    if not any(parameter.requires_grad for parameter in twist.parameters()):
        raise ValueError(f"{type(twist).__name__} has no parameter that learns.")
    if "fudge" in weights and twist.link != "sigmoid":
        raise ValueError(
            "fudge learns a probability: make the twist with link='sigmoid', for example "
            "LinearHeadTwist(lm, link='sigmoid')."
        )


@contextlib.contextmanager
def progress_bar(
    total: int, *, shown: bool, weights: Mapping[str, float] = MappingProxyType({})
) -> Iterator[Callable[[Any], None]]:
    """Yield a function that takes each update; the bar closes however the loop ends.

    It shows the weighted sum of the losses, the effective sample size, and the bound gap of the
    last evaluation that had one, all in nats but for the ESS.

    Args:
        total: updates to come.
        shown: whether there is a bar at all.
        weights: of losses by name; 1 where none is given.
    """
    if not shown:
        yield lambda update: None
        return
    from tqdm.auto import tqdm

    gap = math.nan

    def show(update: Any) -> None:
        nonlocal gap
        gap = gap if math.isnan(update.gap) else update.gap
        words = {"loss": "no signal", "ESS": f"{update.ess:.1f}"}
        if update.losses:
            words["loss"] = f"{weighted_sum(update.losses, weights):.3f}"
        if not math.isnan(gap):
            words["gap"] = f"{gap:.3f}"
        bar.set_postfix(words, refresh=False)
        bar.update()

    with tqdm(total=total, desc="learning", unit="update") as bar:
        yield show


OTHERS = 32
"""Tokens of q at each prefix from which later steps on a batch read its sum."""
PAST = 10
"""Batches, the newest among them, from which every other later step reads one."""
FAINT_STEPS = 10
"""Steps in a row with gradients below Adam's eps after which a training warns."""


class TwistTrainer:
    """Trains a twist for a target; ``for update in trainer.updates(n)`` is the whole use.

    Args:
        target: what the twist is for. Where it waits for an observation the twist must be a
            conditional form: each update draws observations of its own and learns from all.
        twist: a ``TrainableTwist``; its parameters are changed in place. A fresh one starts at a
            constant psi, its ``level``: 1, or the mean of phi in the first batch for losses that
            read phi, which learn in units of it.
        method: one of ``METHODS``, or a mapping of losses to weights for another sum.
        batch_size: texts drawn for each update, and positives read.
        learning_rate: of Adam without weight decay: a number, which is constant, a
            ``ConstantRate`` or a ``FallingRate``; None takes the form's default.
        averaging: weight of the past in the running average of the parameters, in [0, 1). The
            twist holds the average between updates and learns where its parameters are; 0 averages
            nothing, as in the paper; None is ``DEFAULT_AVERAGING``.
        positives: a source of samples of sigma; None is ``ReplayedPositives``, which learns from
            the training's own batches.
        observations: of a conditional target, drawn for each update; ``batch_size`` texts are
            shared out among them. None gives each two, or a few more where that does not
            come out even.
        steps: of Adam for each batch. Drawing texts from a large model costs far more than a step
            of a tied head, and every loss holds for texts of an earlier q: of a tied head, every
            other step is on one of the last batches. None takes 16 for path consistency on a tied
            head, else 1.
        ppo: settings of that method, which takes steps of its own; None is ``PPOSettings()``.
        accelerator: an ``accelerate.Accelerator`` whose processes share the training; each takes
            texts of its own, ``batch_size`` of them. The base model must be on its device.
        seed: address of all noise; equal arguments give equal bytes.
        max_gradient_norm: gradients longer than this are shortened; infinite for none.

    Attributes:
        history: every update so far.
        skipped: how many updates found no signal.
        warning: what is wrong with the training, such as gradients that vanish; "" for nothing.
    """

    def __init__(
        self,
        target: Target,
        twist: Any,
        *,
        method: str | Mapping[str, float] = "ctl",
        batch_size: int = 100,
        learning_rate: float | int | Rate | None = None,
        averaging: float | int | None = None,
        positives: Positives | ConditionalPositives | None = None,
        observations: int | None = None,
        steps: int | None = None,
        ppo: PPOSettings | None = None,
        seed: int = 0,
        max_gradient_norm: float = 10.0,
        accelerator: Any = None,
    ) -> None:
        check_target(target)
        self.weights = resolve_method(method)
        check_integer("batch_size", batch_size, at_least=2)
        check_integer("seed", seed, at_least=0)
        check_number("max_gradient_norm", max_gradient_norm, "(0, inf]")
        _check_fits(twist, self.weights)
        check_training(target, twist, batch_size)
        _check_power(target, self.weights)
        rate = resolve_rate(learning_rate, twist)
        self.target, self.twist = target, twist
        self.batch_size, self.seed = batch_size, seed
        self.learning_rate, self.max_gradient_norm = rate, max_gradient_norm
        self.steps = resolve_steps(steps, twist, self.weights)
        self.history: list[Update] = []
        self.warning, self._faint = "", 0
        self._past: list[Samples] = []
        if ppo is not None and "ppo" not in self.weights:
            raise ValueError(f"ppo={quoted(ppo)} needs method='ppo'; got {quoted(method)}.")
        if self.steps > 1 and "ppo" in self.weights:
            raise ValueError(f"steps={steps} is not for ppo: say PPOSettings(epochs={steps}).")
        self._policy = PolicySteps(target, twist, ppo) if "ppo" in self.weights else None
        self._share = Processes(accelerator)
        self._batches = make_batches(
            target,
            twist,
            weights=self.weights,
            batch_size=batch_size,
            observations=observations,
            positives=positives,
            seed=seed,
            stride=self._share.count,
            others=OTHERS if self.steps > 1 else 0,
        )
        modules = [twist] if self._policy is None else [twist, self._policy.critic]
        self._modules = nn.ModuleList(modules)
        self._share.place(self._modules, target.prompt_tokens.device)
        self._optimiser = self._share.prepare(
            torch.optim.Adam(self._modules.parameters(), lr=rate.at(0))
        )
        self._average = RunningAverage(twist.parameters(), averaging)
        twist.method = "+".join(sorted(self.weights))

    @property
    def done(self) -> int:
        """Updates taken."""
        return len(self.history)

    @property
    def skipped(self) -> int:
        """Updates that found no signal."""
        return sum(update.skipped for update in self.history)

    @property
    def positives(self) -> Positives | ConditionalPositives | None:
        """The source of samples of sigma; None where the method reads none."""
        return self._batches.positives

    def updates(
        self,
        n: int,
        *,
        evaluate: Callable[[Any], Any] | None = None,
        every: int = 50,
        stop_gap: float | None = None,
        progress: bool = False,
    ) -> Iterator[Update]:
        """Take ``n`` more updates, one for each item asked for.

        Leaving the loop pauses it. An error or an interrupt leaves the trainer as it was before
        the update that it broke off, in its evaluation too.

        Args:
            n: how many at most.
            evaluate: called with the twist after every ``every``-th update; its answer, bounds on
                log Z for example, becomes the update's ``evaluation``.
            every: updates between evaluations.
            stop_gap: stop once an evaluation has a ``gap`` at most this large, in nats.
            progress: whether to show a bar with loss, ESS and gap.
        """
        check_integer("n", n)
        check_integer("every", every)
        if stop_gap is not None and evaluate is None:
            raise ValueError(f"stop_gap={stop_gap} needs evaluate, which measures the gap.")
        shown = progress and self._share.is_main
        with progress_bar(n, shown=shown, weights=self.weights) as show:
            for _ in range(n):
                update = self._update(evaluate, every)
                show(update)
                yield update
                if stop_gap is not None and update.gap <= stop_gap:
                    return

    def update(self) -> Update:
        """Take one update."""
        return self._update(None, 1)

    def _update(self, evaluate: Callable[[Any], Any] | None, every: int) -> Update:
        """Take one update with its evaluation, where that is due: both or neither."""
        kept = self.state()
        try:
            with self._average.set_aside(self.done):
                update = self._take()
            self.history.append(update)
            if evaluate is not None and update.number % every == 0:
                evaluation = self._share.from_main(lambda: evaluate(self.twist))
                self.history[-1] = update = replace(update, evaluation=evaluation)
        except BaseException:
            self.load_state(kept)
            raise
        return update

    def state(self) -> dict[str, Any]:
        """A copy of all that changes: parameters, average, optimiser, history, past batches."""
        return {
            "modules": copy.deepcopy(self._modules.state_dict()),
            "optimiser": copy.deepcopy(self._optimiser.state_dict()),
            "learning": self._average.next(),
            "history": list(self.history),
            "batches": self._remembered(),
            "past": list(self._past),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go back to a state, of this trainer or of one made with the same arguments."""
        self._modules.load_state_dict(state["modules"])
        self._optimiser.load_state_dict(copy.deepcopy(state["optimiser"]))
        self._average.load(state["learning"])
        self.history = list(state["history"])
        self._past = list(state["past"])
        if isinstance(self.positives, ReplayedPositives):
            self.positives.restore(state["batches"])

    def save(self, path: str | Path) -> Path:
        """Write all that resuming needs to one file without pickle.

        Pools and replayed batches of every process are kept; a source of your own must be given
        again.
        """
        pools = self._share.gather(pool_of(self.positives) | past_tensors(self._past))
        if self._share.is_main:
            write_checkpoint(Path(path), self.state(), self._arguments(), pools)
        self._share.wait()
        return Path(path)

    def load(self, path: str | Path) -> None:
        """Resume from a file that ``save`` wrote, byte for byte.

        Evaluations of the past come back as plain mappings.

        Raises:
            CheckpointError: no such checkpoint, or one of a trainer with other arguments; this one
                stays as it was.
        """
        state, pool = read_checkpoint(Path(path), self._arguments(), self._share.rank)
        kept, source = self.state(), self.positives
        try:
            state["history"] = [Update(**update) for update in state["history"]]
            self._batches.positives = pool_from(self.target, pool) or source
            past = past_from(pool, self.target.prompt_tokens.device)
            self.load_state(state | {"batches": self._remembered(), "past": past})
        except Exception as error:
            self._batches.positives = source
            self.load_state(kept)
            raise CheckpointError(
                f"{str(path)!r} does not fit this trainer: {error} Make the trainer and its twist "
                "with the same arguments."
            ) from error

    def _remembered(self) -> Mapping[int, Samples]:
        """Past batches, where the source of samples of sigma keeps them."""
        source = self.positives
        return source.batches() if isinstance(source, ReplayedPositives) else {}

    def _arguments(self) -> dict[str, Any]:
        return {
            "method": self.weights,
            "form": type(self.twist).__name__,
            "options": as_twist(self.twist).options,
            "potential": self.target.potential.describe(),
            "prompt": self.target.prompt_tokens.tolist(),
            "num_steps": self.target.num_steps,
            **self.target.rules,
            "positives": source_of(self.positives),
            "batch_size": self.batch_size,
            "observations": self._batches.observations,
            "learning_rate": repr(self.learning_rate),
            "averaging": self._average.decay,
            "max_gradient_norm": self.max_gradient_norm,
            "ppo": None if self._policy is None else repr(self._policy.settings),
            "processes": self._share.count,
            "seed": self.seed,
            **({} if self.steps == 1 else {"steps": self.steps}),
        }

    @property
    def _address(self) -> int:
        """Of this process's draws for the next update."""
        return self.done * self._share.count + self._share.rank

    def _take(self) -> Update:
        start = time.perf_counter()
        batch, positives = self._batches.draw(self._address)
        try:
            if all(update.skipped for update in self.history):
                bound = self.target.potential.log_phi_max
                set_level(
                    self.twist, batch, self.weights, log_bound=bound, average=self._share.mean
                )
            losses, norm, policy = self._descend(batch, positives)
            for each in self._later(batch):
                self._descend(each, each if positives is batch else positives)
        except NoSignalError:
            # Other processes may have a signal, so this one takes part in their steps too.
            losses, norm, policy = {}, self._step(None), {}
            for _ in range(1, self.steps):
                self._step(None)
        log_weights = batch.log_weights_by_group
        source = WeightedPositives() if positives is batch else self.positives
        update = Update(
            number=self.done + 1,
            losses=losses,
            ess=float(numerics.ess(log_weights).mean()),
            log_z=float(numerics.logmeanexp(log_weights).mean()),
            hits=int((batch.log_phi > -math.inf).sum()),
            gradient_norm=norm,
            positives=None if source is None else source.describe(),
            skipped=not losses,
            seconds=time.perf_counter() - start,
            **policy,
        )
        return self._share.merge(update)

    def _later(self, batch: Samples) -> list[Samples]:
        """Remember a batch; those of the steps after its first: a past one and itself, in turn."""
        if self.steps > 1 and batch.sums is not None:
            self._past = [*self._past, batch][-PAST:]
        chosen, past = random.Random(f"{self.seed} {self._address}"), self._past or [batch]
        return [chosen.choice(past) if at % 2 else batch for at in range(1, self.steps)]

    def _descend(
        self, batch: Samples, positives: Samples | None
    ) -> tuple[dict[str, float], float, dict[str, float]]:
        """One update's losses by name, its gradient norm, and what ppo records besides."""
        if self._policy is not None:
            return self._policy.descend(batch, self._step, self._share.mean)
        at_batch = score(self.target, self.twist, batch)
        at_sigma = at_batch
        if positives is not None and positives is not batch:
            p0 = any(RECIPES[name].positives_with_p0 for name in self.weights)
            at_sigma = score(self.target, self.twist, positives, p0=p0)
        losses = {name: RECIPES[name].loss(at_sigma, at_batch) for name in self.weights}
        total = sum(self.weights[name] * loss for name, loss in losses.items())
        norm = self._step(total)
        return {name: float(loss.detach()) for name, loss in losses.items()}, norm, {}

    def _step(self, loss: Float64[Tensor, ""] | None) -> float:
        """One step of Adam; the length of the gradient, NaN where no process has a loss."""
        signal = loss is not None
        finite = not signal or bool(torch.isfinite(loss))
        self._optimiser.zero_grad()
        if signal and finite:
            loss.backward()
        signal, finite = self._share.average_gradients(
            self._modules.parameters(), signal=signal, finite=finite
        )
        if not finite:
            raise self._diverged("loss", math.nan if loss is None else float(loss.detach()))
        if not signal:
            return math.nan
        for group in self._optimiser.param_groups:
            group["lr"] = self.learning_rate.at(self.done)
        norm = float(nn.utils.clip_grad_norm_(self._modules.parameters(), self.max_gradient_norm))
        if not math.isfinite(norm):
            raise self._diverged("gradient's length", norm)
        gradients = [p.grad for p in self._modules.parameters() if p.grad is not None]
        self._watch(float(nn.utils.get_total_norm(gradients, math.inf)))
        self._optimiser.step()
        return norm

    def _watch(self, largest: float) -> None:
        """Warn once where gradients are so small that Adam's eps swallows them."""
        eps = self._optimiser.param_groups[0]["eps"]
        self._faint = self._faint + 1 if largest < eps else 0
        if self._faint < FAINT_STEPS or self.warning:
            return
        self.warning = (
            f"gradients of {'+'.join(self.weights)} vanish: no parameter's exceeds {largest:.2g} "
            f"at update {self.done + 1}, below Adam's eps of {eps:g}, as at the "
            f"{FAINT_STEPS - 1} steps before it, so that little is learned. Unless the twist is "
            "optimal already, its psi is not of the scale of phi (its level is "
            f"{as_twist(self.twist).level:.4g} nats): train a fresh twist, which starts at the "
            "mean of phi, raise the loss's weight, or use ctl."
        )
        warnings.warn(self.warning, stacklevel=2)

    def _diverged(self, what: str, value: float) -> FloatingPointError:
        return FloatingPointError(
            f"the {what} is {value} at update {self.done + 1}: lower the learning rate (now "
            f"{self.learning_rate}), or look for a potential that is +inf or, for a loss that "
            "regresses on phi, far above the twist's psi."
        )


FORMAT = "tsmc_widgets.TwistTrainer"
VERSION = 6


def write_checkpoint(
    path: Path,
    state: Mapping[str, Any],
    arguments: Mapping[str, Any],
    pools: Sequence[Mapping[str, Tensor]],
) -> Path:
    """Write a trainer's state and each process's pool; the file appears whole or not at all."""
    tensors = {f"module.{name}": value for name, value in state["modules"].items()}
    for rank, pool in enumerate(pools):
        tensors |= {_pool_name(rank) + name: value for name, value in pool.items()}
    tensors |= {f"learning.{i}": value for i, value in enumerate(state["learning"])}
    for index, slots in state["optimiser"]["state"].items():
        tensors |= {f"adam.{index}.{name}": value for name, value in slots.items()}
    header = {
        "arguments": dict(arguments),
        "groups": state["optimiser"]["param_groups"],
        "history": [asdict(update) for update in state["history"]],
    }
    content = import_extra("safetensors.torch", "hf", "a checkpoint of training").save(
        {name: value.detach().cpu().contiguous() for name, value in tensors.items()},
        metadata={"trainer": json.dumps(header, default=_plain)},
    )
    return write_checked(path, content, file_format=FORMAT, version=VERSION)


def read_checkpoint(
    path: Path, arguments: Mapping[str, Any], rank: int = 0
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read what ``write_checkpoint`` wrote: a state, its history as mappings, and a process's pool.

    Raises:
        CheckpointError: the file is another one, damaged or newer, or its training had other
            arguments.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}: give the path of a checkpoint.")
    safetensors = import_extra("safetensors.torch", "hf", "a checkpoint of training")
    try:
        content = read_checked(path, file_format=FORMAT, versions=range(VERSION, VERSION + 1))
        tensors = safetensors.load(content)
        length = int.from_bytes(content[:8], "little")
        header = load_json(load_json(content[8 : 8 + length])["__metadata__"]["trainer"])
        state, found = _state(header, tensors), header["arguments"]
    except Exception as error:
        if isinstance(error, OSError):
            raise
        raise CheckpointError(
            f"{str(path)!r} is no checkpoint that this trainer can resume ({error}): take another "
            "file, the version of tsmc_widgets that wrote it, or train again."
        ) from error
    _compare(path, found, arguments)
    return state, _named(tensors, _pool_name(rank))


def _plain(value: Any) -> Any:
    """JSON of what an evaluation holds besides JSON's types: tensors as lists, others as repr."""
    arrays = Tensor | np.ndarray | np.generic
    return value.tolist() if isinstance(value, arrays) else repr(value)


def _pool_name(rank: int) -> str:
    return f"pool{rank or ''}."


def _named(tensors: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    """Tensors of one kind, by what follows it in their names."""
    return {
        name.removeprefix(kind): value for name, value in tensors.items() if name.startswith(kind)
    }


def _compare(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    wanted = json.loads(json.dumps(dict(wanted)))
    for name in sorted({*found, *wanted}):
        if found.get(name) != wanted.get(name):
            raise CheckpointError(
                f"{str(path)!r} was trained with {name}={quoted(found.get(name))} and this "
                f"trainer has {name}={quoted(wanted.get(name))}: make the trainer with the same "
                "arguments."
            )


def _state(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    slots: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        kind, _, rest = name.partition(".")
        if kind == "adam":
            index, _, slot = rest.partition(".")
            slots.setdefault(int(index), {})[slot] = value
    modules = _named(tensors, "module.")
    learning = _named(tensors, "learning.")
    groups = [
        {key: tuple(value) if key == "betas" else value for key, value in group.items()}
        for group in header["groups"]
    ]
    return {
        "modules": modules,
        "learning": [learning[str(i)] for i in range(len(learning))],
        "optimiser": {"state": slots, "param_groups": groups},
        "history": header["history"],
    }


# Sources that a checkpoint holds whole, by the tensor that only they have.
STORED: dict[str, Any] = {"exact": ExactPool, "replay": ReplayedPositives}


def source_of(positives: Any) -> str | None:
    """What a source must be for the same training to go on; "kept" where the file holds it."""
    if isinstance(positives, tuple(STORED.values())):
        return "kept"
    return None if positives is None else repr(positives).split(" at 0x")[0]


def pool_of(positives: Any) -> dict[str, Tensor]:
    """The tensors of a source that is stored, off its device; nothing for others."""
    found = positives.tensors() if source_of(positives) == "kept" else {}
    return {name: value.cpu() for name, value in found.items()}


def past_tensors(batches: Sequence[Samples]) -> dict[str, Tensor]:
    """The tensors of past batches of a tied head, off their device."""
    # Copies, as texts and sums share log_q, and a file holds no tensor twice.
    return {
        f"past.{at}.{kind}.{name}": value.cpu().clone()
        for at, batch in enumerate(batches)
        for kind, part in (("texts", batch), ("sums", batch.sums))
        for name in part.__slots__
        if isinstance(value := getattr(part, name), Tensor)
    }


def past_from(tensors: Mapping[str, Tensor], device: torch.device) -> list[Samples]:
    """The batches whose tensors ``past_tensors`` gave."""
    kept = {name: value.to(device) for name, value in _named(tensors, "past.").items()}
    count = len({name.partition(".")[0] for name in kept})
    return [
        Samples(**_named(kept, f"{at}.texts."), sums=TokenSums(**_named(kept, f"{at}.sums.")))
        for at in range(count)
    ]


def pool_from(target: Target, tensors: Mapping[str, Tensor]) -> Positives | None:
    """The source whose tensors ``pool_of`` gave; None where there was none."""
    for name, kind in STORED.items():
        if name in tensors:
            return kind.from_tensors(target, tensors)
    return None
