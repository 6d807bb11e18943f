"""The whole of it on loopback, by excise's own commands: a coordinator that is up, and sites that joined it and are up."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from excise import cli
from excise.client.joining import join
from excise.client.setup import make_node_key
from excise.client.site import open_site
from excise.common.bundle import bundle_digest
from excise.common.models import ModelSpec
from excise.common.signing import make_key
from excise.server.config import ServerConfig, read_server_config, store_of
from excise.server.deploy import API, DASHBOARD, LINK, PROXY, REGISTRAR
from excise.server.members import admit, invite
from excise.server.registrar import online
from excise.server.roles import Role
from excise.server.setup import init
from excise.server.users import add
from tests.deployment import ROOT, eventually, free_ports, listens
from tests.dicoms import write_hospital, write_site_toml

PASSWORD = "correct horse battery"
SPEC = ModelSpec(name="allcnn", classes=2, size=16, width=0.05)
DESCRIBED = ("--classes", 2, "--size", 16, "--width", 0.05)
WORDS = {
    LINK: b"flower-superlink",
    PROXY: b"nginx",
    REGISTRAR: b"server.registrar",
    API: b"api.serve",
    DASHBOARD: b"dashboard.serve",
}
"""By which the command of each of the coordinator's processes is known."""


@dataclass
class Coordinated:
    """A coordinator, and its sites by name, each with the process that keeps it up."""

    folder: Path
    config: ServerConfig
    process: subprocess.Popen[bytes]
    sites: dict[str, Path] = field(default_factory=dict)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def toml(self) -> Path:
        return self.folder / "server.toml"

    @property
    def listens(self) -> bool:
        ports = self.config.fleet_port, self.config.link_port, self.config.api_port, self.config.dashboard_port
        return all(map(listens, ports))

    def connected(self, *names: str) -> bool:
        """Whether these sites are connected; all without names."""
        with store_of(self.toml) as store:
            there = online(store, self.folder, self.config)
        return all(there.get(name, False) for name in names or self.sites)

    def server(self, *command: object, code: int | None = 0) -> str:
        """What a command of the coordinator says, in this process."""
        return here("server", *command, "--server", self.toml, code=code)

    def site(self, name: str, *command: object, code: int | None = 0) -> str:
        """What a command of a site says, in this process."""
        return here("site", *command, "--site", self.sites[name], code=code)

    def process_of(self, part: str) -> int:
        """Id of one of the coordinator's own processes."""
        (found,) = [process for process in children(self.process.pid) if WORDS[part] in command_of(process)]
        return found

    def join(self, folder: Path, name: str) -> None:
        """A site of DICOM files that joins by its invite, is let in, and comes up."""
        write_hospital(folder, prefix=f"{name}-")
        toml = write_site_toml(
            folder,
            name=name,
            data={"labels": "labels.csv"},
            split={"key": f"a secret of {name}'s own"},
            policy={"bundles": [bundle_digest()], "approval": True, "min_count": 2},
        )
        make_key(folder / "keys" / "signing.pem")
        make_node_key(folder / "keys" / "node")
        with store_of(self.toml) as store:
            made = invite(store, self.folder, self.config, name, "tests")
            admit(store, name, join(toml, made, made.fingerprint), "tests")
        open_site(toml)
        self.sites[name] = toml
        self.up(name)

    def up(self, name: str) -> None:
        self.processes[name] = start("site", "up", "--site", self.sites[name])


@contextmanager
def coordinated(folder: Path, names: Sequence[str]) -> Iterator[Coordinated]:
    """Everything that is up and connected; ended afterwards."""
    toml = folder / "coordinator" / "server.toml"
    *ports, dashboard_port = free_ports(4)
    init(toml.parent, "network", ["localhost"], *ports)
    toml.write_text(f"{toml.read_text()}dashboard_port = {dashboard_port}\n")
    with store_of(toml) as store:
        add(store, "ada", Role.COORDINATOR, PASSWORD, "tests")
    made = Coordinated(toml.parent, read_server_config(toml), come_up(toml))
    try:
        eventually(lambda: made.listens, 90, "the coordinator does not listen")
        for name in names:
            made.join(folder / name, name)
        eventually(made.connected, 120, "the sites do not connect")
        yield made
    finally:
        for process in (*made.processes.values(), made.process):
            process.terminate()
        for process in (*made.processes.values(), made.process):
            end(process)


def come_up(toml: Path) -> subprocess.Popen[bytes]:
    """What keeps a coordinator and its dashboard up."""
    return start("server", "up", "--dashboard", "--server", toml)


def start(*command: object) -> subprocess.Popen[bytes]:
    """A command of excise that runs until it is ended."""
    return subprocess.Popen(
        [sys.executable, "-m", "excise.cli", *map(str, command)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def said(*command: object, code: int | None = 0) -> str:
    """What a command of excise says; it ends with this exit code, with any when that is None."""
    done = subprocess.run(
        [sys.executable, "-m", "excise.cli", *map(str, command)],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=500,
    )
    assert code is None or done.returncode == code, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def here(*command: object, code: int | None = 0) -> str:
    """As `said`, without another process, which would import everything anew."""
    told, umask = io.StringIO(), os.umask(0o022)
    try:
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(told), redirect_stderr(told):
            patch.setattr(sys, "argv", ["excise", *map(str, command)])
            cli.main()
        ended: object = 0
    except SystemExit as end:
        ended = end.code or 0
    finally:
        os.umask(umask)  # commands change it
    assert code is None or ended == code, f"{command}\n{told.getvalue()}"
    return told.getvalue()


def events_of(run: Path) -> str:
    """The events of a run, as text; empty before there are any."""
    return (run / "events.jsonl").read_text() if (run / "events.jsonl").exists() else ""


def children(process: int) -> list[int]:
    """Ids of the processes that a process started and that still run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
        except OSError:  # it ended meanwhile
            continue
        if int(parent) == process and state != "Z":
            found.append(int(path.parent.name))
    return found


def command_of(process: int) -> bytes:
    """The command of a process, its parts parted by zeros; empty when it ended."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""


def kill(process: int) -> None:
    os.kill(process, signal.SIGKILL)
