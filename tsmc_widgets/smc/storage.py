"""Traces on disk: a zip of arrays and one JSON header, no pickle."""

from __future__ import annotations

import json
import uuid
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tsmc_widgets.errors import TraceFormatError
from tsmc_widgets.smc.columns import TraceColumns, TraceInfo
from tsmc_widgets.smc.prefixes import NextTokenTable

FORMAT = "tsmc_widgets.SMCTrace"
VERSION = 1
_PER_PARTICLE = (
    "ancestors", "tokens", "log_p", "log_q", "log_psi", "log_increment", "log_weights",
)  # fmt: skip


# What reading a foreign, damaged or truncated file may raise.
_NOT_A_TRACE = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    EOFError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)


def save_parts(
    path: Path,
    columns: TraceColumns,
    info: TraceInfo,
    token_texts: Mapping[int, str],
    final_texts: Sequence[Sequence[str]],
    tables: Sequence[NextTokenTable],
) -> Path:
    """Write the parts of a trace; the file appears whole or not at all."""
    header = {
        "format": FORMAT,
        "version": VERSION,
        "info": asdict(info),
        "token_texts": {str(token): text for token, text in token_texts.items()},
        "final_texts": [list(texts) for texts in final_texts],
        "tables": len(tables),
    }
    arrays = {f.name: getattr(columns, f.name).numpy() for f in fields(columns)}
    for t, table in enumerate(tables):
        for f in fields(table):
            arrays[f"table_{t}_{f.name}"] = getattr(table, f.name).cpu().numpy()
    arrays["header"] = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with part.open("xb") as file:
            np.savez_compressed(file, **arrays)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return path


def load_parts(path: Path) -> dict[str, Any]:
    """Read what ``save_parts`` wrote: the arguments of ``SMCTrace``."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}: give the path of a saved trace.")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        header = json.loads(arrays.pop("header").tobytes().decode())
        if header["format"] != FORMAT or not isinstance(header["version"], int):
            raise KeyError("format")
    except _NOT_A_TRACE as error:
        raise TraceFormatError(
            f"{str(path)!r} is not a trace saved by this package, or it is damaged or cut short "
            f"({type(error).__name__}). Only files written by SMCTrace.save can be loaded."
        ) from error
    if header["version"] > VERSION:
        raise TraceFormatError(
            f"{str(path)!r} is a trace of format {header['version']}; this version of the package "
            f"reads up to format {VERSION}: update tsmc_widgets."
        )
    return _assemble(path, arrays, header)


def _assemble(path: Path, arrays: dict[str, np.ndarray], header: dict) -> dict[str, Any]:
    _check_shapes(path, arrays)
    try:
        columns = {f.name: torch.from_numpy(arrays[f.name]) for f in fields(TraceColumns)}
        tables = [
            NextTokenTable(
                **{
                    f.name: torch.from_numpy(arrays[f"table_{t}_{f.name}"])
                    for f in fields(NextTokenTable)
                }
            )
            for t in range(header["tables"])
        ]
        parts = {
            "columns": TraceColumns(**columns),
            "info": TraceInfo(**header["info"]),
            "token_texts": {int(token): text for token, text in header["token_texts"].items()},
            "final_texts": header["final_texts"],
            "tables": tables,
        }
    except (KeyError, TypeError, ValueError) as error:
        raise TraceFormatError(
            f"{str(path)!r} lacks a part of a trace ({error}): it was not written whole."
        ) from error
    return parts


def _check_shapes(path: Path, arrays: dict[str, np.ndarray]) -> None:
    by_axes = (("resampled", "ess", "log_z"), 2), (_PER_PARTICLE, 3)
    for names, axes in by_axes:
        shapes = {arrays[name].shape for name in names if name in arrays}
        if len(shapes) > 1 or any(len(shape) != axes for shape in shapes):
            raise TraceFormatError(
                f"{str(path)!r} has columns of different shapes: {sorted(shapes)}."
            )
