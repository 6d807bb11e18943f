"""A dashboard that listens, in a thread, for tests with a browser or without."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import httpx
from fastapi import FastAPI

from excise.server import users
from excise.server.dashboard.access import by_password
from excise.server.dashboard.app import create_app
from excise.server.dashboard.serve import Place, Serving, configuration
from excise.server.dashboard.source import Source
from excise.server.roles import Role
from tests.coordinated import PASSWORD
from tests.coordinators import Network

COORDINATOR, OTHER_COORDINATOR, VIEWER = "ada", "emmy", "max"


def with_users(made: Network) -> Network:
    """The same coordinator, with two who act and one who sees; to check their passwords takes next to no time."""
    with patch.multiple(users, MEMORY=8 * users.LANES, PASSES=1):  # a hash tells what it costs, and is checked at that
        for name, role in ((COORDINATOR, Role.COORDINATOR), (OTHER_COORDINATOR, Role.COORDINATOR), (VIEWER, Role.VIEWER)):
            users.add(made.store, name, role, PASSWORD, "tests")
    return made


def app_of(made: Network) -> FastAPI:
    """The dashboard of a coordinator; that the SuperLink is not up is known without asking."""
    source = Source(made.config.runs, made.toml, made.config, made.store)
    source.look_for_sites = lambda: False  # type: ignore[method-assign]
    source.close = lambda: None  # type: ignore[method-assign]
    return create_app(source, by_password(made.store))


@contextmanager
def serving(app: FastAPI, port: int = 0, certificate: Path | None = None, key: Path | None = None) -> Iterator[str]:
    """The address at which an application listens; with TLS by the name that the coordinator's certificate is of."""
    listener = socket.create_server(("127.0.0.1", port))
    place = Place("localhost" if certificate else "127.0.0.1", listener.getsockname()[1], certificate, key)
    server = Serving(configuration(app, place), app.state.hub)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield place.url
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()
        assert not thread.is_alive()


@contextmanager
def signed_in(url: str, name: str = COORDINATOR) -> Iterator[httpx.Client]:
    """Somebody who signed in, without a browser; changes carry the session's key."""
    with httpx.Client(base_url=url, timeout=20) as client:
        assert client.post("/login", data={"name": name, "password": PASSWORD}).status_code == 303
        page = client.get("/").text
        client.headers["X-CSRF"] = page.split('name="csrf" content="')[1].split('"')[0]
        yield client
