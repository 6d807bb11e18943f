"""Keeping a site running: Flower's SuperNode and the process that runs its apps (`common/supervisor.py`).

    state/node/  heartbeat  status.json  secret  log  rounds.jsonl

The SuperNode holds the site's key and talks to the coordinator; the apps, which see images, run in processes of their own that
have neither. Everything is an outbound connection but the loopback port between the two.
"""

from __future__ import annotations

import secrets
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from excise.client import logs
from excise.client.config import CoordinatorSettings, SiteConfig
from excise.client.deploy.node import HEARTBEAT, SITE
from excise.client.setup import NODE_KEY
from excise.common.errors import ConfigError
from excise.common.files import write_atomically
from excise.common.supervisor import Running, Supervisor, Unit, read_status

PAUSED = "paused"
"""Beside site.toml, since the state may be deleted: while this file is there, no round is answered."""
HANGS = 180.0
"""Seconds without a sign of life after which a node counts as hung; it asks for work every three."""
NODE, APPS = "the node", "the process that runs its apps"


def supervisor_of(site_toml: Path, config: SiteConfig, tell: Callable[[str], None]) -> Supervisor:
    """What keeps the site of `site_toml` running.

    Raises
    ------
    ConfigError : the site has not joined a coordinator
    """
    if config.coordinator is None:
        raise ConfigError("the site has not joined a coordinator: excise site join INVITE")
    folder, coordinator = folder_of(config), config.coordinator
    heartbeat = folder / "heartbeat"

    def commands() -> dict[str, list[str]]:
        write_atomically(folder / "secret", secrets.token_hex(32))
        heartbeat.touch()
        return commands_of(site_toml, coordinator, folder / "secret", _free_port())

    def watcher() -> dict[str, list[str]]:
        return {"the watcher": [sys.executable, "-m", "excise.client.deploy.watcher", str(site_toml)]}

    units = [
        Unit("node", commands, lambda: _hangs(heartbeat), f"started; asking {coordinator.address} for work"),
        Unit("watcher", watcher, started=f"asking {coordinator.api} for requests"),
    ]
    environment = {
        "FLWR_HOME": str(folder / "flower"),
        SITE: str(site_toml),
        HEARTBEAT: str(heartbeat),
        logs.FILE: str(folder / logs.ROUNDS),
    }
    return Supervisor(units, folder, site_toml.with_name("up.lock"), environment, tell, paused=site_toml.with_name(PAUSED))


def commands_of(site_toml: Path, coordinator: CoordinatorSettings, secret: Path, port: int) -> dict[str, list[str]]:
    """The node, and the process that runs its apps; they meet on loopback at `port`, by the secret."""
    node = [
        *(sys.executable, "-m", "excise.client.deploy.node"),
        *("--superlink", coordinator.address, "--root-certificates", str(coordinator.ca)),
        *("--auth-supernode-private-key", str(site_toml.parent / "keys" / NODE_KEY)),
        *("--isolation", "process", "--host", "127.0.0.1", "--port", str(port)),
        *("--superexec-auth-secret-file", str(secret)),
        *("--node-config", f'site="{site_toml}"'),
    ]
    apps = [
        *(sys.executable, "-m", "excise.client.deploy.apps", "--insecure"),
        *("--runtime-api-address", f"127.0.0.1:{port}", "--superexec-auth-secret-file", str(secret)),
    ]
    return {NODE: node, APPS: apps}


def node_status(config: SiteConfig) -> tuple[Running, bool] | None:
    """How the node of a site is, and whether it is paused; None when it was never up."""
    status = read_status(folder_of(config))
    return None if status is None else (status.units["node"], status.paused)


def folder_of(config: SiteConfig) -> Path:
    """Where the files of a site's node are."""
    return config.state / "node"


def _hangs(heartbeat: Path) -> str:
    if not heartbeat.exists():  # the state may be deleted at any time
        return "its state was deleted"
    if time.time() - heartbeat.stat().st_mtime > HANGS:
        return f"the node gave no sign of life for {HANGS:.0f} s"
    return ""


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
