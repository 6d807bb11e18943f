"""The index of a DICOM folder: what stands in which file, kept in SQLite, so that only new and changed files are read again.

A scan walks the folder, compares sizes and times with the index, reads the rest in parallel and commits in batches: a scan
that was killed goes on where it was. A file that cannot be used stays in the index with its reason.
"""

from __future__ import annotations

import json
import os
import sqlite3
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

from excise.client.database import TABLE, about, exclusively, reading, tell, writing
from excise.client.dicom.headers import KEYWORDS, UNREADABLE, Header, Values, read_headers
from excise.client.parallel import in_parallel
from excise.client.table import Problem
from excise.common.errors import DataError

Progress = Callable[[int, int], None]
"""Called with files looked at and files read so far."""
BATCH = 256
"""Files that one worker reads at once, and that one commit keeps."""
CHANGED = "file changed while it was read; scan again"
FATAL = "file ends the process that reads it"
NEVER = -1
"""In place of the time of a file's last change: it is read again by the next scan."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS file (
    path BLOB PRIMARY KEY,  -- relative to the folder, as the file system has it: names need not be Unicode
    size INTEGER NOT NULL,
    time INTEGER NOT NULL,  -- of the last change, nanoseconds
    scan INTEGER NOT NULL,  -- the last scan that found it
    uid TEXT,               -- SOPInstanceUID
    header TEXT,            -- values in the order of `KEYWORDS`, JSON
    reason TEXT             -- why the file cannot be used
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_uid ON file (uid, path);
"""
_USABLE = """
SELECT path, size, time, header FROM file AS f WHERE reason IS NULL
AND NOT EXISTS (SELECT 1 FROM file AS g WHERE g.uid = f.uid AND g.path < f.path) ORDER BY path
"""
_REFUSED = "SELECT path, reason FROM file WHERE reason IS NOT NULL ORDER BY path"
_COPIES = """
SELECT f.path, (SELECT min(g.path) FROM file AS g WHERE g.uid = f.uid) AS first FROM file AS f
WHERE reason IS NULL AND f.path > first ORDER BY f.path
"""


@dataclass(frozen=True)
class Scanned:
    """What a scan came to, in files: `found` in the folder, of which `read` were new or changed; `gone` since the last one."""

    found: int
    read: int
    gone: int


@dataclass(frozen=True)
class _File:
    """A file as the folder tells of it."""

    path: bytes
    size: int
    time: int


class Index:
    """The index of one folder.

    Raises
    ------
    DataError : the file is no index; delete it and scan again
    """

    def __init__(self, database: Path, folder: Path) -> None:
        self.database, self.folder = database, folder
        version = json.dumps([KEYWORDS, str(folder)])
        with exclusively(database), writing(database) as db:
            db.executescript(TABLE + _SCHEMA)
            if about(db, "version") != version:  # other keywords, or another folder: nothing in it can be used
                db.execute("DELETE FROM file")
                db.execute("DELETE FROM about")
                tell(db, "version", version)
            db.commit()

    # ---- reading ------------------------------------------------------------------------------------------------------

    @property
    def whole(self) -> bool:
        """Whether a scan of the folder ever came to its end."""
        with reading(self.database) as db:
            return about(db, "scanned") is not None

    def headers(self) -> Iterator[tuple[Path, str, Header]]:
        """Usable files in the order of their paths, each with a stamp that changes when it does; of one UID the first."""
        with reading(self.database) as db:
            for path, size, time, header in db.execute(_USABLE):
                yield self.folder / os.fsdecode(path), f"{size}:{time}", Header(tuple(map(_shared, json.loads(header))))

    def problems(self) -> list[Problem]:
        """Files that cannot be used, and why."""
        with reading(self.database) as db:
            found = [Problem(_shown(path), reason) for path, reason in db.execute(_REFUSED)]
            copies = [(_shown(path), _shown(first)) for path, first in db.execute(_COPIES)]
        return found + [Problem(path, f"SOPInstanceUID occurs already in {first}") for path, first in copies]

    # ---- scanning -----------------------------------------------------------------------------------------------------

    def scan(self, progress: Progress = lambda *_: None, workers: int | None = None) -> Scanned:
        """Bring the index up to date.

        Parameters
        ----------
        workers : processes that read; as many as there are processors when left out; 0 reads in this process

        Raises
        ------
        DataError : the folder does not exist or may not be read
        StorageError : the index cannot be written
        """
        if not self.folder.is_dir():
            raise DataError(f"no DICOM folder at {self.folder}")
        found = read = 0
        with exclusively(self.database), writing(self.database) as db:
            number = int(about(db, "scans") or 0) + 1
            tell(db, "scans", str(number))
            db.commit()

            def changed() -> Iterator[_File]:
                """Files that are new or changed; the others are marked as found."""
                nonlocal found
                for one in _walk(self.folder):
                    found += 1
                    if isinstance(one, Problem):
                        _put(db, _File(os.fsencode(one.item), 0, NEVER), one.reason, number)
                    elif not _seen_before(db, one, number):
                        yield one
                    if found % BATCH == 0:
                        db.commit()
                        progress(found, read)

            batches = _batches(changed(), BATCH)
            fatal: Values | str = FATAL
            for files, answers in in_parallel(partial(_read, self.folder), batches, fatal, workers):
                for file, answer in zip(files, answers, strict=True):
                    passes = isinstance(answer, str) and answer.startswith((CHANGED, UNREADABLE))
                    _put(db, replace(file, time=NEVER) if passes else file, answer, number)
                db.commit()
                read += len(files)
                progress(found, read)
            (before,) = db.execute("SELECT count(*) FROM file").fetchone()
            if found == 0 and before > 0:
                raise DataError(f"no file in {self.folder}, where {before:,} were: is it mounted? Nothing was changed")
            gone = db.execute("DELETE FROM file WHERE scan < ?", (number,)).rowcount
            tell(db, "scanned", str(number))
            db.commit()
        return Scanned(found, read, gone)


# ---- SQLite -----------------------------------------------------------------------------------------------------------


def _seen_before(db: sqlite3.Connection, file: _File, number: int) -> bool:
    """Mark a file as found by scan `number`; whether it stands in the index as it is."""
    found = db.execute(
        "UPDATE file SET scan = ? WHERE path = ? AND size = ? AND time = ?", (number, file.path, file.size, file.time)
    )
    return found.rowcount > 0


def _put(db: sqlite3.Connection, file: _File, answer: Values | str, number: int) -> None:
    header, reason = (None, answer) if isinstance(answer, str) else (json.dumps(answer), None)
    uid = None if isinstance(answer, str) else answer[KEYWORDS.index("SOPInstanceUID")]
    db.execute(
        "INSERT OR REPLACE INTO file VALUES (?, ?, ?, ?, ?, ?, ?)",
        (file.path, file.size, file.time, number, uid, header, reason),
    )


def _shared(value: str | None) -> str | None:
    """The same text as one object: most values are those of a few scanners."""
    return None if value is None else sys.intern(value)


def _shown(path: bytes) -> str:
    """A path that can be printed whatever its bytes are."""
    return os.fsdecode(path).encode("utf-8", "backslashreplace").decode()


# ---- the folder -------------------------------------------------------------------------------------------------------


def _walk(folder: Path) -> Iterator[_File | Problem]:
    """Every file that may be DICOM, whatever its name: files often have no ending (PS3.10 8).

    DICOMDIR is a table of contents, not an image. Links to folders are not followed: they may lead round in a circle.
    """
    refused: list[Problem] = []

    def refuse(error: OSError) -> None:
        name = os.path.relpath(error.filename, folder)
        refused.append(Problem(_shown(os.fsencode(name)), f"folder cannot be read: {error.strerror}"))

    for at, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))  # such as the snapshots of a file server
        for name in sorted(names):
            if name.startswith(".") or name == "DICOMDIR":
                continue
            path = Path(at, name)
            relative = os.path.relpath(path, folder)
            try:
                stat = path.stat()
            except OSError as error:  # a link that leads nowhere, or gone since the folder was read
                yield Problem(relative, f"file cannot be read: {error.strerror}")
                continue
            yield _File(os.fsencode(relative), stat.st_size, stat.st_mtime_ns)
        yield from refused
        refused.clear()
    yield from refused


def _batches(items: Iterator[_File], size: int) -> Iterator[list[_File]]:
    while batch := list(islice(items, size)):
        yield batch


def _read(folder: Path, files: list[_File]) -> list[Values | str]:
    """The headers of `files`; a file that changed meanwhile is a problem, and is read again by the next scan."""
    paths = [folder / os.fsdecode(file.path) for file in files]
    answers = read_headers(paths)
    return [answer if _unchanged(path, file) else CHANGED for path, file, answer in zip(paths, files, answers, strict=True)]


def _unchanged(path: Path, file: _File) -> bool:
    try:
        stat = path.stat()
    except OSError:
        return False
    return (stat.st_size, stat.st_mtime_ns) == (file.size, file.time)
