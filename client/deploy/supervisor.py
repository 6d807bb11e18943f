"""Keeping a site running: Flower's SuperNode and the process that runs its apps, restarted when they die or hang.

    state/node/  heartbeat  status.json  secret  flower.log  rounds.jsonl

The SuperNode holds the site's key and talks to the coordinator; the apps, which see images, run in processes of their own that
have neither. Everything is an outbound connection but the loopback port between the two.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO

from excise.client import logs
from excise.client.config import SiteConfig
from excise.client.deploy.node import HEARTBEAT, SITE
from excise.client.setup import NODE_KEY
from excise.common.errors import ConfigError, StorageError
from excise.common.files import write_atomically

PAUSED = "paused"
"""Beside site.toml, since the state may be deleted: while this file is there, no round is answered."""
HANGS = 180.0
"""Seconds without a sign of life after which a node counts as hung; it asks for work every three."""
LONGEST = 60.0
"""Most seconds between restarts; the first comes at once, each next after twice as long."""
STEADY = 300.0
"""Seconds of running after which a node counts as steady, and the next restart comes at once again."""
PATIENCE = 10.0
"""Seconds that a process has to end by itself."""
LOG = 10 * 2**20
"""Bytes of Flower's log after which it begins anew; the one before is kept."""


@dataclass(frozen=True)
class Status:
    """What runs at a site, as `status.json` tells it."""

    running: bool
    paused: bool
    since: float
    """When it was started last, seconds since 1970."""
    restarts: int
    supervisor: int
    """Process id."""
    reason: str
    """Why it was restarted last."""


class Supervisor:
    """Starts and watches the processes of one site."""

    def __init__(self, site_toml: Path, config: SiteConfig, tell: Callable[[str], None]) -> None:
        if config.coordinator is None:
            raise ConfigError("the site has not joined a coordinator: excise site join INVITE")
        self.site_toml, self.config, self.coordinator, self.tell = site_toml, config, config.coordinator, tell
        self.folder = config.state / "node"
        self.heartbeat, self.paused = self.folder / "heartbeat", site_toml.parent / PAUSED
        self.processes: list[subprocess.Popen[bytes]] = []
        self.restarts, self.began, self.reason, self.stopping = 0, 0.0, "", False
        self.told: Status | None = None

    def run(self, pause: float = 1.0) -> None:
        """Keep the site running until it is told to stop (SIGTERM, Ctrl-C).

        Raises
        ------
        ConfigError : another process keeps it running already
        """
        with self._alone():
            self._run(pause)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the lock beside site.toml: the state may be deleted. A killed process leaves it."""
        path = self.site_toml.with_name("up.lock")
        with open(path, "w", opener=_private) as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(f"the site is up already: {path} is held. Look at it with excise site status") from None
            yield

    def _run(self, pause: float) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        wait_until, wait = 0.0, 0.0
        try:
            while not self.stopping:
                if self.paused.exists():
                    if self.processes:
                        self._end("paused")
                        self.tell("paused: no round is answered")
                    wait_until = 0.0
                elif not self.processes:
                    if time.monotonic() >= wait_until:
                        self._start()
                elif reason := self._fault():
                    wait = 0.0 if time.time() - self.began > STEADY else min(max(2 * wait, 1.0), LONGEST)
                    self._end(reason)
                    self.restarts += 1
                    wait_until = time.monotonic() + wait
                    self.tell(f"{reason}; starting again in {wait:.0f} s")
                self._write_status()
                time.sleep(pause)
        finally:
            self._end("stopped")
            self._write_status()
            self.tell("stopped")

    # ---- processes ------------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        secret = self.folder / "secret"
        write_atomically(secret, secrets.token_hex(32))
        self.heartbeat.touch()
        with self._log() as log:  # the processes have it too
            self.processes = [self._open(command, log) for command in self.commands(secret, _free_port())]
        self.began = time.time()
        self.tell(f"started; asking {self.coordinator.address} for work")

    def commands(self, secret: Path, port: int) -> list[list[str]]:
        """The node, and the process that runs its apps; they meet on loopback at `port`, by the secret."""
        node = [
            *(sys.executable, "-m", "excise.client.deploy.node"),
            *("--superlink", self.coordinator.address, "--root-certificates", str(self.coordinator.ca)),
            *("--auth-supernode-private-key", str(self.site_toml.parent / "keys" / NODE_KEY)),
            *("--isolation", "process", "--host", "127.0.0.1", "--port", str(port)),
            *("--superexec-auth-secret-file", str(secret)),
            *("--node-config", f'site="{self.site_toml}"'),
        ]
        apps = [
            *(str(Path(sys.executable).with_name("flower-superexec")), "--insecure"),
            *("--runtime-api-address", f"127.0.0.1:{port}", "--superexec-auth-secret-file", str(secret)),
        ]
        return [node, apps]

    def _open(self, command: list[str], log: IO[bytes]) -> subprocess.Popen[bytes]:
        environment = {
            **os.environ,
            # Flower calls its own commands by their names.
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "FLWR_HOME": str(self.folder / "flower"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",  # else an app may bring another release of torch
            "PYTHONUNBUFFERED": "1",
            SITE: str(self.site_toml),
            HEARTBEAT: str(self.heartbeat),
            logs.FILE: str(self.folder / "rounds.jsonl"),
        }
        # A session of its own: Ctrl-C goes to this process alone, which then ends the others in order.
        return subprocess.Popen(  # noqa: S603 - our own interpreter and Flower's command, no shell
            command,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
            umask=0o077,
            preexec_fn=_end_with_parent,  # noqa: PLW1509 - this process has one thread
        )

    def _fault(self) -> str:
        """Why the processes have to be started again; "" when they need not."""
        for process, name in zip(self.processes, ("the node", "the process that runs its apps"), strict=True):
            if (code := process.poll()) is not None:
                return f"{name} ended with code {code}"
        if not self.heartbeat.exists():  # the state may be deleted at any time
            return "its state was deleted"
        if time.time() - self.heartbeat.stat().st_mtime > HANGS:
            return f"the node gave no sign of life for {HANGS:.0f} s"
        return ""

    def _end(self, reason: str) -> None:
        """End the processes and whatever they started: politely, then not."""
        for process in self.processes:
            _signal(process, signal.SIGTERM)
        for process in self.processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(PATIENCE)
            _signal(process, signal.SIGKILL)
            process.wait()
        if self.processes:
            self.reason = reason
        self.processes = []

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.stopping = True

    # ---- files ----------------------------------------------------------------------------------------------------------

    def _log(self) -> IO[bytes]:
        path = self.folder / "flower.log"
        if path.exists() and path.stat().st_size > LOG:
            shutil.move(path, path.with_suffix(".log.1"))
        return open(path, "ab", opener=_private)

    def _write_status(self) -> None:
        status = Status(
            running=bool(self.processes),
            paused=self.paused.exists(),
            since=self.began,
            restarts=self.restarts,
            supervisor=os.getpid(),
            reason=self.reason,
        )
        path = self.folder / "status.json"
        if status == self.told and path.exists():
            return
        with suppress(StorageError):  # a full disk must not take the site down; it is tried again a moment later
            write_atomically(path, json.dumps(vars(status)))
            self.told = status


def read_status(config: SiteConfig) -> Status | None:
    """What runs at the site; None when nothing ever did. Of a supervisor that is gone nothing runs."""
    path = config.state / "node" / "status.json"
    if not path.exists():
        return None
    told = Status(**json.loads(path.read_text()))
    try:
        os.kill(told.supervisor, 0)
    except ProcessLookupError:
        return Status(**vars(told) | {"running": False, "reason": "the supervisor is gone"})
    except PermissionError:  # it runs, as somebody else
        pass
    return told


def _end_with_parent() -> None:
    """Let the kernel end this process when the supervisor is killed, which then cannot do so itself; on Linux only."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None  # loaded here: nothing may be between fork and exec


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
