"""Keeping processes running: what dies or hangs is started again, later each time, and nothing is left behind at the end.

    <folder>/  status.json  log (the one before: log.1)

A *unit* is one process or several that only make sense together; each unit is started again by itself.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import IO

from excise.common.errors import ConfigError, ExciseError, StorageError
from excise.common.files import write_atomically

LONGEST = 60.0
"""Most seconds between restarts; the first comes at once, each next after twice as long."""
STEADY = 300.0
"""Seconds of running after which a unit counts as steady, and its next restart comes at once again."""
PATIENCE = 10.0
"""Seconds that a process has to end by itself."""
LOG = 10 * 2**20
"""Bytes of the log after which it begins anew; the one before is kept."""
FLOWER = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",  # else an app may bring another release of torch
    "PYTHONUNBUFFERED": "1",
}
"""What each start of Flower needs in its environment."""


@dataclass(frozen=True)
class Running:
    """How a unit is.

    Attributes
    ----------
    since : when it was started last, seconds since 1970
    restarts : how often it was started again
    reason : why it was ended last
    """

    running: bool
    since: float
    restarts: int
    reason: str


@dataclass(frozen=True)
class Status:
    """What a supervisor keeps running, as `status.json` tells it."""

    paused: bool
    supervisor: int
    """Process id."""
    units: dict[str, Running]


@dataclass
class Unit:
    """Processes that are started, and ended, together.

    Attributes
    ----------
    commands : called before each start; the command of each process, by what it is called
    hangs : why processes that run have to be started again; "" when they need not
    started : what is told when they have been started
    """

    name: str
    commands: Callable[[], Mapping[str, Sequence[str]]]
    hangs: Callable[[], str] = lambda: ""
    started: str = "started"
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    restarts: int = 0
    began: float = 0.0
    reason: str = ""
    wait: float = 0.0
    until: float = 0.0

    @property
    def status(self) -> Running:
        """How it is now."""
        return Running(bool(self.processes), self.began, self.restarts, self.reason)

    def fault(self) -> str:
        """Why the processes have to be started again; "" when they need not."""
        for name, process in self.processes.items():
            if (code := process.poll()) is not None:
                return f"{name} ended with code {code}"
        return self.hangs()

    def end(self, reason: str) -> None:
        """End the processes and whatever they started: politely, then not."""
        for process in self.processes.values():
            _signal(process, signal.SIGTERM)
        for process in self.processes.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(PATIENCE)
            _signal(process, signal.SIGKILL)
            process.wait()
        if self.processes:
            self.reason = reason
        self.processes = {}


class Supervisor:
    """Starts and watches units.

    Parameters
    ----------
    folder : for its files; it may be deleted at any time
    lock : a file that is held while it runs, outside of `folder`
    environment : added to that of the processes
    tell : called with what happens
    paused : while this file is there, nothing runs
    """

    def __init__(
        self,
        units: Sequence[Unit],
        folder: Path,
        lock: Path,
        environment: Mapping[str, str],
        tell: Callable[[str], None],
        paused: Path | None = None,
    ) -> None:
        self.units, self.folder, self.lock, self.environment = list(units), folder, lock, environment
        self.tell, self.paused = tell, paused
        self.stopping = False
        self.told: Status | None = None

    def run(self, pause: float = 1.0, first: Callable[[], None] = lambda: None) -> None:
        """Keep the units running until told to stop (SIGTERM, Ctrl-C).

        Parameters
        ----------
        first : called before anything is started, when no other process keeps them running

        Raises
        ------
        ConfigError : another process keeps them running already
        """
        with self._alone():
            first()
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._stop)
            try:
                while not self.stopping:
                    self.folder.mkdir(parents=True, exist_ok=True)
                    if self._is_paused:
                        self._rest()
                    else:
                        for unit in self.units:
                            self._look(unit)
                    self._write_status()
                    time.sleep(pause)
            finally:
                for unit in reversed(self.units):
                    unit.end("stopped")
                self._write_status()
                self.tell("stopped")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the lock; a killed process leaves it."""
        with open(self.lock, "w", opener=_private) as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(f"it is up already: {self.lock} is held by another process") from None
            yield

    @property
    def _is_paused(self) -> bool:
        return self.paused is not None and self.paused.exists()

    def _rest(self) -> None:
        if any(unit.processes for unit in self.units):
            for unit in reversed(self.units):
                unit.end("paused")
            self.tell("paused: no round is answered")
        for unit in self.units:
            unit.until = 0.0

    def _look(self, unit: Unit) -> None:
        if not unit.processes:
            if time.monotonic() >= unit.until:
                self._try_to_start(unit)
        elif reason := unit.fault():
            self._start_later(unit, reason)

    def _try_to_start(self, unit: Unit) -> None:
        try:
            self._start(unit)
        except (ExciseError, OSError) as error:
            if not unit.restarts:  # it never ran, and whoever started it reads why
                raise
            self._start_later(unit, f"{unit.name} cannot be started: {error}")  # a full disk must not take everything down

    def _start_later(self, unit: Unit, reason: str) -> None:
        unit.wait = 0.0 if time.time() - unit.began > STEADY else min(max(2 * unit.wait, 1.0), LONGEST)
        unit.end(reason)
        unit.reason = reason  # also of one that could not be started
        unit.restarts += 1
        unit.until = time.monotonic() + unit.wait
        self.tell(f"{reason}; starting again in {unit.wait:.0f} s")

    def _start(self, unit: Unit) -> None:
        unit.began = time.time()
        commands = unit.commands()
        with self._log() as log:  # the processes have it too
            for name, command in commands.items():
                unit.processes[name] = self._open(command, log)
        self.tell(unit.started)

    def _open(self, command: Sequence[str], log: IO[bytes]) -> subprocess.Popen[bytes]:
        # Flower calls its own commands by their names.
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        # A session of its own: Ctrl-C goes to this process alone, which then ends the others in order.
        return subprocess.Popen(  # noqa: S603 - commands of our own, no shell
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, "PATH": path, **FLOWER, **self.environment},
            start_new_session=True,
            umask=0o077,
            preexec_fn=end_with_parent,  # noqa: PLW1509 - this process has one thread
        )

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.stopping = True

    def _log(self) -> IO[bytes]:
        path = self.folder / "log"
        if path.exists() and path.stat().st_size > LOG:
            shutil.move(path, path.with_name("log.1"))
        return open(path, "ab", opener=_private)

    def _write_status(self) -> None:
        status = Status(self._is_paused, os.getpid(), {unit.name: unit.status for unit in self.units})
        path = self.folder / "status.json"
        if status == self.told and path.exists():
            return
        with suppress(StorageError):  # a full disk must not take everything down; it is tried again a moment later
            write_atomically(path, json.dumps(asdict(status)))
            self.told = status


def read_status(folder: Path) -> Status | None:
    """What runs, as the supervisor that keeps its files in `folder` tells it; None when there never was one.

    Of a supervisor that is gone nothing runs.
    """
    path = folder / "status.json"
    if not path.exists():
        return None
    told = json.loads(path.read_text())
    units = {name: Running(**unit) for name, unit in told["units"].items()}
    status = Status(told["paused"], told["supervisor"], units)
    try:
        os.kill(status.supervisor, 0)
    except ProcessLookupError:
        lost = "the supervisor is gone"
        gone = {name: replace(unit, running=False, reason=lost) if unit.running else unit for name, unit in units.items()}
        return Status(status.paused, status.supervisor, gone)
    except PermissionError:  # it runs, as somebody else
        pass
    return status


def end_with_parent() -> None:
    """Let the kernel end this process when its parent is, which then cannot do so itself; on Linux only."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None  # loaded here: nothing may be between fork and exec


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
