"""What tells whether a process carries a run out: a lock in its folder, and what it says in the end if it does not finish.

The system lets go of the lock when the process ends, however it ended. The lock keeps nobody from anything: that is a lease's
matter (`store/leases.py`), which a simulation does without.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from excise.common.errors import ExciseError, Interrupted, StorageError
from excise.common.files import private, storage_errors
from excise.server.events import FAILED, STOPPED, add

LOCK = "run.lock"
TRIES, PAUSE = 3, 0.002
"""Two who look at the very same moment see each other: then they look again, so many seconds later."""


@contextmanager
def carrying_out(run: Path) -> Iterator[None]:
    """Carry out the run in the folder `run` within the block: an event says why when it does not come to its end.

    Raises
    ------
    StorageError : the folder cannot be written
    """
    with _locked(run):
        try:
            yield
        except (Interrupted, KeyboardInterrupt):
            with suppress(StorageError):
                add(run, STOPPED)
            raise
        except Exception as error:
            told = (str(error), error.exit_code) if isinstance(error, ExciseError) else ("", ExciseError.exit_code)
            with suppress(StorageError):  # of a full disk, say: what ended the run is raised then all the same
                add(run, FAILED, error=type(error).__name__, message=told[0], exit_code=told[1])
            raise


@contextmanager
def _locked(run: Path) -> Iterator[None]:
    """Hold the lock of a run. Several processes may: one that was taken for dead can wake up."""
    with storage_errors(run / LOCK):
        run.mkdir(parents=True, exist_ok=True)
        file = open(run / LOCK, "ab", opener=private)  # noqa: SIM115 - closed below
    with file:
        with storage_errors(run / LOCK):
            fcntl.flock(file, fcntl.LOCK_SH)
        yield


def is_carried_out(run: Path) -> bool | None:
    """Whether a process carries out the run in the folder `run`; None where none ever took the lock, or it cannot be asked."""
    try:
        with (run / LOCK).open("rb") as file:
            for _ in range(TRIES):
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # let go of at once, with the file
                except BlockingIOError:
                    time.sleep(PAUSE)
                else:
                    return False
            return True
    except OSError:
        return None
