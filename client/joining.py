"""Joining a coordinator: its fingerprint is checked, its authority installed, and its address entered in `site.toml`."""

from __future__ import annotations

import tomllib
from pathlib import Path

from excise.client.config import read_site_config
from excise.common.errors import ConfigError
from excise.common.files import write_atomically
from excise.common.invite import Invite, plain

AUTHORITY = "keys/coordinator.crt"


def join(site_toml: Path, invite: Invite, fingerprint: str) -> None:
    """Let the site trust the coordinator of `invite`, when `fingerprint` was told by another way.

    Raises
    ------
    ConfigError : the fingerprint differs, the invite is for another site, or the site has joined already; nothing was written
    StorageError : a file cannot be written
    """
    config = read_site_config(site_toml)
    if plain(fingerprint) != plain(invite.fingerprint):
        raise ConfigError(
            f"the fingerprint that you were told is not the invite's ({invite.fingerprint}): do not join. Somebody may have "
            "put another invite in its place; ask the coordinator again"
        )
    if invite.site != config.name:
        raise ConfigError(f"the invite is for the site '{invite.site}', this is '{config.name}': ask for one of its own")
    if config.coordinator is not None:
        raise ConfigError(f"the site has joined {config.coordinator.address} already; to join another remove [coordinator]")
    written = site_toml.read_text(encoding="utf-8-sig")
    joined = f'{written.rstrip()}\n\n[coordinator]\naddress = "{invite.address}"\nca = "{AUTHORITY}"\n'
    tomllib.loads(joined)  # before anything is written: a table must not stand there twice
    write_atomically(site_toml.parent / AUTHORITY, invite.authority)
    write_atomically(site_toml, joined)
    read_site_config(site_toml)
