"""Leases: what one process at a time may do, on whatever machine, and what others may take over when it died.

The holder counts a number up every few seconds. Who wants the lease watches that number with its own clock: when it did not
move for long enough the holder is dead. Nobody compares clocks, so none has to be right.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import delete, insert, update
from sqlalchemy.exc import IntegrityError

from excise.common.errors import ConfigError, StorageError
from excise.server.store.opening import Store
from excise.server.store.tables import Lease

BEAT = 2.0
"""Seconds between two beats of a holder."""
DEAD = 15.0
"""Seconds without a beat after which a holder is dead: several beats, and a writer that waited for others."""
log = logging.getLogger("excise.store")


class Taken(ConfigError):
    """Somebody else holds the lease, and lives.

    Attributes
    ----------
    by : name of the machine where the holder is, or "some machine"
    """

    def __init__(self, name: str, by: str) -> None:
        super().__init__(f"'{name}' is held by a process on {by}, which lives: one at a time")
        self.by = by


def lease_of(run: str) -> str:
    """Name of the lease under which one process at a time carries out a run."""
    return f"run {run}"


@contextmanager
def held(
    store: Store, name: str, lost: Callable[[], object] = lambda: None, beat: float = BEAT, dead: float = DEAD
) -> Iterator[Callable[[], None]]:
    """Hold the lease `name` for the length of the block. Waits when its former holder may be dead.

    What it yields asks the store whether the lease is still held, and raises `StorageError` when it is not: for a process that
    was stopped for long, and wakes up before its beating thread does.

    Parameters
    ----------
    lost : called, from another thread, when the lease was taken over or could not be kept
    beat, dead : seconds (`BEAT`, `DEAD`)

    Raises
    ------
    Taken : somebody else holds it, and lives
    StorageError : the database does not answer
    """
    holder = f"{_machine()}/{os.getpid()}/{secrets.token_hex(8)}"
    _take(store, name, holder, dead)
    ended = threading.Event()
    keeper = threading.Thread(target=_keep, args=(store, name, holder, ended, lost, beat, dead), daemon=True)
    keeper.start()

    def still_ours() -> None:
        with store.reading() as session:
            found = session.get(Lease, name)
        if found is None or found.holder != holder:
            lost()
            raise StorageError(f"'{name}' was taken over by another process while this one was stopped; it ends")

    try:
        yield still_ours
    finally:
        ended.set()
        keeper.join()
        _release(store, name, holder)


def is_held(store: Store, name: str) -> bool | None:
    """Whether whoever took a lease lives, without waiting; None when nobody has it.

    Of a holder on another machine that is believed: only its beat could tell, to whoever watches it for a while (`held`).
    """
    with store.reading() as session:
        found = session.get(Lease, name)
    return None if found is None else not _is_gone(found.holder)


def _take(store: Store, name: str, holder: str, dead: float) -> None:
    with store.reading() as session:
        before = session.get(Lease, name)
    if before is None:
        try:
            with store.engine.connect().execution_options(writes=True) as connection, connection.begin():
                connection.execute(insert(Lease).values(name=name, holder=holder, beat=0))
        except IntegrityError:
            raise Taken(name, "some machine") from None
        return None
    seen = (before.holder, before.beat)
    began = time.monotonic()
    while not _is_gone(before.holder) and time.monotonic() - began < dead:
        time.sleep(min(0.2, dead))
        with store.reading() as session:
            now = session.get(Lease, name)
        if now is None:
            return _take(store, name, holder, dead)
        if (now.holder, now.beat) != seen:
            raise Taken(name, now.holder.partition(":")[0])
    same = (Lease.name == name, Lease.holder == seen[0], Lease.beat == seen[1])
    with store.engine.connect().execution_options(writes=True) as connection, connection.begin():
        taken = connection.execute(update(Lease).where(*same).values(holder=holder, beat=0)).rowcount
    if not taken:
        raise Taken(name, "some machine")
    return None


def _machine() -> str:
    """Name this machine, or this container on it: where process ids mean what they mean here."""
    space = Path("/proc/self/ns/pid")
    return f"{socket.gethostname()}:{space.stat().st_ino if space.exists() else 0}"


def _is_gone(holder: str) -> bool:
    """Whether a holder of this machine has ended; of another machine only its beat can tell."""
    machine, process, _ = holder.split("/")
    if machine != _machine():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # it runs, as somebody else
        pass
    return False


def _keep(
    store: Store, name: str, holder: str, ended: threading.Event, lost: Callable[[], object], beat: float, dead: float
) -> None:
    """Beat until ended. Who cannot beat for as long as others wait must not believe that it still holds the lease."""
    last = time.monotonic()
    while not ended.wait(beat):
        ours = (Lease.name == name, Lease.holder == holder)
        try:
            with store.engine.connect().execution_options(writes=True) as connection, connection.begin():
                kept = connection.execute(update(Lease).where(*ours).values(beat=Lease.beat + 1)).rowcount
        except Exception as error:  # noqa: BLE001 - whatever it is, it may be over at the next beat
            log.warning("the lease '%s' could not be kept (%s)", name, type(error).__name__)
            kept = time.monotonic() - last < dead
        else:
            last = time.monotonic()
        if not kept:
            log.error("the lease '%s' was lost", name)
            lost()
            return


def _release(store: Store, name: str, holder: str) -> None:
    with store.engine.connect().execution_options(writes=True) as connection, connection.begin():
        connection.execute(delete(Lease).where(Lease.name == name, Lease.holder == holder))
