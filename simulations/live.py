"""A dashboard beside a simulation, in a process of its own, so that pages stay quick while this one computes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from excise.common.supervisor import end_with_parent

ENDS = 10.0
"""Seconds that a dashboard has to end by itself; viewers' streams have three of them."""


@contextmanager
def dashboard(runs: Path, wanted: bool) -> Iterator[Callable[[], None]]:
    """Show the runs in the folder `runs` for the length of the block; the command tells its address by itself.

    Yields
    ------
    What waits until the dashboard is ended by Ctrl-C; without a dashboard it returns at once
    """
    if not wanted:
        yield lambda: None
        return
    runs.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "excise.cli", "dashboard", "--runs", str(runs), "--port", "0"]
    process = subprocess.Popen(  # noqa: S603 - a command of our own, no shell
        command,
        stdin=subprocess.DEVNULL,
        preexec_fn=end_with_parent,  # noqa: PLW1509 - it takes no lock
    )

    def wait() -> None:
        with suppress(KeyboardInterrupt):
            process.wait()

    try:
        yield wait
    finally:
        process.terminate()
        try:
            process.wait(ENDS)
        except subprocess.TimeoutExpired:  # it only shows what is in the folder: nothing is lost with it
            process.kill()
            process.wait()
