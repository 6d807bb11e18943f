"""A folder of DICOM files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from excise.client.decoded import Decoded
from excise.client.dicom import pixels
from excise.client.dicom.headers import Values, read_headers
from excise.client.dicom.pixels import Rules
from excise.client.dicom.place import CHANGED, File
from excise.client.table import Problem
from excise.common.errors import DataError


@dataclass(frozen=True)
class Folder:
    """A folder and all that it holds; `Place` says what each part means."""

    path: Path
    workers: int | None = None

    @property
    def name(self) -> str:
        """Its path."""
        return str(self.path)

    def walk(self) -> Iterator[File | Problem]:
        """Every file that may be DICOM, whatever its name: files often have no ending (PS3.10 8).

        DICOMDIR is a table of contents, not an image. Links to folders are not followed: they may lead round in a circle.

        Raises
        ------
        DataError : there is no such folder
        """
        if not self.path.is_dir():
            raise DataError(f"no DICOM folder at {self.path}")
        refused: list[Problem] = []

        def refuse(error: OSError) -> None:
            name = os.path.relpath(error.filename, self.path)
            refused.append(Problem(shown(os.fsencode(name)), f"folder cannot be read: {error.strerror}"))

        for at, folders, names in os.walk(self.path, onerror=refuse):
            folders[:] = sorted(name for name in folders if not name.startswith("."))  # such as a file server's snapshots
            for name in sorted(names):
                if name.startswith(".") or name == "DICOMDIR":
                    continue
                path = Path(at, name)
                relative = os.path.relpath(path, self.path)
                try:
                    stat = path.stat()
                except OSError as error:  # a link that leads nowhere, or gone since the folder was read
                    yield Problem(relative, f"file cannot be read: {error.strerror}")
                    continue
                yield File(os.fsencode(relative), stat.st_size, stat.st_mtime_ns)
            yield from refused
            refused.clear()
        yield from refused

    def reader(self) -> Callable[[list[File]], list[Values | str]]:
        """Reads headers; a file that changed meanwhile is a problem, and is read again by the next scan."""
        return partial(_read, self.path)

    def decode(self, path: bytes, rules: Rules) -> Decoded:
        """The image of this path."""
        return pixels.decode(self.path / os.fsdecode(path), rules)

    def identify(self, path: bytes) -> str:
        """Its fingerprint."""
        return pixels.fingerprint_of(self.path / os.fsdecode(path))


def shown(path: bytes) -> str:
    """A path that can be printed whatever its bytes are."""
    return os.fsdecode(path).encode("utf-8", "backslashreplace").decode()


def _read(folder: Path, files: list[File]) -> list[Values | str]:
    paths = [folder / os.fsdecode(file.path) for file in files]
    answers = read_headers(paths)
    return [answer if _unchanged(path, file) else CHANGED for path, file, answer in zip(paths, files, answers, strict=True)]


def _unchanged(path: Path, file: File) -> bool:
    try:
        stat = path.stat()
    except OSError:
        return False
    return (stat.st_size, stat.st_mtime_ns) == (file.size, file.time)
