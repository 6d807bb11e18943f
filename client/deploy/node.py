"""Flower's SuperNode with the site's own word on which app bundles may run, and a sign of life.

The only place that reaches into Flower's internals at a site, hence the exact pin of flwr. `supervisor.py` starts it, with two
variables in its environment: ``EXCISE_SITE``, the site.toml whose `policy.bundles` says what may run, and
``EXCISE_HEARTBEAT``, a file that it touches each time it asks the coordinator for work.
"""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path
from typing import Any

from excise.client.config import read_site_config
from excise.common.errors import ConfigError

SITE, HEARTBEAT = "EXCISE_SITE", "EXCISE_HEARTBEAT"
log = logging.getLogger("excise.node")


def allowed(content: bytes, told: str, bundles: frozenset[str]) -> bool:
    """Whether a bundle is one of `bundles`, and is what the coordinator says that it is."""
    digest = hashlib.sha256(content).hexdigest()
    return digest == told and digest in bundles


def bundles_of(site_toml: Path) -> frozenset[str]:
    """The bundles that a site allows now; none while its site.toml cannot be read."""
    try:
        return frozenset(read_site_config(site_toml).policy.bundles)
    except ConfigError:
        log.warning("site.toml cannot be used: no bundle runs")
        return frozenset()


def guard(site_toml: Path, heartbeat: Path) -> None:
    """Let the SuperNode of this process refuse every bundle that the site does not allow, and touch `heartbeat`."""
    from flwr.supernode import fleet_http_connection, start_client_internal

    connection: Any = fleet_http_connection  # what is replaced is no part of what Flower promises
    node: Any = start_client_internal
    unpack, ask = connection.fab_from_proto, node._pull_and_store_message

    def marked(proto: Any) -> Any:
        bundle = unpack(proto)
        bundle.verifications["valid_license"] = "site"  # without it Flower refuses before anybody is asked
        return bundle

    def verify(bundle: Any, _: object) -> bool:
        fits = allowed(bundle.content, bundle.hash_str, bundles_of(site_toml))
        log.warning("bundle %s %s", bundle.hash_str, "runs" if fits else "is refused: it is not in policy.bundles")
        return fits

    def pull(**how: Any) -> Any:
        heartbeat.touch()
        return ask(**how | {"trusted_entities": {"site": ""}})  # any entity: with none Flower does not verify at all

    connection.fab_from_proto = marked
    node._verify_fab, node._pull_and_store_message = verify, pull


def main() -> None:
    """Start the SuperNode; its options are Flower's own."""
    guard(Path(os.environ[SITE]), Path(os.environ[HEARTBEAT]))
    from flwr.supernode.cli.flower_supernode import flower_supernode

    flower_supernode()


if __name__ == "__main__":
    main()
