"""Prepared images on disk, memory-mapped, and the names by which they are found.

Records of one shape stand one after the other in ``<name>.images``; ``<name>.sqlite`` tells which record is whose, and why an
item has none. A record counts once the database says so, so a run that was killed at any moment leaves both whole.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from excise.client.database import exclusively, reading, writing
from excise.common.files import storage_errors

_SCHEMA = """
CREATE TABLE IF NOT EXISTS record (
    item TEXT PRIMARY KEY,
    stamp TEXT NOT NULL,   -- changes when the item's file changes
    place INTEGER UNIQUE,  -- number of the record; NULL when the item cannot be used
    pixels TEXT,           -- its fingerprint
    reason TEXT            -- why the item cannot be used
) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Prepared:
    """One item: its image, float32 of the cache's shape, and its fingerprint; or why there is none."""

    item: str
    stamp: str
    image: NDArray[np.float32] | None = None
    pixels: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Known:
    """What the cache holds of an item: number of its record, or why there is none."""

    stamp: str
    place: int | None
    pixels: str | None
    reason: str | None


class ImageCache:
    """Images of one shape, prepared in one way.

    Parameters
    ----------
    path : of both files, without their endings
    shape : of an image, (channels, *spatial)
    """

    def __init__(self, path: Path, shape: Sequence[int]) -> None:
        self.shape = tuple(shape)
        self.path, self.database = path.with_suffix(".images"), path.with_suffix(".sqlite")
        with exclusively(self.database), writing(self.database) as db:
            db.executescript(_SCHEMA)

    def known(self) -> Mapping[str, Known]:
        """All that the cache knows, by item."""
        with reading(self.database) as db:
            return {item: Known(*rest) for item, *rest in db.execute("SELECT item, stamp, place, pixels, reason FROM record")}

    def add(self, batch: Iterable[Prepared]) -> None:
        """Keep a batch; what was known of its items is replaced.

        Raises
        ------
        StorageError : the disk is full or refuses; what was kept before is whole
        """
        with writing(self.database) as db, self._records() as file:
            db.execute("BEGIN IMMEDIATE")  # another process may add too: each place is one image's
            (free,) = db.execute(_FREE).fetchone()
            for one in batch:
                held = db.execute("SELECT place FROM record WHERE item = ?", (one.item,)).fetchone()
                place = held[0] if held and held[0] is not None else free
                if one.image is not None:
                    self._write(file, place, np.ascontiguousarray(one.image, dtype="<f4").tobytes())
                    free = max(free, place + 1)
                elif place < free:
                    self._write(file, place, bytes(self._bytes))
                told = (one.item, one.stamp, None if one.image is None else place, one.pixels, one.reason)
                db.execute("INSERT OR REPLACE INTO record VALUES (?, ?, ?, ?, ?)", told)
            _flush(file)  # first the pixels, then their names
            db.commit()

    def images(self) -> NDArray[np.float32]:
        """All records, (N, *shape), mapped: read from disk as they are looked at, and shared with other processes."""
        with reading(self.database) as db:
            (count,) = db.execute(_FREE).fetchone()
        if count == 0:
            return np.empty((0, *self.shape), np.float32)
        return np.memmap(self.path, dtype="<f4", mode="r", shape=(count, *self.shape))

    def purge(self, items: Iterable[str]) -> int:
        """Overwrite the images of `items` with zeros, and forget that they were here; returns how many there were.

        Raises
        ------
        StorageError : the disk refuses
        """
        items, purged = list(items), 0
        if not items:
            return 0
        with writing(self.database) as db, self._records() as file:
            db.execute("BEGIN IMMEDIATE")
            for item in items:
                held = db.execute("SELECT place FROM record WHERE item = ?", (item,)).fetchone()
                if held and held[0] is not None:
                    self._write(file, held[0], bytes(self._bytes))
                purged += db.execute("DELETE FROM record WHERE item = ?", (item,)).rowcount
            _flush(file)  # first the pixels, then their names: pixels that nobody can name would stay for ever
            db.commit()
        return purged

    @contextmanager
    def _records(self) -> Iterator[BinaryIO]:
        with storage_errors(self.path), self.path.open("r+b" if self.path.exists() else "w+b") as file:
            yield file

    def _write(self, file: BinaryIO, place: int, record: bytes) -> None:
        file.seek(place * self._bytes)
        file.write(record)

    @property
    def _bytes(self) -> int:
        return 4 * math.prod(self.shape)


_FREE = "SELECT coalesce(max(place) + 1, 0) FROM record"


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
