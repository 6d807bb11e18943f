"""`server.toml`: who a coordinator is, and where its parts listen. Owned by the coordinator."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from pydantic import Field, field_validator, model_validator

from excise.common.invite import SITE_NAME
from excise.common.settings import Settings
from excise.common.validation import read_toml
from excise.server.store import Store, open_store

AUDIT_LOG = "audit.jsonl"
"""Beside server.toml: everything that was ever changed in the store (`common/chain.py`)."""


class ServerConfig(Settings):
    """One coordinator."""

    name: str = Field(pattern=SITE_NAME)
    hosts: tuple[str, ...] = Field(min_length=1)
    """Names or addresses that sites reach it by; the first is written into invites."""
    fleet_port: int = Field(8443, ge=1, le=65535)
    """Where sites connect: TLS, and nothing passes but Flower's fleet."""
    api_port: int = Field(8444, ge=1, le=65535)
    """Where sites reach the coordinator's own service, with certificates on both sides."""
    link_port: int = Field(18000, ge=1, le=65535)
    """Where Flower's SuperLink listens, on loopback alone: whoever reaches it can start runs."""
    dashboard_host: str = "127.0.0.1"
    """Where the dashboard of ``excise server up --dashboard`` listens; any other address than loopback gets TLS."""
    dashboard_port: int = Field(8445, ge=1, le=65535)
    """The dashboard's port."""
    store: str = "sqlite:///store.db"
    """Where requests, sites and models are kept: SQLAlchemy's URL of SQLite (relative to server.toml) or PostgreSQL."""
    state: Path = Path("state")
    """Folder for what the processes write, logs first; relative to server.toml. It may be deleted while nothing runs."""
    runs: Path = Path("runs")
    """Folder of the runs; relative to server.toml."""

    @field_validator("hosts")
    @classmethod
    def _can_be_certified(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        if odd := [host for host in hosts if not re.fullmatch(r"[A-Za-z0-9._:-]+", host)]:
            raise ValueError(f"'{odd[0]}' is neither a name nor an address: letters, digits and . - _ : alone")
        return hosts

    @model_validator(mode="after")
    def _ports_differ(self) -> Self:
        named = ("fleet_port", "api_port", "link_port", "dashboard_port")
        ports = {name: int(getattr(self, name)) for name in named}
        for name, port in ports.items():
            if same := [other for other, its in ports.items() if its == port and other != name]:
                raise ValueError(f"{name} and {same[0]} are both {port}")
        return self

    @property
    def address(self) -> str:
        """Host and port of Flower's rounds, as invites name them."""
        return f"{self.hosts[0]}:{self.fleet_port}"

    @property
    def api(self) -> str:
        """Host and port of the coordinator's own service, as invites name them."""
        return f"{self.hosts[0]}:{self.api_port}"


def read_server_config(path: Path) -> ServerConfig:
    """Read a `server.toml` and make its paths absolute.

    Raises
    ------
    ConfigError : no such file, not TOML, or a wrong key or value
    """
    config = read_toml(path, ServerConfig, "no coordinator (excise server init makes one)")
    root = path.resolve().parent
    kept, scheme = config.store, "sqlite:///"
    if kept.startswith(scheme):
        kept = f"{scheme}{root / kept.removeprefix(scheme)}"
    return config.model_copy(update={"state": root / config.state, "runs": root / config.runs, "store": kept})


@contextmanager
def store_of(server_toml: Path) -> Iterator[Store]:
    """The store of a coordinator, open for the length of the block; its audit log stands beside server.toml.

    Raises
    ------
    ConfigError : there is no such coordinator, or its store cannot be used
    """
    store = open_store(read_server_config(server_toml).store, server_toml.resolve().parent / AUDIT_LOG)
    try:
        yield store
    finally:
        store.close()
