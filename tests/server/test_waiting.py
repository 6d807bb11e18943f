"""Whom a request waits for while its run goes on, stops or fails, and since when nobody carries it out."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert

from excise.server import waiting
from excise.server.events import FAILED, TAIL, add, events_of, last_event
from excise.server.evidence import seal
from excise.server.launch import prepare
from excise.server.requests import COORDINATOR, RequestStatus, status
from excise.server.store.leases import _machine, held, is_held, lease_of
from excise.server.store.tables import Lease
from excise.server.waiting import abandoned, awaited
from tests.candidates import ran
from tests.coordinators import DEVICE, OTHER, Network, network


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Network]:
    with network(tmp_path) as one:
        one.let_in("a", "b")
        one.deployed()
        yield one


@pytest.fixture
def run(made: Network) -> Path:
    """A run that was begun, and that nobody carries out."""
    made.approved(DEVICE)
    return prepare(made.store, made.folder, made.config, ["mr7"], None, 0, "Ada")


def now(made: Network) -> RequestStatus:
    return awaited(made.store, made.config.runs, status(made.store, "mr7"))


def lost(made: Network) -> str:
    return abandoned(made.store, made.config.runs, status(made.store, "mr7"))


def leave_lease(made: Network) -> None:
    """A lease whose holder was killed."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    with made.store.engine.connect().execution_options(writes=True) as connection, connection.begin():
        connection.execute(insert(Lease).values(name=lease_of("mr7"), holder=f"{_machine()}/{gone.pid}/00", beat=3))


def test_a_run_waits_for_the_sites_that_it_said_last(made: Network, run: Path) -> None:
    with held(made.store, lease_of("mr7")):
        assert (now(made).waits_for, lost(made)) == ((COORDINATOR,), "")
        add(run, "awaiting", round="audit", sites=["b"], since="2026-01-01T00:00:00.000+00:00")
        assert (now(made).waits_for, now(made).since) == (("b",), "2026-01-01T00:00:00.000+00:00")
        add(run, "returned", site="b")
        assert now(made).waits_for == (COORDINATOR,)


def test_a_run_whose_process_was_killed_is_carried_out_by_nobody(made: Network, run: Path, excise: Callable[..., Any]) -> None:
    add(run, "awaiting", round="audit", sites=["north"], since="2026-01-01T00:00:00.000+00:00")
    leave_lease(made)
    at = events_of(run)[-1]["at"]
    assert (lost(made), now(made).waits_for, now(made).since) == (at, (COORDINATOR,), at)
    code, out, err = excise("server", "status", "--server", made.toml)
    assert code == 0, err
    assert f"request mr7: running, nobody carries it out since {at}: excise server resume mr7" in out
    assert "north" not in out


def test_a_run_that_failed_is_carried_out_by_nobody(made: Network, run: Path) -> None:
    add(run, FAILED, error="QuorumError", message="", exit_code=4)
    assert lost(made) == events_of(run)[-1]["at"]


def test_a_run_that_is_starting_has_time_to_take_its_lease(made: Network, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (is_held(made.store, lease_of("mr7")), lost(made)) == (None, "")
    monkeypatch.setattr(waiting, "STARTS", 0.0)
    assert lost(made) == status(made.store, "mr7").since
    with held(made.store, lease_of("mr7")):
        assert (is_held(made.store, lease_of("mr7")), lost(made)) == (True, "")


def test_what_does_not_run_is_not_abandoned(made: Network) -> None:
    made.approved(OTHER)
    one = status(made.store, "mr1")
    assert (abandoned(made.store, made.config.runs, one), awaited(made.store, made.config.runs, one)) == ("", one)


def test_a_candidate_waits_for_its_signatures(made: Network) -> None:
    seal(made.store, made.folder, made.config, ran(made, DEVICE))
    assert now(made).waits_for == ("a", "b")


def test_the_last_event_is_that_of_all_of_them_and_whole(tmp_path: Path) -> None:
    assert last_event(tmp_path) is None
    for number in range(3):
        add(tmp_path, "round", number=number, text="x" * TAIL)
    assert last_event(tmp_path) is None  # none of the end that is read is whole
    add(tmp_path, "round", number=3)
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('[]\n{"event": "no time"}\n{"at": "torn')
    assert last_event(tmp_path) == events_of(tmp_path)[3]
