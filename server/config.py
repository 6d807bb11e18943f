"""`server.toml`: who a coordinator is, and where its parts listen. Owned by the coordinator."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from excise.common.invite import SITE_NAME
from excise.common.settings import Settings
from excise.common.validation import read_toml


class ServerConfig(Settings):
    """One coordinator."""

    name: str = Field(pattern=SITE_NAME)
    hosts: tuple[str, ...] = Field(min_length=1)
    """Names or addresses that sites reach it by; the first is written into invites."""
    fleet_port: int = Field(8443, ge=1, le=65535)
    """Where sites connect: TLS, and nothing passes but Flower's fleet."""
    link_port: int = Field(18000, ge=1, le=65535)
    """Where Flower's SuperLink listens, on loopback alone: whoever reaches it can start runs."""
    state: Path = Path("state")
    """Folder for what the processes write: logs, the SuperLink's database; relative to server.toml."""
    runs: Path = Path("runs")
    """Folder of the runs; relative to server.toml."""

    @model_validator(mode="after")
    def _ports_differ(self) -> Self:
        if self.fleet_port == self.link_port:
            raise ValueError(f"fleet_port and link_port are both {self.link_port}")
        return self

    @property
    def address(self) -> str:
        """Host and port that invites name."""
        return f"{self.hosts[0]}:{self.fleet_port}"


def read_server_config(path: Path) -> ServerConfig:
    """Read a `server.toml` and make its paths absolute.

    Raises
    ------
    ConfigError : no such file, not TOML, or a wrong key or value
    """
    config = read_toml(path, ServerConfig, "no coordinator")
    root = path.resolve().parent
    return config.model_copy(update={"state": root / config.state, "runs": root / config.runs})
