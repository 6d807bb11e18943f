"""A log whose lines hang together: each holds the hash of the one before, so none can be changed, removed or moved unseen.

What it does not prove: that the whole log, or its end, was not replaced by its owner. Who wants to know that keeps the last
hash elsewhere.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from excise.common.errors import StorageError
from excise.common.files import storage_errors

BEGIN = "0" * 64
"""In place of a hash before the first line."""
NOT_WHOLE = "the line is not whole"
"""What is wrong with a last line whose writer was ended; the next one to write cuts it off."""


@dataclass(frozen=True)
class Fault:
    """A line that does not fit the one before; lines are counted from 1."""

    line: int
    reason: str


def append(path: Path, event: str, **details: Any) -> str:
    """Add one line, and return its hash. Several processes may write; the lines are on disk when this returns.

    Raises
    ------
    StorageError : it cannot be written
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            content = file.read()
            if content and not content.endswith(b"\n"):  # the writer of the last line was killed
                content = content[: content.rfind(b"\n") + 1]
                file.truncate(len(content))
                file.seek(len(content))
            before = json.loads(content.splitlines()[-1])["hash"] if content else BEGIN
            at = datetime.now(UTC).isoformat(timespec="milliseconds")
            entry = {"at": at, "event": event, **details, "before": before}
            entry["hash"] = _hash(entry)
            file.write(json.dumps(entry, ensure_ascii=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    return str(entry["hash"])


def last(path: Path) -> tuple[str, str]:
    """Hash of the last whole line, and of the line before it; `BEGIN` where there is none.

    Raises
    ------
    StorageError : it cannot be read, or ends in what is no entry
    """
    with storage_errors(path):
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    if not lines:
        return BEGIN, BEGIN
    try:
        entry = json.loads(lines[-1])
        return str(entry["hash"]), str(entry["before"])
    except (ValueError, KeyError, TypeError):
        raise StorageError(f"the last line of {path} is no entry of a log: put the file back from a backup") from None


def faults(path: Path, head: str | None = None) -> list[Fault]:
    """Lines that were altered, removed, added or moved; none when the log is as it was written.

    Parameters
    ----------
    head : hash of the last line, as it was kept elsewhere; one more line may follow, whose writer was ended

    Raises
    ------
    StorageError : it cannot be read
    """
    with storage_errors(path):
        lines = path.read_bytes().split(b"\n")
    found: list[Fault] = []
    if lines and lines[-1] != b"":
        found.append(Fault(len(lines), NOT_WHOLE))
    before, known = BEGIN, 0 if head == BEGIN else None
    for number, line in enumerate(lines[:-1], start=1):
        try:
            entry = json.loads(line)
            told, own = entry["before"], entry.pop("hash")
        except (ValueError, KeyError, TypeError, AttributeError):
            found.append(Fault(number, "no entry of this log"))
            continue
        if own != _hash(entry):
            found.append(Fault(number, "the line was altered"))
        if told != before:
            found.append(Fault(number, "the line before it was altered, removed or moved"))
        before = own
        if own == head:
            known = number
    if head is not None and (known is None or known < len(lines) - 2):
        found.append(Fault(len(lines) - 1, "the log does not end as it should: lines at its end are missing, or were added"))
    return found


def _hash(entry: dict[str, Any]) -> str:
    text = json.dumps({key: value for key, value in entry.items() if key != "hash"}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
