"""Runs that are started from the dashboard: each by the command that people type, in a process that outlives the dashboard."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from excise.common.errors import ConfigError
from excise.common.files import storage_errors
from excise.server.config import ServerConfig

PATIENCE = 90.0
"""Most seconds that a start is waited for: a command that is refused ends sooner."""
STARTED = "': started"
"""What the command says once everything is checked and the run begins."""


class Runner:
    """Starts runs of one coordinator. May be used by several threads at once."""

    def __init__(self, toml: Path, config: ServerConfig) -> None:
        self._toml, self._folder = toml, config.state / "dashboard"
        self._started: list[subprocess.Popen[bytes]] = []
        self._awaited = set[str]()
        self._lock = threading.Lock()

    def start(self, requests: Sequence[str], by: str, seed: int, settings: str) -> str:
        """Carry out approved requests, as `excise server run`.

        Returns
        -------
        Empty once the run begins; else, when `PATIENCE` is over, that it is not known, and where to look

        Raises
        ------
        ConfigError : it does not begin, or one of them is just being started; says why
        StorageError : the settings or the log cannot be written
        """
        with self._alone(requests):
            command = ["run", *requests, f"--by={by}", "--seed", str(seed)]
            if settings.strip():
                file = self._file("settings-", ".toml")
                with storage_errors(file):
                    file.write_text(settings, encoding="utf-8")
                command += ["--settings", str(file)]
            return self._begin(command)

    def resume(self, run: str, requests: Sequence[str], by: str) -> str:
        """Let a run go on that carries out `requests`, as `excise server resume`.

        Returns
        -------
        As `start`

        Raises
        ------
        ConfigError, StorageError : as `start`
        """
        with self._alone(requests):
            return self._begin(["resume", run, f"--by={by}"])

    @contextmanager
    def _alone(self, requests: Sequence[str]) -> Iterator[None]:
        with self._lock:
            if taken := self._awaited.intersection(requests):
                raise ConfigError(f"'{min(taken)}' is just being started, or resumed: wait for what comes of it")
            self._awaited.update(requests)
        try:
            yield
        finally:
            with self._lock:
                self._awaited.difference_update(requests)

    def _file(self, prefix: str, suffix: str) -> Path:
        """A new file of one start, its user's alone. Others may start meanwhile: another dashboard of this coordinator too."""
        with storage_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(suffix, f"{prefix}{datetime.now(UTC):%Y%m%d-%H%M%S}-", self._folder)
        os.close(handle)
        return Path(name)

    def _begin(self, command: list[str]) -> str:
        said = self._file(f"{command[0]}-", ".log")
        with said.open("wb") as log:
            process = subprocess.Popen(  # noqa: S603 - a command of our own, no shell
                [sys.executable, "-m", "excise.cli", "server", *command, "--server", str(self._toml)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONUNBUFFERED": "1", "NO_COLOR": "1", "COLUMNS": "1000"},
                start_new_session=True,  # it goes on when the dashboard ends
                umask=0o077,
            )
        with self._lock:
            self._started = [one for one in self._started if one.poll() is None] + [process]  # whoever ended is let go
        where = f"{self._folder.name}/{said.name} in the coordinator's state folder"
        ends = time.monotonic() + PATIENCE
        while time.monotonic() < ends:
            if process.poll() is not None:
                if process.returncode == 0:  # a run of no rounds is quick
                    return ""
                told = reason(said.read_text(errors="replace"))
                raise ConfigError(told or f"the run did not begin; {where} says why")
            if STARTED in said.read_text(errors="replace"):
                return ""
            time.sleep(0.2)
        waited = f"It is not known yet whether the run begins: nothing came of it for {PATIENCE:.0f} s."
        return f"{waited} Its request's page tells, and {where}."


def reason(said: str) -> str:
    """Why a command of ours refused, by what it said; empty where it failed: then its words may hold anything."""
    _, found, told = said.rpartition("excise: ")
    return told.strip() if found and "Traceback" not in said else ""
