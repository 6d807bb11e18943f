"""Runs that are started from the dashboard: each by the command that people type, in a process that outlives the dashboard."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from excise.common.errors import ConfigError
from excise.common.files import private
from excise.server.config import ServerConfig

PATIENCE = 90.0
"""Most seconds that a start is waited for: a command that is refused ends sooner."""
STARTED = "': started"
"""What the command says once everything is checked and the run begins."""


class Runner:
    """Starts runs of one coordinator."""

    def __init__(self, toml: Path, config: ServerConfig) -> None:
        self._toml, self._folder = toml, config.state / "dashboard"
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, requests: list[str], by: str, seed: int, settings: str) -> None:
        """Carry out approved requests, as `excise server run`.

        Raises
        ------
        ConfigError : it does not begin; says why
        """
        command = ["run", *requests, f"--by={by}", "--seed", str(seed)]
        if settings.strip():
            self._folder.mkdir(parents=True, exist_ok=True)
            file = self._folder / f"{'-and-'.join(requests)}.toml"
            file.write_text(settings, encoding="utf-8")
            command += ["--settings", str(file)]
        self._begin(command)

    def resume(self, run: str, by: str) -> None:
        """Let a run go on, as `excise server resume`.

        Raises
        ------
        ConfigError : it does not begin; says why
        """
        self._begin(["resume", run, f"--by={by}"])

    def _begin(self, command: list[str]) -> None:
        self._started = [process for process in self._started if process.poll() is None]  # whoever ended is let go
        self._folder.mkdir(parents=True, exist_ok=True)
        said = self._folder / f"{command[1]}.log"
        with open(said, "wb", opener=private) as log:
            process = subprocess.Popen(  # noqa: S603 - a command of our own, no shell
                [sys.executable, "-m", "excise.cli", "server", *command, "--server", str(self._toml)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONUNBUFFERED": "1", "NO_COLOR": "1", "COLUMNS": "1000"},
                start_new_session=True,  # it goes on when the dashboard ends
                umask=0o077,
            )
        self._started.append(process)
        ends = time.monotonic() + PATIENCE
        while time.monotonic() < ends:
            if process.poll() is not None:
                if process.returncode == 0:  # a run of no rounds is quick
                    return
                told = reason(said.read_text(errors="replace"))
                raise ConfigError(told or f"the run did not begin; {said} says why")
            if STARTED in said.read_text(errors="replace"):
                return
            time.sleep(0.2)


def reason(said: str) -> str:
    """Why a command of ours refused, by what it said; empty where it failed: then its words may hold anything."""
    _, found, told = said.rpartition("excise: ")
    return told.strip() if found and "Traceback" not in said else ""
