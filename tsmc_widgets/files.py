"""Files and folders that appear whole or not at all."""

import contextlib
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """A path to write a file or folder to, which replaces ``path`` at the end of the block.

    An error within the block, an interrupt included, leaves ``path`` as it was and removes what was
    written. Each writer gets a path of its own beside ``path``; the last to finish wins.
    """
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        yield part
        if part.is_dir() and path.is_dir():
            shutil.rmtree(path, ignore_errors=True)  # No folder replaces one that holds files.
        part.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)
        raise
