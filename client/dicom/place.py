"""Where DICOM files are: what the index asks of a folder and of a PACS alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from excise.client.dicom.headers import Values
from excise.client.table import Problem

CHANGED = "file changed while it was read; scan again"


@dataclass(frozen=True)
class File:
    """A file as its place tells of it.

    Attributes
    ----------
    path : relative to the place
    size : bytes; 0 where the place does not tell
    time : of the last change, nanoseconds; 0 where a file never changes
    """

    path: bytes
    size: int = 0
    time: int = 0


class Place(Protocol):
    """A folder, or a PACS."""

    @property
    def name(self) -> str:
        """Tells it from others: an index of one is of no use for another."""

    @property
    def workers(self) -> int | None:
        """Processes that read headers; as many as there are processors when None; 0: this one."""

    def walk(self) -> Iterator[File | Problem]:
        """Every file that may be an image, in a lasting order, and what cannot be looked into.

        Raises
        ------
        DataError : the place cannot be reached at all
        """

    def reader(self) -> Callable[[list[File]], list[Values | str]]:
        """A function that reads headers, or tells why they cannot be; it may go to other processes."""

    def at(self, path: bytes) -> Any:
        """Where the image of this path is, for `decode` and `fingerprint_of`."""
