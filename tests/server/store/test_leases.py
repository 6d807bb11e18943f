"""Leases: one holder at a time; a dead one is found out without anybody's clock."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import insert, update

from excise.common.errors import ConfigError, StorageError
from excise.server.store import Store, open_store
from excise.server.store.leases import held
from excise.server.store.tables import Lease

QUICK = {"beat": 0.05, "dead": 0.6}
ELSEWHERE = "another-machine:1/7/00"


@pytest.fixture
def store(url: str, tmp_path: Path) -> Iterator[Store]:
    made = open_store(url, tmp_path / "audit.jsonl")
    yield made
    made.close()


def left_by(store: Store, holder: str) -> None:
    with store.engine.begin() as connection:
        connection.execute(insert(Lease).values(name="run", holder=holder, beat=3))


def test_one_at_a_time_and_the_next_when_it_is_released(store: Store) -> None:
    with held(store, "run", **QUICK):
        with pytest.raises(ConfigError, match="is held by a process on"), held(store, "run", **QUICK):
            pass
        with held(store, "another", **QUICK):
            pass
    with held(store, "run", **QUICK):
        pass


def test_it_is_released_when_the_block_fails(store: Store) -> None:
    with pytest.raises(RuntimeError), held(store, "run", **QUICK):
        raise RuntimeError
    with held(store, "run", **QUICK):
        pass


def test_a_holder_elsewhere_that_does_not_beat_is_dead(store: Store) -> None:
    left_by(store, ELSEWHERE)
    with held(store, "run", **QUICK):
        pass


def test_a_holder_elsewhere_that_beats_is_alive(store: Store) -> None:
    left_by(store, ELSEWHERE)
    ended = threading.Event()

    def beats() -> None:
        while not ended.wait(0.1):
            with store.engine.begin() as connection:
                connection.execute(update(Lease).values(beat=Lease.beat + 1))

    thread = threading.Thread(target=beats)
    thread.start()
    try:
        with pytest.raises(ConfigError, match="on another-machine, which lives"), held(store, "run", **QUICK):
            pass
    finally:
        ended.set()
        thread.join()


def test_who_lost_it_is_told(store: Store) -> None:
    lost = threading.Event()
    with held(store, "run", lost.set, **QUICK) as still_ours:
        still_ours()
        with store.engine.connect().execution_options(writes=True) as connection, connection.begin():
            connection.execute(update(Lease).values(holder=ELSEWHERE))
        with pytest.raises(StorageError, match="was taken over"):
            still_ours()
        assert lost.wait(5)
    with store.reading() as session:  # and does not take it from whoever has it now
        assert session.get_one(Lease, "run").holder == ELSEWHERE


HOLDS = """
import sys
from pathlib import Path
from excise.server.store import open_store
from excise.server.store.leases import held
store = open_store(sys.argv[1], Path(sys.argv[2]))
with held(store, "run"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_killed_holder_of_this_machine_is_known_at_once(store: Store, url: str, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS, url, str(tmp_path / "audit.jsonl")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    with process:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        process.send_signal(signal.SIGKILL)
        process.wait(20)
    with held(store, "run", dead=3600):  # or it would wait for an hour
        pass
