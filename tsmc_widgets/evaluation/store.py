"""Files of finished work: JSON with a checksum, each written whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tsmc_widgets.errors import TsmcError

FORMAT = "tsmc_widgets.Result"
VERSION = 1


class DamagedFileError(TsmcError, ValueError):
    """A file of the store is cut short, changed, or none of this package's."""


def dumps(value: Any) -> str:
    """JSON with sorted keys; numbers that JSON has no word for become objects.

    Two equal values give equal texts, so that files can be compared byte by byte.
    """
    return json.dumps(_spell(value), sort_keys=True, allow_nan=False, ensure_ascii=False)


def loads(text: str) -> Any:
    """What ``dumps`` was given."""
    return json.loads(text, object_hook=_read)


def write_file(path: Path, value: Any) -> Path:
    """Write a value with its checksum; a reader sees the old file, the new one, or none."""
    payload = dumps(value)
    sha256 = hashlib.sha256(payload.encode()).hexdigest()
    head = json.dumps({"format": FORMAT, "version": VERSION, "sha256": sha256})
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
        if said["format"] != FORMAT or said["version"] > VERSION:
            raise DamagedFileError(
                f"{str(path)!r} is of format {said['format']!r}, version {said['version']!r}; this "
                f"version of the package reads {FORMAT!r} up to {VERSION}."
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


def _read(entry: dict[str, Any]) -> Any:
    return float(entry["$float"]) if set(entry) == {"$float"} else entry
