"""The process of the dashboard: one worker, TLS wherever others than this machine can reach it, and an end in order."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from excise.common.errors import ConfigError
from excise.server.dashboard.access import by_password, by_token
from excise.server.dashboard.app import create_app
from excise.server.dashboard.hub import Hub
from excise.server.dashboard.place import Place, place_of
from excise.server.dashboard.source import Source, coordinator_at, runs_in
from excise.server.users import users

GRACE = 3
"""Seconds that viewers' streams have to end."""
KEEP = 75
"""Seconds for which a browser's connection is kept: it asks again at the run's next event."""


def serve(source: Source, place: Place, token: str = "", tell: Callable[[str], None] = lambda _: None) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Parameters
    ----------
    token : with which runs alone may be seen
    tell : called with the address once it can be opened

    Raises
    ------
    ConfigError : nothing can listen there
    """
    access = by_password(source.store) if source.store else by_token(token)
    app = create_app(source, access)
    config = configuration(app, place)
    with _listening(place) as listener:
        tell(replace(place, port=listener.getsockname()[1]).url)
        Serving(config, app.state.hub).run([listener])


class Serving(uvicorn.Server):
    """Ends viewers' streams before it waits for calls to end: they never would by themselves."""

    def __init__(self, config: uvicorn.Config, hub: Hub) -> None:
        super().__init__(config)
        self._hub = hub

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End in order."""
        self._hub.close()
        await super().shutdown(sockets)


def configuration(app: FastAPI, place: Place) -> uvicorn.Config:
    """How the application is served."""
    return uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="none",
        proxy_headers=False,  # whoever calls is who is connected
        timeout_keep_alive=KEEP,
        timeout_graceful_shutdown=GRACE,
        ssl_certfile=place.certificate,
        ssl_keyfile=place.key,
    )


def new_token() -> str:
    """What lets a browser see runs alone; 256 bits."""
    return secrets.token_urlsafe(32)


def _listening(place: Place) -> socket.socket:
    family = socket.AF_INET6 if ":" in place.host else socket.AF_INET
    try:
        return socket.create_server((place.host, place.port), family=family, backlog=256)
    except OSError as error:
        raise ConfigError(f"nothing can listen on {place.host}:{place.port}: {error.strerror}. Choose another port") from None


def open_source(server_toml: Path | None, runs: Path) -> Source:
    """What is to be shown: a coordinator where there is one, else runs alone.

    Raises
    ------
    ConfigError : there is neither, or nobody could sign in
    """
    if server_toml is None:
        return runs_in(runs)
    source = coordinator_at(server_toml)
    assert source.store is not None
    if not users(source.store):
        source.close()
        raise ConfigError("nobody could sign in: excise server user add NAME --role coordinator")
    return source


def main() -> None:
    """Serve a coordinator; the first argument is its server.toml."""
    logging.basicConfig(format="%(asctime)s %(name)s: %(message)s")
    os.umask(0o077)
    source = coordinator_at(Path(sys.argv[1]).absolute())
    assert source.config is not None
    serve(source, place_of(source.toml, source.config.dashboard_host, source.config.dashboard_port))


if __name__ == "__main__":
    main()
