"""The index of a place of DICOM files: what stands in which, kept in SQLite, so that only new and changed ones are read again.

A scan walks the place, compares sizes and times with the index, reads the rest in parallel and commits in batches: a scan
that was killed goes on where it was. A file that cannot be used stays in the index with its reason.
"""

from __future__ import annotations

import json
import os
import sqlite3
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from excise.client.database import TABLE, about, exclusively, reading, tell, writing
from excise.client.dicom.folder import shown
from excise.client.dicom.headers import KEYWORDS, READING, UNREADABLE, Header, Values, lacking
from excise.client.dicom.place import CHANGED, File, Place
from excise.client.parallel import in_parallel
from excise.client.table import Problem
from excise.common.errors import DataError

Progress = Callable[[int, int], None]
"""Called with files looked at and files read so far."""
BATCH = 256
"""Files that one worker reads at once, and that one commit keeps."""
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
    header TEXT,            -- values in the order of `KEYWORDS`, JSON; NULL where it cannot be read
    reason TEXT             -- why the file cannot be used
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_uid ON file (uid, path);
"""
_USABLE = """
SELECT path, size, time, header FROM file AS f WHERE reason IS NULL
AND NOT EXISTS (SELECT 1 FROM file AS g WHERE g.uid = f.uid AND g.path < f.path) ORDER BY path
"""
_UNUSABLE = "SELECT path, size, time, header, reason FROM file WHERE reason IS NOT NULL AND header IS NOT NULL ORDER BY path"
_REFUSED = "SELECT path, reason FROM file WHERE reason IS NOT NULL ORDER BY path"
_COPIED = """
SELECT f.uid, f.header FROM file AS f
WHERE f.header != (SELECT g.header FROM file AS g WHERE g.uid = f.uid ORDER BY g.path LIMIT 1)
ORDER BY f.path
"""
_COPIES = """
SELECT f.path, (SELECT min(g.path) FROM file AS g WHERE g.uid = f.uid) AS first FROM file AS f
WHERE reason IS NULL AND f.path > first ORDER BY f.path
"""


@dataclass(frozen=True)
class Scanned:
    """What a scan came to, in files: `found` in the place, of which `read` were new or changed; `gone` since the last one."""

    found: int
    read: int
    gone: int


class Index:
    """The index of one place.

    Raises
    ------
    DataError : the file is no index; delete it and scan again
    """

    def __init__(self, database: Path, place: Place) -> None:
        self.database, self.place = database, place
        version = json.dumps([READING, KEYWORDS, place.name])
        with exclusively(database), writing(database) as db:
            db.executescript(TABLE + _SCHEMA)
            if about(db, "version") != version:  # other keywords, or another place: nothing in it can be used
                db.execute("DELETE FROM file")
                db.execute("DELETE FROM about")
                tell(db, "version", version)
            db.commit()

    # ---- reading ------------------------------------------------------------------------------------------------------

    @property
    def whole(self) -> bool:
        """Whether a scan of the place ever came to its end."""
        with reading(self.database) as db:
            return about(db, "scanned") is not None

    def headers(self) -> Iterator[tuple[bytes, str, Header]]:
        """Usable files by their paths, each with a stamp that changes when it does, and its header; of one UID the first."""
        with reading(self.database) as db:
            for path, size, time, header in db.execute(_USABLE):
                yield path, f"{size}:{time}", Header(tuple(map(_shared, json.loads(header))))

    def unusable(self) -> Iterator[tuple[bytes, str, Header, str]]:
        """Files with a header that lacks what is needed: path, stamp, header, reason."""
        with reading(self.database) as db:
            for path, size, time, header, reason in db.execute(_UNUSABLE):
                yield path, f"{size}:{time}", Header(tuple(json.loads(header))), reason

    def copies(self) -> dict[str, list[Header]]:
        """By SOPInstanceUID the headers of further files of one, where they say something else than the first."""
        found: dict[str, list[Header]] = {}
        with reading(self.database) as db:
            for uid, header in db.execute(_COPIED):
                found.setdefault(uid, []).append(Header(tuple(json.loads(header))))
        return found

    def problems(self) -> list[Problem]:
        """Files that cannot be used, and why."""
        with reading(self.database) as db:
            found = [Problem(shown(path), reason) for path, reason in db.execute(_REFUSED)]
            copies = [(shown(path), shown(first)) for path, first in db.execute(_COPIES)]
        return found + [Problem(path, f"SOPInstanceUID occurs already in {first}") for path, first in copies]

    # ---- scanning -----------------------------------------------------------------------------------------------------

    def scan(self, progress: Progress = lambda *_: None, workers: int | None = None) -> Scanned:
        """Bring the index up to date.

        Parameters
        ----------
        workers : processes that read; as the place wants it when left out; 0 reads in this process

        Raises
        ------
        DataError : the place does not exist or cannot be read; what was indexed stays
        StorageError : the index cannot be written
        """
        found = read = 0
        closed: list[bytes] = []
        with exclusively(self.database), writing(self.database) as db:
            number = int(about(db, "scans") or 0) + 1
            tell(db, "scans", str(number))
            db.commit()

            def changed() -> Iterator[File]:
                """Files that are new or changed; the others are marked as found."""
                nonlocal found
                for one in self.place.walk():
                    found += 1
                    if isinstance(one, Problem):
                        closed.append(os.fsencode(one.item))
                        _put(db, File(os.fsencode(one.item), 0, NEVER), one.reason, number)
                    elif not _seen_before(db, one, number):
                        yield one
                    if found % BATCH == 0:
                        db.commit()
                        progress(found, read)

            workers = self.place.workers if workers is None else workers
            batches = _batches(changed(), BATCH)
            fatal: Values | str = FATAL
            for files, answers in in_parallel(self.place.reader(), batches, fatal, workers):
                for file, answer in zip(files, answers, strict=True):
                    passes = isinstance(answer, str) and answer.startswith((CHANGED, UNREADABLE))
                    _put(db, replace(file, time=NEVER) if passes else file, answer, number)
                db.commit()
                read += len(files)
                progress(found, read)
            (before,) = db.execute("SELECT count(*) FROM file").fetchone()
            if found == 0 and before > 0:
                raise DataError(f"no file in {self.place.name}, where {before:,} were: is it mounted? Nothing was changed")
            for path in closed:  # what is below may still be there
                db.execute("UPDATE file SET scan = ? WHERE path > ? AND path < ?", (number, path + b"/", path + b"0"))
            gone = db.execute("DELETE FROM file WHERE scan < ?", (number,)).rowcount
            tell(db, "scanned", str(number))
            db.commit()
        return Scanned(found, read, gone)


# ---- SQLite -----------------------------------------------------------------------------------------------------------


def _seen_before(db: sqlite3.Connection, file: File, number: int) -> bool:
    """Mark a file as found by scan `number`; whether it stands in the index as it is."""
    found = db.execute(
        "UPDATE file SET scan = ? WHERE path = ? AND size = ? AND time = ?", (number, file.path, file.size, file.time)
    )
    return found.rowcount > 0


def _put(db: sqlite3.Connection, file: File, answer: Values | str, number: int) -> None:
    header, reason = (None, answer) if isinstance(answer, str) else (json.dumps(answer), lacking(answer))
    uid = None if isinstance(answer, str) else answer[KEYWORDS.index("SOPInstanceUID")]
    db.execute(
        "INSERT OR REPLACE INTO file VALUES (?, ?, ?, ?, ?, ?, ?)",
        (file.path, file.size, file.time, number, uid, header, reason),
    )


def _shared(value: str | None) -> str | None:
    """The same text as one object: most values are those of a few scanners."""
    return None if value is None else sys.intern(value)


def _batches(items: Iterator[File], size: int) -> Iterator[list[File]]:
    while batch := list(islice(items, size)):
        yield batch
