"""The process that lets sites in and out: what stands in ``sites/`` is what the SuperLink is to know.

    sites/<name>.pub   the public key of a site, as its engineer sent it

The SuperLink keeps its sites in memory, and knows nobody after a restart. So this compares again and again, and whatever is
missing on either side is put right.
"""

from __future__ import annotations

import logging
import re
import sys
import time
from pathlib import Path

from excise.common.errors import ConfigError, did_you_mean
from excise.common.files import write_atomically
from excise.common.invite import SITE_NAME
from excise.server.config import ServerConfig, read_server_config
from excise.server.link import Link, linked, read_node_key
from excise.server.setup import AUTHORITY

PAUSE = 3.0
"""Seconds between two comparisons."""
SITES = "sites"
log = logging.getLogger("excise.registrar")


def keys_of(folder: Path) -> dict[str, bytes]:
    """Public keys (PEM) of the sites that are let in, by name; a file that is no key is told in the log and left out."""
    found: dict[str, bytes] = {}
    for path in sorted((folder / SITES).glob("*.pub")):
        try:
            found[path.stem] = read_node_key(path)
        except ConfigError as error:
            log.warning("%s", error)
    return found


def admit(folder: Path, site: str, key: Path) -> None:
    """Let the site `site` of this public key in.

    Raises
    ------
    ConfigError : that is no name or no key, or the name or the key is taken
    StorageError : it cannot be kept
    """
    if not re.fullmatch(SITE_NAME, site):
        raise ConfigError(f"'{site}' is no name of a site: small letters, digits and hyphens")
    wanted, known = read_node_key(key), keys_of(folder)
    taken = [name for name, one in known.items() if one == wanted and name != site]
    if taken:
        raise ConfigError(f"this key is that of '{taken[0]}' already: each site has its own")
    if known.get(site, wanted) != wanted:
        raise ConfigError(f"'{site}' is let in with another key: excise server revoke {site} first, if it has a new one")
    write_atomically(folder / SITES / f"{site}.pub", key.read_bytes())


def revoke(folder: Path, site: str) -> None:
    """Let a site in no more.

    Raises
    ------
    ConfigError : it is not let in
    """
    path = folder / SITES / f"{site}.pub"
    if not path.exists():
        known = keys_of(folder)
        raise ConfigError(f"'{site}' is not let in" + (f"; {did_you_mean(site, known)}" if known else ""))
    path.unlink()


def sites_of(folder: Path, config: ServerConfig) -> dict[str, bool]:
    """Sites that are let in, and whether each is online; nobody is while the SuperLink does not answer."""
    try:
        with linked(config.link_port, folder / AUTHORITY) as link:
            online = {node.key for node in link.nodes() if node.online}
    except Exception:  # noqa: BLE001 - it is down: `status` tells that by itself
        online = set()
    return {name: key in online for name, key in keys_of(folder).items()}


def compare(link: Link, wanted: dict[str, bytes]) -> int:
    """Let in who is wanted and out who is not; returns how many changes that took."""
    nodes = link.nodes()
    known, keys = {node.key for node in nodes}, set(wanted.values())
    strangers = [node for node in nodes if node.key not in keys]
    missing = {name: key for name, key in wanted.items() if key not in known}
    for node in strangers:
        link.let_out(node)
        log.warning("a site is let out: node %d", node.id)
    for name, key in missing.items():
        link.let_in(key, name)
        log.warning("'%s' is let in", name)
    return len(strangers) + len(missing)


def main() -> None:
    """Compare until ended; the first argument is the coordinator's server.toml."""
    logging.basicConfig(format="%(asctime)s %(name)s: %(message)s")
    toml = Path(sys.argv[1])
    config = read_server_config(toml)
    while True:
        try:
            with linked(config.link_port, toml.parent / AUTHORITY) as link:
                while True:
                    compare(link, keys_of(toml.parent))
                    time.sleep(PAUSE)
        except Exception as error:  # noqa: BLE001 - the SuperLink is being started again, or answers with an error of Flower's
            log.warning("the SuperLink does not answer (%s)", type(error).__name__)
            time.sleep(PAUSE)


if __name__ == "__main__":
    main()
