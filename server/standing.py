"""How a coordinator stands: its processes, its sites, and whom each request waits for. What `excise server status` shows."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from excise.common.decision import Standing
from excise.common.errors import ConfigError
from excise.common.supervisor import read_status
from excise.server.config import ServerConfig, read_server_config, store_of
from excise.server.events import last_event
from excise.server.life import State
from excise.server.members import members
from excise.server.registrar import online
from excise.server.registry import version
from excise.server.requests import RequestStatus, statuses
from excise.server.store import Store
from excise.server.store.tables import SiteState
from excise.server.waiting import abandoned, awaited


def standing(server_toml: Path) -> dict[str, Any]:
    """Everything of one coordinator, JSON values only.

    Keys: ``processes`` (by name; None before it was up), ``sites``, ``model`` (version in use, or None), and ``requests``, the
    latest first.

    Raises
    ------
    ConfigError : there is no such coordinator
    StorageError : its store does not answer
    """
    config = read_server_config(server_toml)
    with store_of(server_toml) as store:
        return standing_of(store, config, online(store, server_toml.parent, config))


def standing_of(store: Store, config: ServerConfig, there: dict[str, bool]) -> dict[str, Any]:
    """As `standing`, of an open store; `there` tells which sites are online."""
    running = read_status(config.state)
    try:
        model = version(store).version
    except ConfigError:
        model = None
    return {
        "processes": {name: asdict(unit) for name, unit in running.units.items()} if running else None,
        "sites": [
            {
                "name": site.name,
                "state": site.state,
                "told": _told(site.name, site.state, there),
                "online": there.get(site.name, False),
                "since": site.since,
                "model": site.version,
                "release": site.release,
            }
            for site in members(store)
        ],
        "model": model,
        "requests": [_request(store, config.runs, one) for one in statuses(store)],
    }


def _told(name: str, state: str, there: dict[str, bool]) -> str:
    if state == SiteState.ASKING:  # without its fingerprint, which has to come by telephone and is typed as it was heard
        return f"asks to be let in: excise server admit {name}"
    if state == SiteState.ADMITTED:
        return "let in, online" if there.get(name) else "let in, not connected"
    return state


def _request(store: Store, runs: Path, one: RequestStatus) -> dict[str, Any]:
    last, now = "", awaited(store, runs, one)
    if one.state is State.RUNNING:
        event = last_event(runs / one.run)
        last = f"{event['event'].replace('_', ' ')} at {event['at']}" if event else "not started yet"
    told = {"id": one.request.id, "state": one.state, "since": now.since, "waits_for": list(now.waits_for), "run": one.run}
    denied = [site for site, standing in one.sites.items() if standing == Standing.DENIED]
    return told | {"last": last, "abandoned": bool(abandoned(store, runs, one)), "denied_by": denied}
