"""What a process takes, from Linux' /proc, and work in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from unittest import mock

T = TypeVar("T")
GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536"}
"""Environment in which the C library gives freed tensors back at once (mallopt(3)). By chance it may keep some: a peak of 3.5
models was once told as one of 5."""


def alone(work: Callable[..., T], *args: object) -> T:
    """What `work` returns in a process of its own: peak memory is told for a whole process."""
    with mock.patch.dict(os.environ, GIVEN_BACK), multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, args)


def resident(process: int | str = "self") -> float:
    """Resident memory, MiB."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def processor_seconds(process: int | str = "self") -> float:
    """Processor time so far, of all its threads."""
    told = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(told[11]) + int(told[12])) / os.sysconf("SC_CLK_TCK")


def forget_peak() -> int:
    """Bytes that this process has resident now, from which its peak is counted from now on (Linux: proc(5), clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak() -> int:
    """Most bytes that this process had resident since `forget_peak`."""
    return _status("VmHWM")


def _status(name: str) -> int:
    """A number of /proc/self/status, bytes."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024
