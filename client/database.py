"""SQLite files in a site's state: opened one way, and refusals of the disk told like any other.

They hold nothing that cannot be made again from the site's data: a damaged one is deleted by hand, and made anew.
"""

from __future__ import annotations

import fcntl
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from excise.common.errors import DataError, StorageError
from excise.common.files import storage_errors

TABLE = "CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value TEXT NOT NULL);"
"""A table of what is known of the file as a whole: `about` reads it, `tell` writes it."""


@contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """Open to read; others may write meanwhile.

    Raises
    ------
    DataError : the file is no SQLite file, or damaged
    StorageError : it cannot be opened
    """
    with _opened(path) as db:
        yield db


@contextmanager
def writing(path: Path) -> Iterator[sqlite3.Connection]:
    """Open to write, and make it when there is none. What was not committed is not kept. Raises as `reading` does."""
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with _opened(path) as db:
        db.execute("PRAGMA journal_mode = WAL")  # readers go on meanwhile
        db.execute("PRAGMA secure_delete = ON")  # what is forgotten is overwritten, not only unlinked
        yield db


@contextmanager
def exclusively(path: Path) -> Iterator[None]:
    """Wait until nobody else is in such a block for `path`, and let nobody else in meanwhile; a killed process leaves it.

    Raises
    ------
    StorageError : the lock beside `path` cannot be written
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_suffix(".lock").open("w")
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def about(db: sqlite3.Connection, name: str) -> str | None:
    """What was told of `name`."""
    row = db.execute("SELECT value FROM about WHERE name = ?", (name,)).fetchone()
    return str(row[0]) if row else None


def tell(db: sqlite3.Connection, name: str, value: str) -> None:
    """Keep `value` for `about`."""
    db.execute("INSERT OR REPLACE INTO about VALUES (?, ?)", (name, value))


@contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    try:
        with closing(sqlite3.connect(path, timeout=60)) as db:
            yield db
    except sqlite3.OperationalError as error:
        raise StorageError(
            f"cannot use {path}: {error}. Free space, or wait until nobody else writes it, and try again; it is whole"
        ) from error
    except sqlite3.DatabaseError as error:
        raise DataError(f"{path} is damaged ({error}): delete it; it is made again from your data") from error
