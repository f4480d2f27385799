"""Checkpoints of a training, one file without pickle: parameters, optimiser, pool, history."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from tsmc_widgets.errors import CheckpointError, import_extra, quoted
from tsmc_widgets.files import load_json, read_checked, write_checked
from tsmc_widgets.learning.positives import ExactPool, Positives, ReplayedPositives
from tsmc_widgets.targets.target import Target

FORMAT = "tsmc_widgets.TwistTrainer"
VERSION = 5


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
        "history": [dataclasses.asdict(update) for update in state["history"]],
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
    for name, value in json.loads(json.dumps(dict(wanted))).items():
        if found.get(name) != value:
            raise CheckpointError(
                f"{str(path)!r} was trained with {name}={quoted(found.get(name))} and this "
                "trainer has "
                f"{name}={quoted(value)}: make the trainer with the same arguments."
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


def pool_from(target: Target, tensors: Mapping[str, Tensor]) -> Positives | None:
    """The source whose tensors ``pool_of`` gave; None where there was none."""
    for name, kind in STORED.items():
        if name in tensors:
            return kind.from_tensors(target, tensors)
    return None
