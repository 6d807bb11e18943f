"""Reading the headers of a folder of DICOM files, and joining them with a table of labels."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom.multival import MultiValue

from excise.client.table import Problem
from excise.common.errors import DataError
from excise.common.predicate import FIELDS


@dataclass(frozen=True)
class Header:
    """What the index keeps of one file.

    Attributes
    ----------
    path : the file
    fields : DICOM keywords of `excise.common.predicate.FIELDS` to their values as text, None when absent
    """

    path: Path
    fields: Mapping[str, str | None]


_KEYWORDS = [name for name in FIELDS if name[0].isupper()]
_NEEDED = ("SOPInstanceUID", "PatientID")


def read_headers(folder: Path) -> tuple[list[Header], list[Problem]]:
    """Read every file below `folder`, in the order of their paths. A file that cannot be used becomes a problem.

    Raises
    ------
    DataError : the folder does not exist
    """
    if not folder.is_dir():
        raise DataError(f"no DICOM folder at {folder}")
    headers: list[Header] = []
    problems: list[Problem] = []
    seen: dict[str, Path] = {}
    # Any name will do: DICOM files often have none of their own (PS3.10 8). DICOMDIR is a table of contents, not an image.
    files = (p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".") and p.name != "DICOMDIR")
    for path in sorted(files):
        fields, reason = _read(path)
        uid = fields.get("SOPInstanceUID")
        if reason is None and uid in seen:
            reason = f"SOPInstanceUID occurs already in {seen[uid].name}"
        if reason is not None:
            problems.append(Problem(str(path.relative_to(folder)), reason))
            continue
        seen[str(uid)] = path
        headers.append(Header(path, fields))
    return headers, problems


def _read(path: Path) -> tuple[dict[str, str | None], str | None]:
    try:
        dataset = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=[*_KEYWORDS])
        fields = {key: _text(dataset.get(key)) for key in _KEYWORDS}  # values are parsed only here, and may refuse
    except Exception as error:  # noqa: BLE001 - any bytes may stand in a file; the scan goes on, with the reason kept
        return {}, f"header cannot be read ({type(error).__name__}): {error}"
    missing = [key for key in _NEEDED if fields[key] is None]
    return fields, f"without {', '.join(missing)}" if missing else None


def _text(value: object) -> str | None:
    """A value as a predicate sees it; several parts are joined with backslashes, as the file has them (PS3.5 6.4)."""
    if value is None:
        return None
    parts = value if isinstance(value, MultiValue) else [value]
    return "\\".join(map(str, parts)).strip() or None


def read_labels(path: Path, key: str, column: str = "label") -> dict[str, dict[str, str]]:
    """Read a CSV with a header line into its rows by the value of `key`.

    Raises
    ------
    DataError : no such file, no CSV, a column is missing, a line is too short or too long, or a key occurs twice
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = {key, column} - set(reader.fieldnames or ())
            if missing:
                raise DataError(f"{path} lacks the column {', '.join(sorted(missing))}; it has {reader.fieldnames}")
            rows: dict[str, dict[str, str]] = {}
            for row in reader:
                if None in row or None in row.values():
                    raise DataError(f"{path} has too few or too many values in line {reader.line_num}")
                if row[key] in rows:
                    raise DataError(f"{path} names one {key} twice, in line {reader.line_num}; keep one line per image")
                rows[row[key]] = row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"no readable labels at {path}: {error}") from error
    return rows
