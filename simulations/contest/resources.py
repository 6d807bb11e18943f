"""Wall time of some work, and the most memory that it held beyond what this process held before."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")
PROC = Path("/proc/self")
"""Linux' own account of this process."""


@dataclass(frozen=True)
class Used(Generic[T]):
    """What some work gave, and what it took.

    Attributes
    ----------
    made : what it gave
    seconds : wall time
    peak_bytes : resident memory at its highest less that at the start, at least 0; None where the system does not tell it
    """

    made: T
    seconds: float
    peak_bytes: float | None


def used(work: Callable[[], T]) -> Used[T]:
    """Do some work, and tell what it took.

    Memory is told for the whole process, with whatever libraries load for the first time meanwhile: some MiB of it say
    nothing. Memory that was freed before is given back to the system first: work that got it again would look as if it took
    none. Where that cannot be done, or Linux does not start its peak anew (proc(5), clear_refs), no memory is told.
    """
    before, began = _start_peak(), time.monotonic()
    made = work()
    seconds = time.monotonic() - began
    return Used(made, seconds, None if before is None else float(max(0, _status("VmHWM") - before)))


def _start_peak() -> int | None:
    """Bytes that are resident now, from which the peak is counted from now on; None where that cannot be had."""
    try:
        ctypes.CDLL(None).malloc_trim(0)  # glibc; others have none
        (PROC / "clear_refs").write_text("5")
    except (AttributeError, OSError):
        return None
    return _status("VmRSS")


def _status(name: str) -> int:
    """A number of /proc/self/status, bytes."""
    (line,) = (line for line in (PROC / "status").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024
