"""A file of events that is read as it grows: only what was appended, and from the start when another is in its place."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

from excise.server.dashboard.kinds import event_of

MARK = 64
"""Bytes before the offset that are compared with what stood there: another file may have the same inode, and be longer."""


class News(NamedTuple):
    """What one look found.

    Attributes
    ----------
    events : that came since the last look, or all of them when `anew`
    malformed : lines among them that are no event
    anew : the file is another one than at the last look, or was cut: what was told before does not hold
    """

    events: list[dict[str, Any]]
    malformed: int
    anew: bool


class Tail:
    """Reads the events of one file, a look at a time. A last line that is not whole yet waits for the next look.

    Parameters
    ----------
    path : the file; one that is not there is empty
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset, self._mark, self._seen = 0, b"", (0, 0, 0)

    def read(self) -> News:
        """Look once. A file that cannot be read now is as it was; one that is gone is empty."""
        try:
            told = self.path.stat()
        except OSError:
            return self._gone()
        seen = (told.st_ino, told.st_size, told.st_mtime_ns)
        if seen == self._seen:
            return News([], 0, anew=False)
        try:
            with self.path.open("rb") as file:
                anew = not self._continues(file, seen[0])
                start = 0 if anew else self._offset
                file.seek(start)
                content = file.read()
        except OSError:
            return News([], 0, anew=False)
        whole = content[: content.rfind(b"\n") + 1]
        self._mark = ((b"" if anew else self._mark) + whole)[-MARK:]
        self._offset, self._seen = start + len(whole), seen
        lines = [line for line in whole.split(b"\n") if line.strip()]
        events = [event for line in lines if (event := event_of(line)) is not None]
        return News(events, len(lines) - len(events), anew)

    def _continues(self, file: Any, inode: int) -> bool:
        """Whether what was read before still stands at the beginning of the file."""
        if self._offset == 0:
            return True
        if inode != self._seen[0] or file.seek(0, os.SEEK_END) < self._offset:
            return False
        file.seek(self._offset - len(self._mark))
        return bool(file.read(len(self._mark)) == self._mark)

    def _gone(self) -> News:
        anew = self._offset > 0
        self._offset, self._mark, self._seen = 0, b"", (0, 0, 0)
        return News([], 0, anew)
