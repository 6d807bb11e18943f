"""What keeps a coordinator running: SuperLink, the proxy before it, the process that lets sites in, and its own service.

state/  status.json  log  nginx.conf  nginx/
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

from excise.common.errors import ConfigError
from excise.common.supervisor import Supervisor, Unit
from excise.server.config import ServerConfig, store_of
from excise.server.dashboard.place import place_of
from excise.server.fleet_proxy import nginx, write_configuration
from excise.server.setup import AUTHORITY, SERVER_CERTIFICATE, SERVER_KEY
from excise.server.store.leases import Taken, held
from excise.server.users import users

PATIENCE = 20.0
"""Seconds that a coordinator's processes have to end after it was killed."""
SERVER = "server"
"""Name of the lease under which one coordinator at a time is up on a store."""
LINK, PROXY, REGISTRAR, API, DASHBOARD = "SuperLink", "proxy", "registrar", "API", "dashboard"


def check_store(server_toml: Path, with_dashboard: bool = False, patience: float = PATIENCE) -> None:
    """See that the log is whole, and that no other coordinator is up on the store; from then on the API holds it.

    Of a coordinator that was killed, the API may take a moment to end: it is waited for.

    Raises
    ------
    ConfigError : another coordinator is up on it; or nobody could sign in at the dashboard
    DataError : the audit log is not as it was written
    """
    ends = time.monotonic() + patience
    with store_of(server_toml) as store:
        store.check_log()
        if with_dashboard and not users(store):
            raise ConfigError("nobody could sign in at the dashboard: excise server user add NAME --role coordinator")
        while True:
            try:
                with held(store, SERVER):
                    return
            except Taken as error:
                if time.monotonic() > ends:
                    told = f"it is up already, on {error.by}: one coordinator at a time is up on a store"
                    raise ConfigError(told) from None
            time.sleep(1)


def supervisor_of(
    server_toml: Path, config: ServerConfig, tell: Callable[[str], None], with_dashboard: bool = False
) -> Supervisor:
    """What keeps the coordinator of `server_toml` running; each part is started again by itself.

    Raises
    ------
    ConfigError : nginx is not installed, or cannot be told a path
    """
    folder, program = server_toml.parent, nginx()

    def link() -> dict[str, list[str]]:
        return {
            "the SuperLink": [
                str(Path(sys.executable).with_name("flower-superlink")),
                *("--host", "127.0.0.1", "--port", str(config.link_port)),
                *("--ssl-ca-certfile", str(folder / AUTHORITY)),
                *("--ssl-certfile", str(folder / SERVER_CERTIFICATE), "--ssl-keyfile", str(folder / SERVER_KEY)),
                *("--enable-supernode-auth", "--disable-runtime-dependency-installation"),
            ]
        }

    def proxy() -> dict[str, list[str]]:
        return {"the proxy": [program, "-p", str(config.state), "-c", str(write_configuration(folder, config))]}

    def registrar() -> dict[str, list[str]]:
        return {"the registrar": [sys.executable, "-m", "excise.server.registrar", str(server_toml)]}

    def api() -> dict[str, list[str]]:
        return {"the API": [sys.executable, "-m", "excise.server.api.serve", str(server_toml)]}

    def dashboard() -> dict[str, list[str]]:
        return {"the dashboard": [sys.executable, "-m", "excise.server.dashboard.serve", str(server_toml)]}

    units = [
        Unit(LINK, link, started="the SuperLink is started, on loopback alone"),
        Unit(PROXY, proxy, started=f"sites connect to {config.address}"),
        Unit(REGISTRAR, registrar, started="sites that are admitted are let in"),
        Unit(API, api, started=f"requests, evidence and models at {config.api}"),
    ]
    if with_dashboard:
        place = place_of(server_toml, config.dashboard_host, config.dashboard_port)
        units.append(Unit(DASHBOARD, dashboard, started=f"the dashboard is at {place.url}"))
    environment = {"FLWR_HOME": str(config.state / "flower")}
    return Supervisor(units, config.state, server_toml.with_name("up.lock"), environment, tell)
