"""Flower's SuperLink as the coordinator asks it: which sites it knows, and letting one in or out.

The only place on this side that speaks Flower's Control API, on loopback.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_public_key
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

from excise.common.errors import ConfigError

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Node:
    """A site as the SuperLink knows it.

    Attributes
    ----------
    key : its public key, PEM
    online : whether it asked for work lately
    """

    id: int
    key: bytes
    online: bool


class Link:
    """A connection to the SuperLink on loopback; what its methods raise when it does not answer is Flower's, of many kinds."""

    def __init__(self, client: ControlHttpClient) -> None:
        self._client = client

    def nodes(self) -> list[Node]:
        """Every site that it knows."""
        told = self._client.ListNodes(ListNodesRequest()).nodes_info
        return [Node(node.node_id, node.public_key, node.status == "online") for node in told if not node.unregistered_at]

    def let_in(self, key: bytes, name: str) -> None:
        """Let the site of this public key (PEM) connect."""
        self._client.RegisterNode(RegisterNodeRequest(public_key=key, name=name))

    def let_out(self, node: Node) -> None:
        """Let a site connect no more."""
        self._client.UnregisterNode(UnregisterNodeRequest(node_id=node.id))

    def start(self, bundle: bytes, settings: Mapping[str, str]) -> int:
        """Start a run of an app bundle, and return its number."""
        request = StartRunRequest(
            fab=fab_to_proto(Fab(hashlib.sha256(bundle).hexdigest(), bundle, {})),
            override_config=user_config_to_proto(dict(settings)),
        )
        return int(self._client.StartRun(request).run_id)

    def standing(self, run: int) -> str:
        """How a run is: pending, starting, running, completed, failed or stopped; unknown after a restart of the SuperLink."""
        found = self._client.ListRuns(ListRunsRequest(run_id=run)).run_dict.get(run)
        if found is None:
            return UNKNOWN
        return str(found.status.sub_status if found.status.status == "finished" else found.status.status)

    def under_way(self) -> dict[int, str]:
        """Runs that did not end yet, by number: the folder that each was started with."""
        told = self._client.ListRuns(ListRunsRequest()).run_dict
        return {number: run.override_config["run"].string for number, run in told.items() if run.status.status != "finished"}

    def stop(self, run: int) -> None:
        """Stop a run; what its checkpoints hold stays."""
        self._client.StopRun(StopRunRequest(run_id=run))


@contextmanager
def linked(port: int, authority: Path) -> Iterator[Link]:
    """Connect to the SuperLink at `port`, whose certificate `authority` vouches for."""
    client = ControlHttpClient.from_server_address(
        server_address=f"127.0.0.1:{port}",
        insecure=False,
        root_certificates=authority.read_bytes(),
        interceptors=[RuntimeVersionHttpInterceptor(component_name="excise")],
    )
    try:
        yield Link(client)
    finally:
        client.close()


def node_key(text: bytes) -> bytes:
    """A site's public key, as ``keys/node.pub`` has it (OpenSSH), in PEM.

    Raises
    ------
    ConfigError : it is none, or of another kind than Flower takes (ECDSA)
    """
    try:
        key = load_ssh_public_key(text)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"no public key of a site: {error}. It is keys/node.pub of the site") from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ConfigError("the site's node key is no ECDSA key: excise site init makes one")
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
