"""Whom a request waits for, by all that is known: what the store keeps, the signatures of its evidence, and how its run goes.

The one place that tells it: `excise server status` and `requests`, the dashboard, and what sites hear of their requests.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from excise.server.carrying import is_carried_out
from excise.server.events import FAILED, STOPPED, last_event
from excise.server.evidence_pack import unsigned
from excise.server.life import State
from excise.server.requests import COORDINATOR, RequestStatus
from excise.server.store import Store
from excise.server.store.leases import is_held, lease_of

STARTS = 15.0
"""Seconds without a lease in which a run may be starting: its process comes up in about six, and takes the lease then."""


def awaited(store: Store, runs: Path, one: RequestStatus) -> RequestStatus:
    """The same request with `waits_for` and `since` as they are.

    A candidate waits for those who did not sign its evidence; a run for the sites that it last said it awaits, and for nobody
    while it computes. Of a run that nobody carries out the coordinator is awaited.

    Parameters
    ----------
    runs : folder of the runs
    """
    if one.state is State.CANDIDATE and one.run:
        return replace(one, waits_for=unsigned(store, one.run) or one.waits_for)
    if one.state is State.RUNNING:
        if since := abandoned(store, runs, one):
            return replace(one, waits_for=(COORDINATOR,), since=since)
        event = last_event(runs / one.run)
        if event and event["event"] == "awaiting":  # nothing came since
            return replace(one, waits_for=tuple(event["sites"]), since=str(event["since"]))
        return replace(one, waits_for=())
    return one


def standing_as(store: Store, runs: Path, one: RequestStatus) -> str:
    """How a request stands, in a word: its state; of one that runs, "stopped" or "failed" when nobody carries it out."""
    if not abandoned(store, runs, one):
        return str(one.state)
    event = last_event(runs / one.run)
    return FAILED if event and event["event"] == FAILED else STOPPED


def abandoned(store: Store, runs: Path, one: RequestStatus) -> str:
    """Since when nobody carries a running request out, as its run last gave a sign; empty when somebody does.

    A run that goes on is told as abandoned for some seconds, until its process is up.
    """
    if one.state is not State.RUNNING:
        return ""
    event, held = last_event(runs / one.run), is_under_way(store, runs / one.run)
    since = str(event["at"]) if event else one.since
    ended = event["event"] if event else ""
    if ended == FAILED:
        return since
    if held is None:
        starts = (datetime.now(UTC) - datetime.fromisoformat(since)).total_seconds() < STARTS
        return "" if starts and ended != STOPPED else since
    return "" if held else since


def is_under_way(store: Store, run: Path) -> bool | None:
    """Whether whoever took a run's lease carries it out still; None when nobody has it.

    The lock in its folder is let go of by whatever ends a process. It tells of one on another machine, and of one whose number
    another process has by now, of which the lease alone tells nothing at once.
    """
    held = is_held(store, lease_of(run.name))
    return held if not held else is_carried_out(run) is not False
