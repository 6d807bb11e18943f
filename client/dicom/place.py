"""Where DICOM files are: what the index asks of a folder and of a PACS alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from excise.client.decoded import Decoded
from excise.client.dicom.headers import Values
from excise.client.dicom.pixels import Rules
from excise.client.table import Problem

CHANGED = "file changed while it was read; scan again"


@dataclass(frozen=True)
class File:
    """A file as its place tells of it.

    Attributes
    ----------
    path : relative to the place
    size : bytes; 0 where the place does not tell
    time : of the last change, nanoseconds, or any number that changes when the header may have
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
        """Every file that may be an image, in a lasting order, and what cannot be looked into; what is below that is kept.

        Raises
        ------
        DataError : the place cannot be reached at all
        """

    def reader(self) -> Callable[[list[File]], list[Values | str]]:
        """A function that reads headers, or tells why they cannot be; it may go to other processes."""

    def decode(self, path: bytes, rules: Rules) -> Decoded:
        """The image of this path.

        Raises
        ------
        DataError : it cannot be read, or is of a kind that is not wanted
        """

    def identify(self, path: bytes) -> str:
        """The fingerprint of the image of this path, wanted or not.

        Raises
        ------
        DataError : it cannot be read
        """
