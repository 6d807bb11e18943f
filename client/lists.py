"""A site's own lists of values, which never leave: ``lists/NAME.txt`` beside site.toml, one a line; requests say ``@NAME``."""

from __future__ import annotations

from pathlib import Path

from excise.common.errors import DataError

LISTS = "lists"


def names_of(folder: Path) -> frozenset[str]:
    """Names of the lists of the site in `folder`."""
    return frozenset(path.stem for path in (folder / LISTS).glob("*.txt"))


def read_lists(folder: Path) -> dict[str, frozenset[str]]:
    """The values of each list of the site in `folder`.

    Raises
    ------
    DataError : one cannot be read
    """
    try:
        return {
            path.stem: frozenset(line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip())
            for path in sorted((folder / LISTS).glob("*.txt"))
        }
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"a list in {folder / LISTS} cannot be read: {error}") from error
