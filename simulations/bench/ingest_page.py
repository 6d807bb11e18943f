"""The page of `excise bench ingest`."""

from __future__ import annotations

import os
from pathlib import Path

from excise.common.files import write_atomically
from excise.simulations.bench.ingest import SIDE, SIZE, SYNTAXES, Indexed, Rates
from excise.simulations.bench.pages import paragraph

HEADERS_GOAL, COLD_GOAL, WARM_GOAL, MEMORY_GOAL = 3.0, 3.0, 20.0, 500.0
"""At least so many times as fast as the plain loop; less memory than so many MB."""


def write_ingest_page(page: Path, files: int, headers: Rates, images: dict[str, Rates], indexed: Indexed) -> None:
    """Write the page.

    Parameters
    ----------
    files : how many files were read and decoded

    Raises
    ------
    StorageError : it cannot be written
    """
    cold, warm = images["cold"], images["warm"]
    goals = [
        (f"{name} at least {goal:g} times as fast as the plain loop", f"{rates.ratio:.1f}", rates.ratio >= goal)
        for name, rates, goal in (
            ("headers", headers, HEADERS_GOAL),
            ("images, cold,", cold, COLD_GOAL),
            ("images, warm,", warm, WARM_GOAL),
        )
    ]
    small = indexed.megabytes < MEMORY_GOAL
    goals.append((f"{indexed.files:,} headers with less than {MEMORY_GOAL:g} MB", f"{indexed.megabytes:.0f} MB", small))
    rows = (("headers", headers), ("images, cold", cold), ("images, warm", warm))
    lines = [
        "# Ingest: from a DICOM folder to prepared images",
        "",
        *paragraph(
            f"Written by `excise bench ingest`, on {os.cpu_count()} processors. {files:,} files of {SIDE} × {SIDE} pixels, "
            f"16 bits, a third each {', '.join(SYNTAXES)}; made-up pixels, prepared to {SIZE} × {SIZE}. Each figure is the "
            "median of several runs, the ways in turn. *Plain*: pydicom in a loop. *MONAI*: `LoadImaged` with pydicom, and "
            "`PersistentDataset`. *Cold*: nothing is kept from before; ours includes the index and the writing of the cache. "
            "*Warm*: everything was prepared before."
        ),
        "",
        "| goal | measured | reached |",
        "|---|---|---|",
        *(f"| {goal} | {told} | {'yes' if reached else '**no**'} |" for goal, told, reached in goals),
        "",
        "| a second | plain | MONAI | excise | times the plain loop |",
        "|---|---|---|---|---|",
        *(
            f"| {name} | {rates.plain:,.0f} | {_whole(rates.monai)} | {rates.excise:,.0f} | {rates.ratio:.1f} |"
            for name, rates in rows
        ),
        "",
        *paragraph(
            f"Indexing {indexed.files:,} headers took {indexed.seconds:.0f} s, {indexed.files / indexed.seconds:,.0f} a "
            f"second; a scan that finds nothing new {indexed.again:.1f} s. Memory is that of all its processes together; "
            "what they share is counted in each."
        ),
        "",
    ]
    write_atomically(page, "\n".join(lines))


def _whole(value: float) -> str:
    return f"{value:,.0f}" if value == value else "–"
