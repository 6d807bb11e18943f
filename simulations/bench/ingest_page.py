"""The page of `excise bench ingest`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from excise.common.files import write_atomically
from excise.simulations.bench.ingest import FEWER, SIDE, SIZE, Decoding, Indexed, Rates
from excise.simulations.bench.pages import paragraph

HEADERS_GOAL, COLD_GOAL, WARM_GOAL, MEMORY_GOAL = 3.0, 3.0, 20.0, 500.0
"""At least so many times as fast as the plain loop; less memory than so many MB."""


def write_ingest_page(
    page: Path, counts: tuple[int, int], headers: Rates, images: Mapping[str, Decoding], indexed: Indexed, start: float
) -> None:
    """Write the page.

    Parameters
    ----------
    counts : files of each transfer syntax, and files whose headers were read
    images : by transfer syntax
    start : seconds until the processes that prepare images are ready

    Raises
    ------
    StorageError : it cannot be written
    """
    judged = [("headers", headers, HEADERS_GOAL)]
    judged += [(f"{name}, cold,", found.cold, COLD_GOAL) for name, found in images.items()]
    judged += [(f"{name}, warm,", found.warm, WARM_GOAL) for name, found in images.items()]
    goals = [
        (f"{name} at least {goal:g} times as fast as the plain loop", f"{rates.ratio:.1f}", rates.ratio >= goal)
        for name, rates, goal in judged
    ]
    small = indexed.megabytes < MEMORY_GOAL
    goals.append((f"{indexed.files:,} headers with less than {MEMORY_GOAL:g} MB", f"{indexed.megabytes:.0f} MB", small))
    lines = [
        "# Ingest: from a DICOM folder to prepared images",
        "",
        *paragraph(
            f"Written by `excise bench ingest`, on {os.cpu_count()} processors. {counts[0]:,} files of each transfer syntax "
            f"(JPEG 2000: {counts[0] // FEWER['JPEG 2000']:,}), {SIDE} × {SIDE} pixels, 16 bits, made-up pixels, prepared to "
            f"{SIZE} × {SIZE}; headers of {counts[1]:,} files with pixels. Each figure is the median of several runs, ways "
            "in turn. *Plain*: pydicom in a loop. *MONAI*: `LoadImaged` with pydicom, and `PersistentDataset`, on a tenth of "
            "the files. *Cold*: nothing is kept from before; ours includes the index, the fingerprints and the writing of the "
            "cache. *Warm*: everything was prepared before."
        ),
        "",
        "| goal | measured | reached |",
        "|---|---|---|",
        *(f"| {goal} | {told} | {'yes' if reached else '**no**'} |" for goal, told, reached in goals),
        "",
        "| a second | plain | MONAI | excise | times the plain loop |",
        "|---|---|---|---|---|",
        *(
            f"| {name.rstrip(',')} | {rates.plain:,.0f} | {_whole(rates.monai)} | {rates.excise:,.0f} | {rates.ratio:.1f} |"
            for name, rates, _ in judged
        ),
        "",
        "## Where a cold image's time goes",
        "",
        *paragraph(
            "Of one process of ours, by a profile; a profile makes Python look slower than it is. The last column is what "
            "the machine gives: how many images two processes decode at once, that do nothing else, for one of one process. "
            "Decoder and header are pydicom's and its plug-ins' in both ways, so a cold run gains no more than that many "
            f"times on them; it starts its processes first, which takes {start:.1f} s, and reads headers once more for its "
            "index. Each file is decoded once in the life of a site: what a site waits for day by day is the warm run."
        ),
        "",
        *_shares(images),
        "",
        *paragraph(
            f"Indexing {indexed.files:,} headers took {indexed.seconds:.0f} s, {indexed.files / indexed.seconds:,.0f} a "
            f"second; a scan that finds nothing new {indexed.again:.1f} s. Memory is that of all its processes together; "
            "what they share is counted in each."
        ),
        "",
    ]
    write_atomically(page, "\n".join(lines))


def _shares(images: Mapping[str, Decoding]) -> list[str]:
    parts = list(next(iter(images.values())).shares)
    rows = [
        f"| {name} | {' | '.join(f'{found.shares[part]:.0%}' for part in parts)} | {found.two:.2f} |"
        for name, found in images.items()
    ]
    return [f"| | {' | '.join(parts)} | two processes |", "|---" * (len(parts) + 2) + "|", *rows]


def _whole(value: float) -> str:
    return f"{value:,.0f}" if value == value else "–"
