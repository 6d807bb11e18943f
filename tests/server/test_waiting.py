"""Whom a request waits for while its run goes on, stops or fails, since when nobody carries it out, and in which word."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert

from excise.server import launch, waiting
from excise.server.carrying import carrying_out
from excise.server.events import FAILED, STOPPED, TAIL, add, events_of, last_event
from excise.server.evidence import seal
from excise.server.launch import prepare
from excise.server.life import State
from excise.server.requests import COORDINATOR, RequestStatus, move, status
from excise.server.store.leases import _machine, held, is_held, lease_of
from excise.server.store.tables import Lease
from excise.server.waiting import abandoned, awaited, standing_as
from tests.candidates import ran
from tests.coordinators import DEVICE, OTHER, Network, ready


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Network]:
    with ready(tmp_path) as one:
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


def word(made: Network) -> str:
    return standing_as(made.store, made.config.runs, status(made.store, "mr7"))


def leave_lease(made: Network) -> None:
    """A lease whose holder was killed."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    with made.store.engine.connect().execution_options(writes=True) as connection, connection.begin():
        connection.execute(insert(Lease).values(name=lease_of("mr7"), holder=f"{_machine()}/{gone.pid}/00", beat=3))


def test_a_run_waits_for_the_sites_that_it_said_last(made: Network, run: Path) -> None:
    with held(made.store, lease_of("mr7")):
        assert (now(made).waits_for, lost(made)) == ((), "")
        add(run, "awaiting", round="audit", sites=["b"], since="2026-01-01T00:00:00.000+00:00")
        assert (now(made).waits_for, now(made).since) == (("b",), "2026-01-01T00:00:00.000+00:00")
        add(run, "returned", site="b")
        assert now(made).waits_for == ()


def test_a_run_whose_process_was_killed_is_carried_out_by_nobody(made: Network, run: Path, excise: Callable[..., Any]) -> None:
    add(run, "awaiting", round="audit", sites=["north"], since="2026-01-01T00:00:00.000+00:00")
    leave_lease(made)
    at = events_of(run)[-1]["at"]
    assert (lost(made), now(made).waits_for, now(made).since) == (at, (COORDINATOR,), at)
    code, out, err = excise("server", "status", "--server", made.toml)
    assert code == 0, err
    assert f"request mr7: stopped, nobody carries it out since {at}: excise server resume mr7" in out
    assert "north" not in out
    assert "stopped" in excise("server", "requests", "list", "--server", made.toml)[1]
    assert f"state     stopped since {at}" in excise("server", "requests", "show", "mr7", "--server", made.toml)[1]


def test_a_process_that_ended_is_known_by_its_lock_where_its_lease_does_not_tell(made: Network, run: Path) -> None:
    """Of a process on another machine, and of one whose number is another's, the lease says that it lives."""
    holder = f"elsewhere:1/{os.getpid()}/00"
    with made.store.engine.connect().execution_options(writes=True) as connection, connection.begin():
        connection.execute(insert(Lease).values(name=lease_of("mr7"), holder=holder, beat=3))
    with carrying_out(run):
        add(run, "started")
        assert (lost(made), word(made)) == ("", "running")
    assert (lost(made), word(made)) == (events_of(run)[-1]["at"], "stopped")


def test_a_run_that_works_is_told_as_running_and_awaits_nobody(made: Network, run: Path, excise: Callable[..., Any]) -> None:
    with held(made.store, lease_of("mr7")):
        out = excise("server", "status", "--server", made.toml)[1]
    assert f"request mr7: running since {status(made.store, 'mr7').since}\n" in out
    assert "coordinator" not in out.split("request mr7")[1]


def test_a_run_that_was_stopped_is_known_at_once(made: Network, run: Path) -> None:
    add(run, "started")
    assert lost(made) == ""  # it may be starting
    add(run, STOPPED)
    assert (lost(made), word(made), now(made).waits_for) == (events_of(run)[-1]["at"], "stopped", (COORDINATOR,))
    with held(made.store, lease_of("mr7")):  # it goes on
        assert (lost(made), word(made)) == ("", "running")


def test_a_run_is_stopped_when_its_process_has_ended(made: Network, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "PAUSE", 0.01)
    with held(made.store, lease_of("mr7")):
        thread = threading.Thread(target=launch._ended, args=(made.store, run))
        thread.start()
        add(run, "returned", site="b")  # the last that it says
        assert thread.is_alive()
    thread.join()
    assert [event["event"] for event in events_of(run)] == ["returned", STOPPED]


def test_a_run_that_came_to_its_end_or_goes_on_was_not_stopped(
    made: Network, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "PATIENCE", 0.0)
    with held(made.store, lease_of("mr7")):
        launch._ended(made.store, run)
    move(made.store, ["mr7"], State.CANDIDATE, "tests", "", "mr7")
    launch._ended(made.store, run)
    assert events_of(run) == []


def test_a_run_that_failed_is_carried_out_by_nobody(made: Network, run: Path) -> None:
    add(run, FAILED, error="QuorumError", message="", exit_code=4)
    assert (lost(made), word(made)) == (events_of(run)[-1]["at"], "failed")


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
