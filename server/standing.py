"""How a coordinator stands: its processes, its sites, and whom each request waits for. What `excise server status` shows."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from excise.common.decision import Standing
from excise.common.errors import ConfigError
from excise.common.supervisor import read_status
from excise.server.config import ServerConfig, read_server_config, store_of
from excise.server.events import events_of
from excise.server.evidence_pack import unsigned
from excise.server.life import State
from excise.server.members import members
from excise.server.registrar import online
from excise.server.registry import version
from excise.server.requests import RequestStatus, statuses
from excise.server.store import Store
from excise.server.store.tables import SiteState


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
                "told": _told(site.name, site.state, there, site.fingerprint),
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


def _told(name: str, state: str, there: dict[str, bool], fingerprint: str) -> str:
    if state == SiteState.ASKING:
        return f"asks to be let in, with the fingerprint {fingerprint}: excise server admit {name}"
    if state == SiteState.ADMITTED:
        return "let in, online" if there.get(name) else "let in, not connected"
    return state


def _request(store: Store, runs: Path, one: RequestStatus) -> dict[str, Any]:
    waits, since, last = one.waits_for, one.since, ""
    if one.state is State.CANDIDATE:
        waits = unsigned(store, one.run) or waits
    if one.state is State.RUNNING:
        events = events_of(runs / one.run)
        last = f"{events[-1]['event'].replace('_', ' ')} at {events[-1]['at']}" if events else "not started yet"
        if events and events[-1]["event"] == "awaiting":  # nothing came since
            waits, since = tuple(events[-1]["sites"]), str(events[-1]["since"])
    told = {"id": one.request.id, "state": one.state, "since": since, "waits_for": list(waits), "run": one.run, "last": last}
    denied = [site for site, standing in one.sites.items() if standing == Standing.DENIED]
    return told | {"denied_by": denied}
