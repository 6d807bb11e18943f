"""Making a coordinator: its commented `server.toml`, its authority, its server's certificate and its signing key."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from excise.common.errors import ConfigError
from excise.common.files import write_atomically
from excise.common.signing import make_key
from excise.common.validation import explain
from excise.server.authority import Authority
from excise.server.config import ServerConfig, read_server_config, store_of

KEYS = Path("keys")
AUTHORITY, AUTHORITY_KEY = KEYS / "authority.crt", KEYS / "authority.key"
SITES_AUTHORITY = KEYS / "sites.crt"
SERVER_CERTIFICATE, SERVER_KEY = KEYS / "server.crt", KEYS / "server.key"
SIGNING_KEY = KEYS / "signing.pem"
LOOPBACK = ("localhost", "127.0.0.1")
"""Always in the server's certificate: the coordinator's own processes meet on loopback."""


def init(
    folder: Path, name: str, hosts: Sequence[str], fleet_port: int = 8443, link_port: int = 18000, api_port: int = 8444
) -> ServerConfig:
    """Write ``folder/server.toml``, two authorities, keys and an empty store.

    Raises
    ------
    ConfigError : there is a coordinator already, or a value cannot be used; nothing was written
    StorageError : a file cannot be written
    """
    toml = folder / "server.toml"
    if toml.exists():
        raise ConfigError(f"{toml} exists already: edit it, or choose another folder")
    text = TEMPLATE.format(
        name=json.dumps(name),
        hosts=json.dumps(tuple(hosts), ensure_ascii=False),
        fleet_port=fleet_port,
        api_port=api_port,
        link_port=link_port,
    )
    try:
        ServerConfig.model_validate(tomllib.loads(text))
    except ValidationError as error:
        raise ConfigError(explain(error, ServerConfig, str(toml))) from error
    write_atomically(toml, text)
    config = read_server_config(toml)
    for authority, vouches in (
        (Authority(folder / AUTHORITY, folder / AUTHORITY_KEY), "its server"),
        (sites_authority(folder), "sites"),
    ):
        if not authority.key.exists():
            authority.make(f"{name}: authority of excise for {vouches}")
    renew(folder, config)
    if not (folder / SIGNING_KEY).exists():
        make_key(folder / SIGNING_KEY)
    with store_of(toml):
        pass  # it is made when it is opened
    return config


def sites_authority(folder: Path) -> Authority:
    """The authority that vouches for the sites of the coordinator in `folder`."""
    return Authority(folder / SITES_AUTHORITY, folder / KEYS / "sites.key")


def renew(folder: Path, config: ServerConfig) -> None:
    """A new certificate of the server, by the same authority: sites believe it without a new invite.

    Raises
    ------
    ConfigError : the authority's certificate or key cannot be read
    StorageError : a file cannot be written
    """
    authority = Authority(folder / AUTHORITY, folder / AUTHORITY_KEY)
    authority.issue([*config.hosts, *LOOPBACK], folder / SERVER_CERTIFICATE, folder / SERVER_KEY)


TEMPLATE = """\
# A coordinator of excise. It decides nothing for a hospital: each site's own site.toml says what is done there.
name = {name}                  # letters, digits and hyphens
hosts = {hosts}                # names or addresses that sites reach it by; the first is written into invites
fleet_port = {fleet_port}      # where sites connect: TLS, and nothing passes but Flower's fleet
api_port = {api_port}          # where sites reach this coordinator's own service: requests, evidence, models
link_port = {link_port}        # of Flower's SuperLink, on loopback alone: whoever reaches it can start runs
# store = "sqlite:///store.db" # requests, sites, models; or postgresql+psycopg://user@host/name
# state = "state"              # logs, and what the processes need while they run
# dashboard_host = "127.0.0.1" # of excise server up --dashboard; any other address than loopback gets TLS
# dashboard_port = 8445
# runs = "runs"                # one folder a run
"""
