"""The process that lets sites in and out: who is admitted in the store is whom the SuperLink is to know.

The SuperLink keeps its sites in memory, and knows nobody after a restart. So this compares again and again, and whatever is
missing on either side is put right.
"""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path

from excise.server.config import ServerConfig, read_server_config, store_of
from excise.server.link import Link, linked
from excise.server.members import admitted
from excise.server.setup import AUTHORITY
from excise.server.store import Store

PAUSE = 3.0
"""Seconds between two comparisons."""
log = logging.getLogger("excise.registrar")


def online(store: Store, folder: Path, config: ServerConfig) -> dict[str, bool]:
    """Sites that are let in, and whether each is online; nobody is while the SuperLink does not answer."""
    try:
        with linked(config.link_port, folder / AUTHORITY) as link:
            there = {node.key for node in link.nodes() if node.online}
    except Exception:  # noqa: BLE001 - it is down: `status` tells that by itself
        there = set()
    return {name: key in there for name, key in admitted(store).items()}


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
            with store_of(toml) as store, linked(config.link_port, toml.parent / AUTHORITY) as link:
                while True:
                    compare(link, admitted(store))
                    time.sleep(PAUSE)
        except Exception as error:  # noqa: BLE001 - the SuperLink is being started again, or the store's server is
            log.warning("the SuperLink or the store does not answer (%s)", type(error).__name__)
            time.sleep(PAUSE)


if __name__ == "__main__":
    main()
