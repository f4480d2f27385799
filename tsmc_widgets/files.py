"""Files that appear whole or not at all and say when they are damaged; which a page may touch."""

import contextlib
import hashlib
import json
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock


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


def checksum(content: bytes) -> str:
    """SHA-256 of what a file holds, in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def write_checked(path: Path, content: bytes, *, file_format: str, version: int) -> Path:
    """Write a line of JSON with format, version and checksum, then the content itself."""
    head = {"format": file_format, "version": version, "sha256": checksum(content)}
    with write_atomically(path) as part:
        part.write_bytes(json.dumps(head).encode() + b"\n" + content + b"\n")
    return path


def read_checked(path: Path, *, file_format: str, versions: range) -> bytes:
    """The content of a file that ``write_checked`` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is cut short or changed, or of another format or version; says which.
    """
    head, _, content = path.read_bytes().partition(b"\n")
    content = content.removesuffix(b"\n")
    found = load_json(head)
    if not isinstance(found, dict) or found.get("format") != file_format:
        raise ValueError(f"it is not of the format {file_format!r}")
    if found.get("version") not in versions:
        raise ValueError(
            f"it is of version {found.get('version')!r} of {file_format!r}, and this version of "
            f"the package reads {' and '.join(map(str, versions))}"
        )
    if checksum(content) != found.get("sha256"):
        raise ValueError("its checksum does not match, so it is damaged or cut short")
    return content


def load_json(text: str | bytes, **options: Any) -> Any:
    """What ``json.loads`` reads; ValueError for all that it cannot read."""
    try:
        return json.loads(text, **options)
    except RecursionError as error:
        raise ValueError("its JSON is nested too deeply") from error


@contextlib.contextmanager
def file_lock(folder: Path | None, key: str) -> Iterator[None]:
    """Serialise creation across processes; the lock ends with its holder, killed or not.

    Where files cannot be locked, and without a folder, there is no lock.
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


def sha256_of(path: Path) -> str:
    """Hash of a file's content, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def page_path(name: str | Path, *, begins: str = "") -> Path:
    """Where a name that was given on a page leads: inside the notebook's folder.

    Args:
        name: of a file or folder.
        begins: how files that the page writes begin, where it is to write one; "" to read.

    Raises:
        ValueError: the name is empty or leads out of the folder.
        FileExistsError: another file is there.
    """
    here = Path.cwd().resolve()
    path = (here / name).resolve()
    if not str(name).strip() or path == here or not path.is_relative_to(here):
        raise ValueError(
            f"a page reads and writes inside the notebook's folder only; got {str(name)!r}. Other "
            "places are given in Python."
        )
    if begins and path.exists():
        first = b""
        if path.is_file():
            with path.open("rb") as file:
                first = file.read(len(begins.encode()))
        if first != begins.encode():
            raise FileExistsError(
                f"{str(name)!r} is there already and was not written by such a page: give another "
                "name."
            )
    return Path(name)
