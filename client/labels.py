"""A table of labels: a CSV with a header line, one line an image."""

from __future__ import annotations

import csv
from pathlib import Path

from excise.common.errors import DataError


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
