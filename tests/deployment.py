"""A real deployment on loopback, for tests: Flower's SuperLink with TLS and node keys, and sites that are up."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from excise.common.bundle import FOLDER
from excise.server.link import linked
from tests.certificates import certificate

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent


@dataclass
class Deployment:
    """A SuperLink, and the processes of its sites."""

    folder: Path
    port: int
    ca: Path
    environment: dict[str, str]
    sites: dict[Path, subprocess.Popen[bytes]] = field(default_factory=dict)

    def flwr(self, *arguments: object, timeout: float = 300) -> str:
        """One of Flower's commands; its standard output."""
        done = subprocess.run(
            [BIN / "flwr", *map(str, arguments)],
            check=False,
            capture_output=True,
            text=True,
            env=self.environment,
            timeout=timeout,
            cwd=self.folder,
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done.stdout

    def register(self, site_toml: Path) -> None:
        """Let the SuperLink know a site's key."""
        told = self.flwr("supernode", "register", site_toml.parent / "keys" / "node.pub", "dep", "--format", "json")
        assert json.loads(told)["success"], told

    def up(self, site_toml: Path) -> subprocess.Popen[bytes]:
        """Start a site, as an engineer would."""
        with (site_toml.parent / "up.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "excise.cli", "site", "up", "--site", str(site_toml)],
                stdout=log,
                stderr=log,
                env=self.environment,
            )
        self.sites[site_toml] = process
        return process

    def run(self, folder: Path, bundle: Path = FOLDER, timeout: float = 300) -> None:
        """Carry out the plan in `folder`/plan.toml, and wait for its end."""
        self.flwr("run", bundle, "dep", "--stream", "--run-config", f'run="{folder}"', timeout=timeout)

    def nodes(self) -> int:
        """How many sites are connected; asked without a process of Flower's."""
        with linked(self.port, self.ca) as link:
            return sum(node.online for node in link.nodes())


@contextmanager
def deployment(folder: Path) -> Iterator[Deployment]:
    """A SuperLink that listens, with nobody registered; all is ended afterwards."""
    ca, key = certificate(folder / "tls")
    port = free_port()
    home = folder / "flwr"
    home.mkdir(parents=True)
    (home / "config.toml").write_text(f'[superlink.dep]\naddress = "127.0.0.1:{port}"\nroot-certificates = "{ca}"\n')
    environment = {
        **os.environ,
        "FLWR_HOME": str(home),
        "PYTHONPATH": str(ROOT),
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    }
    with (folder / "superlink.log").open("wb") as log:
        link = subprocess.Popen(
            [
                *(BIN / "flower-superlink", "--host", "127.0.0.1", "--port", str(port)),
                *("--ssl-ca-certfile", ca, "--ssl-certfile", ca, "--ssl-keyfile", key),
                *("--enable-supernode-auth", "--disable-runtime-dependency-installation"),
            ],
            stdout=log,
            stderr=log,
            env=environment,
        )
    made = Deployment(folder, port, ca, environment)
    try:
        eventually(lambda: listens(port), 60, f"the SuperLink does not listen: {folder / 'superlink.log'}")
        yield made
    finally:
        for process in (*made.sites.values(), link):
            process.terminate()
        for process in (*made.sites.values(), link):
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def eventually(true: Callable[[], bool], seconds: float, otherwise: str) -> None:
    """Wait until `true()`."""
    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends, otherwise
        time.sleep(0.2)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    return free_ports(1)[0]


def free_ports(number: int) -> list[int]:
    """Different ones: a port that was given and closed may be given again at once."""
    with ExitStack() as held:
        servers = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(number)]
        return [int(server.getsockname()[1]) for server in servers]
