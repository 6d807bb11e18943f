"""A site's usable images in numbers, for its own people: by modality, maker, model, year, class and split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from excise.client.table import Row, Scan

ABSENT = "–"
"""Stands where an image has no such value."""


def summarise(scan: Scan) -> dict[str, dict[str, int]]:
    """Numbers of images by each of `PARTS`, most first; and numbers of images, patients and skipped files in ``total``."""
    total = {
        "images": len(scan.rows),
        "patients": len({row.patient for row in scan.rows}),
        "skipped": len(scan.problems),
    }
    return {"total": total} | count(scan.rows)


def count(rows: Sequence[Row]) -> dict[str, dict[str, int]]:
    """Numbers of `rows` by each of `PARTS`, most first."""
    found = {name: Counter(value for row in rows for value in values(row)) for name, values in PARTS.items()}
    return {name: dict(counts.most_common()) for name, counts in found.items()}


def _field(keyword: str) -> Callable[[Row], list[str]]:
    return lambda row: [str(row.fields.get(keyword) or ABSENT)]


def _year(row: Row) -> list[str]:
    return [str(row.fields.get("StudyDate") or ABSENT)[:4]]


def _classes(row: Row) -> list[str]:
    told = row.fields["class"]
    return (list(told) or [ABSENT]) if isinstance(told, tuple) else [str(told)]


PARTS: Mapping[str, Callable[[Row], list[str]]] = {
    "modality": _field("Modality"),
    "manufacturer": _field("Manufacturer"),
    "model": _field("ManufacturerModelName"),
    "year": _year,
    "class": _classes,
    "split": lambda row: [row.split.value],
}
