"""How a coordinator stands: its processes, its sites, and whom each request waits for. What `excise server status` shows."""

from __future__ import annotations

from dataclasses import asdict, dataclass
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
from excise.server.store.tables import Site, SiteState
from excise.server.waiting import awaited, standing_as


def standing(server_toml: Path) -> dict[str, Any]:
    """Everything of one coordinator, JSON values only.

    Keys: ``processes`` (by name; None before it was up), ``sites``, ``model`` (version in use, or None), ``digest`` (of
    that model) and ``requests``, the latest first. ``model`` of a site is the one that it told last, when it put one to use.

    Raises
    ------
    ConfigError : there is no such coordinator
    StorageError : its store does not answer
    """
    config = read_server_config(server_toml)
    with store_of(server_toml) as store:
        return standing_of(store, config, online(store, server_toml.parent, config))


@dataclass(frozen=True)
class Stored:
    """What the store alone tells; it changes when the audit log has another line.

    Attributes
    ----------
    requests : the latest first, each with its line in `standing`, as far as the store tells
    model : version in use, and its digest; None before there is one
    """

    sites: list[Site]
    requests: list[tuple[RequestStatus, dict[str, Any]]]
    model: tuple[int, str] | None


def stored_of(store: Store) -> Stored:
    """What a store tells of how its coordinator stands."""
    try:
        used = version(store)
    except ConfigError:
        used = None
    model = (used.version, used.digest) if used else None
    return Stored(members(store), [(one, _line(one)) for one in statuses(store)], model)


def standing_of(store: Store, config: ServerConfig, there: dict[str, bool], stored: Stored | None = None) -> dict[str, Any]:
    """As `standing`, of an open store.

    Parameters
    ----------
    there : which sites are online
    stored : what the store is known to tell; it is asked when that is None
    """
    running, stored = read_status(config.state), stored or stored_of(store)
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
            for site in stored.sites
        ],
        "model": stored.model[0] if stored.model else None,
        "digest": stored.model[1] if stored.model else None,
        "requests": [_request(store, config.runs, one, line) for one, line in stored.requests],
    }


def _told(name: str, state: str, there: dict[str, bool]) -> str:
    if state == SiteState.ASKING:  # without its fingerprint, which has to come by telephone and is typed as it was heard
        return f"asks to be let in: excise server admit {name}"
    if state == SiteState.ADMITTED:
        return "let in, online" if there.get(name) else "let in, not connected"
    return "invited, never seen" if state == SiteState.INVITED else state


def _line(one: RequestStatus) -> dict[str, Any]:
    denied = [site for site, standing in one.sites.items() if standing == Standing.DENIED]
    told = {"id": one.request.id, "state": one.state, "since": one.since, "waits_for": list(one.waits_for), "run": one.run}
    return told | {"how": str(one.state), "last": "", "abandoned": False, "denied_by": denied}


def _request(store: Store, runs: Path, one: RequestStatus, line: dict[str, Any]) -> dict[str, Any]:
    if one.state not in (State.RUNNING, State.CANDIDATE):  # the store tells everything of it
        return line
    now = awaited(store, runs, one)
    line = line | {"since": now.since, "waits_for": list(now.waits_for)}
    if one.state is not State.RUNNING:
        return line
    event = last_event(runs / one.run)
    last = f"{event['event'].replace('_', ' ')} at {event['at']}" if event else "not started yet"
    how = standing_as(store, runs, one)
    return line | {"how": how, "last": last, "abandoned": how != State.RUNNING}
