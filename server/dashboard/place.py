"""Where a dashboard listens: in plain text on loopback alone, with TLS wherever others can reach it."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from excise.common.errors import ConfigError
from excise.server.setup import SERVER_CERTIFICATE, SERVER_KEY


@dataclass(frozen=True)
class Place:
    """Where a dashboard listens.

    Attributes
    ----------
    certificate, key : for TLS; None for plain text, on loopback alone
    """

    host: str
    port: int
    certificate: Path | None = None
    key: Path | None = None

    @property
    def url(self) -> str:
        """The address for a browser."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http{'s' if self.certificate else ''}://{host}:{self.port}"


def place_of(server_toml: Path | None, host: str, port: int) -> Place:
    """Where to listen: without TLS on loopback, else with the coordinator's certificate.

    Parameters
    ----------
    server_toml : the coordinator's; None where runs are shown alone

    Raises
    ------
    ConfigError : others could reach it, and there is no certificate
    """
    if _is_loopback(host):
        return Place(host, port)
    if server_toml is None:
        raise ConfigError(f"runs alone are shown on loopback: '{host}' can be reached by others, and there is no certificate")
    certificate, key = server_toml.parent / SERVER_CERTIFICATE, server_toml.parent / SERVER_KEY
    if not certificate.exists() or not key.exists():
        raise ConfigError(f"no certificate at {certificate}: excise server renew makes one")
    return Place(host, port, certificate, key)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
