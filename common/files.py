"""Writing files so that a reader, a crash or a full disk never sees half of one."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from excise.common.errors import StorageError

_TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}")
"""As `tempfile` names the file beside the one that it is for."""


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusal to write `path` into a `StorageError` that says what to do."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"cannot write {path}: {error.strerror or error}. Free space or choose another folder, then run again; "
            "what was written before is whole."
        ) from error


def write_atomically(path: Path, content: bytes | str, spare: Path | None = None) -> None:
    """Write `content` to `path`: temporary file beside it, fsync, rename.

    With `spare`, what `path` held before is moved there first; killed just then, `path` is missing and `spare` is whole.

    Raises
    ------
    StorageError : the disk is full or the folder cannot be written; an earlier `path` is untouched
    """
    data = content.encode() if isinstance(content, str) else content
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if spare is not None and path.exists():
                path.replace(spare)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def private(path: str, flags: int) -> int:
    """An opener for `open`: what it makes is its user's alone, as `write_atomically` makes it."""
    return os.open(path, flags, 0o600)


def leftovers(folder: Path) -> list[Path]:
    """Temporary files in `folder` of writers that were killed, and of any that writes just now."""
    return [path for path in sorted(folder.glob(".*")) if _TEMPORARY.fullmatch(path.name)]
