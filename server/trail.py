"""What each round of a phase measured, one line of JSON a round: it grows with rounds and sites, and memory should not.

The file is only appended to. A checkpoint says how far it reached when its round was done, with a digest over it: the line of
a round that has no checkpoint yet, or half a line, is written over when that round is held again.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from excise.common.errors import StorageError
from excise.common.files import private, storage_errors


@dataclass(frozen=True)
class Trail:
    """How far a file of rounds reaches: its bytes, and the digest over its lines, each with the digest before it."""

    size: int = 0
    digest: str = ""


def append(path: Path, trail: Trail, entry: dict[str, Any]) -> Trail:
    """Write one more line after those of `trail`, on disk when this returns; whatever else follows them is dropped.

    Raises
    ------
    StorageError : it cannot be written
    """
    line = json.dumps(entry).encode() + b"\n"
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab", opener=private) as file:
            file.truncate(trail.size)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
    return Trail(trail.size + len(line), _chained(trail.digest, line))


def read(path: Path, trail: Trail) -> list[dict[str, Any]]:
    """The lines of `trail`.

    Raises
    ------
    StorageError : they are not what was written
    """
    content = path.read_bytes()[: trail.size] if path.exists() else b""
    digest, lines = "", content.splitlines(keepends=True)
    for line in lines:
        digest = _chained(digest, line)
    if Trail(len(content), digest) != trail:
        raise StorageError(f"{path} is damaged: it is not what was written when its rounds were done")
    return [json.loads(line) for line in lines]


def _chained(before: str, line: bytes) -> str:
    return hashlib.sha256(before.encode() + line).hexdigest()
