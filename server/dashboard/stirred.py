"""Which run folders changed since they were looked at last: those of late each time, all of them now and then."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from excise.server.events import EVENTS

LATE = 16
"""So many runs, those that changed last, are looked at each time: hundreds at rest would cost more than the rest."""


class Mark(NamedTuple):
    """How a file or folder was: another inode, size or time tells that it is another."""

    inode: int
    size: int
    changed_ns: int


class Marks(NamedTuple):
    """How a run was. Files are replaced by renaming, which their folder tells; events are appended to theirs."""

    folder: Mark | None
    events: Mark | None


class Stirred:
    """Compares run folders with how they were.

    Parameters
    ----------
    runs : the folder that holds them; it may be missing
    """

    def __init__(self, runs: Path) -> None:
        self._place = str(runs)
        self._at = mark(self._place)
        self._known: dict[str, Marks] = {}
        """Those that changed last at the end."""
        found = {name: _marks(path) for name, path in self._folders().items()}
        for name in sorted(found, key=lambda name: _last(found[name])):
            self._known[name] = found[name]

    def look(self, whole: bool = True) -> list[str]:
        """Names of the runs that changed, came or went since the last look, sorted.

        Parameters
        ----------
        whole : look at all of them; else at the `LATE` that changed last, where none came or went
        """
        before, self._at = self._at, mark(self._place)
        whole = whole or self._at != before
        # Paths are text here, since making a Path takes longer than looking at it.
        there = self._folders() if whole else {name: f"{self._place}/{name}" for name in list(self._known)[-LATE:]}
        found = {name: _marks(path) for name, path in there.items()}
        changed = [name for name, marks in found.items() if marks != self._known.get(name)]
        gone = [name for name in self._known if name not in found] if whole else []
        for name in (*changed, *gone):
            self._known.pop(name, None)
        self._known |= {name: found[name] for name in changed if found[name].folder is not None}
        return sorted({*changed, *gone})

    def _folders(self) -> dict[str, str]:
        """Paths of the runs' folders, by name."""
        try:
            with os.scandir(self._place) as found:
                return {entry.name: entry.path for entry in found if entry.is_dir() and not entry.name.startswith(".")}
        except FileNotFoundError:
            return {}


def mark(path: str) -> Mark | None:
    """How a file or folder is; None where there is none that can be looked at."""
    try:
        found = os.stat(path)  # noqa: PTH116 - see `Stirred.look`
    except OSError:
        return None
    return Mark(found.st_ino, found.st_size, found.st_mtime_ns)


def _marks(folder: str) -> Marks:
    return Marks(mark(folder), mark(f"{folder}/{EVENTS}"))


def _last(marks: Marks) -> int:
    return max((one.changed_ns for one in marks if one is not None), default=0)
