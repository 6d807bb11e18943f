"""The process of the coordinator's own service. Ends in order when told to; what is under way may finish for a few seconds."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckResponse

from excise.common.api import LARGEST
from excise.common.api.coordinator_pb2 import DESCRIPTOR
from excise.common.api.coordinator_pb2_grpc import add_CoordinatorServicer_to_server
from excise.common.errors import ConfigError
from excise.server.api.service import Service
from excise.server.config import ServerConfig, read_server_config, store_of
from excise.server.deploy import SERVER
from excise.server.setup import SERVER_CERTIFICATE, SERVER_KEY, SITES_AUTHORITY
from excise.server.store import Store
from excise.server.store.leases import held

LARGEST_CALL = 4 << 20
"""Most bytes of what a site sends: a request of the longest text, in UTF-8, and more."""
CALLS = 1000
"""Most calls under way at once, of all sites together."""
GRACE = 3.0
"""Seconds that calls have to finish when the process is told to end."""


def server_of(store: Store, folder: Path, config: ServerConfig) -> tuple[grpc.aio.Server, health.aio.HealthServicer]:
    """The service on its port of every address, not started yet, and its health. There is no reflection, and no plain text.

    Raises
    ------
    ConfigError : the port is taken, or the certificates cannot be read
    """
    try:
        pairs = [((folder / SERVER_KEY).read_bytes(), (folder / SERVER_CERTIFICATE).read_bytes())]
        authority = (folder / SITES_AUTHORITY).read_bytes()
    except OSError as error:
        raise ConfigError(f"the coordinator's certificates cannot be read: {error}") from error
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", LARGEST_CALL),
            ("grpc.max_send_message_length", LARGEST),
            ("grpc.so_reuseport", 0),  # else a second server on this port would take half of the calls
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
        ],
        maximum_concurrent_rpcs=CALLS,
    )
    add_CoordinatorServicer_to_server(Service(store, folder, config), server)
    health_service = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health_service, server)
    credentials = grpc.ssl_server_credentials(pairs, root_certificates=authority, require_client_auth=True)
    try:
        server.add_secure_port(f"[::]:{config.api_port}", credentials)
    except RuntimeError as error:
        raise ConfigError(f"nothing can listen on port {config.api_port}: {error}. Choose another api_port") from error
    return server, health_service


async def serve(toml: Path) -> None:
    """Serve until SIGTERM or Ctrl-C."""
    config, ended, loop = read_server_config(toml), asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    with store_of(toml) as store, held(store, SERVER, lambda: loop.call_soon_threadsafe(ended.set)):
        server, healthy = server_of(store, toml.parent, config)
        await server.start()
        for name in ("", DESCRIPTOR.services_by_name["Coordinator"].full_name):
            await healthy.set(name, HealthCheckResponse.SERVING)
        await ended.wait()
        await healthy.enter_graceful_shutdown()
        await server.stop(GRACE)


def main() -> None:
    """Serve; the first argument is the coordinator's server.toml."""
    logging.basicConfig(format="%(asctime)s %(name)s: %(message)s")
    asyncio.run(serve(Path(sys.argv[1]).absolute()))


if __name__ == "__main__":
    main()
