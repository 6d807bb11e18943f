"""Reading what a predicate may ask for from the headers of DICOM files.

`read_header` is the plain way, by pydicom, and says why a file cannot be used. `read_headers` is the fast one: gdcm scans many
files in one call, and whatever it does not read as plain ASCII text goes the plain way. Both give the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import gdcm
import pydicom
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.multival import MultiValue

from excise.common.predicate import DECIMALS, FIELDS, decimal

KEYWORDS = tuple(name for name in FIELDS if name[0].isupper())
"""DICOM keywords (PS3.6) that are read of every file."""
READING = "headers-3"
"""Part of the index's version: raise it when the values of a header change."""
NEEDED = ("SOPInstanceUID", "PatientID")
"""Without these an image can neither be named nor assigned to a split."""
UNREADABLE = "file cannot be read"
"""Beginning of a reason that may pass: a permission, a network."""
Values = tuple[str | None, ...]
"""Values of one header in the order of `KEYWORDS`, as text; None where there is none."""


class Header(Mapping[str, str | None]):
    """The values of one file by keyword; a hundred thousand of them fit into memory."""

    __slots__ = ("values_",)

    def __init__(self, values: Values) -> None:
        self.values_ = values

    def __getitem__(self, keyword: str) -> str | None:
        return self.values_[_PLACE[keyword]]

    def __iter__(self) -> Iterator[str]:
        return iter(KEYWORDS)

    def __len__(self) -> int:
        return len(KEYWORDS)


_PLACE = {keyword: i for i, keyword in enumerate(KEYWORDS)}
_TAGS = [(keyword, gdcm.Tag(tag >> 16, tag & 0xFFFF)) for keyword in KEYWORDS if (tag := tag_for_keyword(keyword)) is not None]


def read_header(path: Path) -> Values | str:
    """The values of one file; or why it cannot be used."""
    try:
        if path.stat().st_size == 0:
            return "file is empty"
        dataset = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(KEYWORDS))
        return values_of(dataset)  # values are parsed only here, and may refuse
    except InvalidDicomError:
        return "not a DICOM file"
    except OSError as error:
        return f"{UNREADABLE}: {error.strerror or error}"
    except Exception as error:  # noqa: BLE001 - any bytes may stand in a file; the scan goes on, with the reason kept
        return f"header cannot be read ({type(error).__name__}): {error}"


def values_of(dataset: Dataset) -> Values:
    """The values of one header."""
    return tuple(_canonical(keyword, _text(dataset.get(keyword))) for keyword in KEYWORDS)


def lacking(values: Values) -> str | None:
    """Why an image of such a header cannot be used; None when it can."""
    missing = [keyword for keyword in NEEDED if values[_PLACE[keyword]] is None]
    return f"without {', '.join(missing)}" if missing else None


def read_headers(paths: Sequence[Path]) -> list[Values | str]:
    """`read_header` of each."""
    scanner = gdcm.Scanner()
    for _, tag in _TAGS:
        scanner.AddTag(tag)
    names = [str(path) for path in paths if str(path).isprintable()]  # bytes that are no Unicode are not
    scanner.Scan(names)
    scanned = set(names)
    return [(str(path) in scanned and _scanned(scanner, str(path))) or read_header(path) for path in paths]


def _scanned(scanner: gdcm.Scanner, name: str) -> Values | None:
    """What gdcm read of a file; None where it is not sure to be what pydicom reads."""
    if not scanner.IsKey(name) or not _has_preamble(name):  # gdcm takes files without one; pydicom, which decodes, does not
        return None
    try:
        raw = [scanner.GetValue(name, tag) for _, tag in _TAGS]
    except Exception:  # noqa: BLE001 - bytes that are no UTF-8; pydicom knows the file's character set
        return None
    if not all(value is None or (value.isascii() and "\\" not in value) for value in raw):
        return None
    texts = ((value.strip(" \0").strip() or None) if value else None for value in raw)
    values = tuple(_canonical(keyword, text) for (keyword, _), text in zip(_TAGS, texts, strict=True))
    return None if lacking(values) else values  # pydicom has the last word


def _has_preamble(name: str) -> bool:
    """Whether a file begins as PS3.10 7.1 wants it."""
    try:
        with Path(name).open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _canonical(keyword: str, text: str | None) -> str | None:
    return decimal(text) if text and keyword in DECIMALS else text


def _text(value: object) -> str | None:
    """A value as a predicate sees it; several parts are joined with backslashes, as the file has them (PS3.5 6.4)."""
    if value is None:
        return None
    parts = value if isinstance(value, MultiValue) else [value]
    return "\\".join(map(str, parts)).strip() or None
