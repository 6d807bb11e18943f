"""Making a coordinator: its commented `server.toml`, its authority, its server's certificate and its signing key."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from excise.common.errors import ConfigError
from excise.common.files import write_atomically
from excise.common.invite import Invite, fingerprint_of
from excise.common.signing import make_key
from excise.server.authority import Authority
from excise.server.config import ServerConfig, read_server_config

KEYS = Path("keys")
AUTHORITY, AUTHORITY_KEY = KEYS / "authority.crt", KEYS / "authority.key"
SERVER_CERTIFICATE, SERVER_KEY = KEYS / "server.crt", KEYS / "server.key"
SIGNING_KEY = KEYS / "signing.pem"
LOOPBACK = ("localhost", "127.0.0.1")
"""Always in the server's certificate: the coordinator's own processes meet on loopback."""


def init(folder: Path, name: str, hosts: Sequence[str], fleet_port: int = 8443, link_port: int = 18000) -> ServerConfig:
    """Write ``folder/server.toml``, an authority and keys.

    Raises
    ------
    ConfigError : there is a coordinator already, or a value cannot be used; nothing was written
    StorageError : a file cannot be written
    """
    toml = folder / "server.toml"
    if toml.exists():
        raise ConfigError(f"{toml} exists already: edit it, or choose another folder")
    hosts = tuple(hosts)
    write_atomically(
        toml,
        TEMPLATE.format(
            name=json.dumps(name), hosts=json.dumps(hosts, ensure_ascii=False), fleet_port=fleet_port, link_port=link_port
        ),
    )
    try:
        config = read_server_config(toml)
    except ConfigError:
        toml.unlink()
        raise
    if not (folder / AUTHORITY_KEY).exists():
        Authority.make(folder / KEYS, name)
    renew(folder, config)
    if not (folder / SIGNING_KEY).exists():
        make_key(folder / SIGNING_KEY)
    return config


def renew(folder: Path, config: ServerConfig) -> None:
    """A new certificate of the server, by the same authority: sites believe it without a new invite.

    Raises
    ------
    ConfigError : the authority's certificate or key cannot be read
    StorageError : a file cannot be written
    """
    authority = Authority(folder / AUTHORITY, folder / AUTHORITY_KEY)
    authority.issue([*config.hosts, *LOOPBACK], folder / SERVER_CERTIFICATE, folder / SERVER_KEY)


def invite(folder: Path, config: ServerConfig, site: str) -> Invite:
    """An invite of one site. Its fingerprint has to be told by another way too.

    Raises
    ------
    ConfigError : the authority's certificate cannot be read
    ValidationError : that is no name of a site
    """
    try:
        authority = (folder / AUTHORITY).read_text()
    except OSError as error:
        raise ConfigError(f"no authority at {folder / AUTHORITY}: {error.strerror}") from error
    return Invite(site=site, address=config.address, authority=authority, fingerprint=fingerprint_of(authority))


TEMPLATE = """\
# A coordinator of excise. It decides nothing for a hospital: each site's own site.toml says what is done there.
name = {name}                  # letters, digits and hyphens
hosts = {hosts}                # names or addresses that sites reach it by; the first is written into invites
fleet_port = {fleet_port}      # where sites connect: TLS, and nothing passes but Flower's fleet
link_port = {link_port}        # of Flower's SuperLink, on loopback alone: whoever reaches it can start runs
# state = "state"              # logs and the SuperLink's database
# runs = "runs"                # one folder a run
"""
