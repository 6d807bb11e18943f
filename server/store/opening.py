"""Opening a store, reading it, and changing it so that each change stands in the audit log.

Every change goes through `Store.change`: it holds the store's only writer's place, appends what is done to the hash-chained
log, and commits both the change and the hash of the log's last line. So the store tells of a log that was cut short.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, event, select
from sqlalchemy.engine import URL, Connection, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, OperationalError
from sqlalchemy.orm import Session

from excise.common import chain
from excise.common.errors import ConfigError, DataError, StorageError
from excise.common.files import storage_errors
from excise.server.store.migrating import migrate
from excise.server.store.tables import Meta

HEAD = "audit_head"
"""Under this name `meta` keeps the hash of the audit log's last line."""
WAIT = 30
"""Seconds that a writer waits for another's change: each takes milliseconds."""


class Change:
    """A change that is being made: a session, and what the log will tell of it."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.told: dict[str, Any] = {}

    def log(self, happened: str, **details: Any) -> None:
        """Tell what is done: once, in one line. A change that tells nothing changed nothing."""
        assert not self.told, f"a change is one line: {self.told}, then {happened}"
        self.told = {"event": happened, **details}


class Store:
    """An open store. Threads and processes may use it at once."""

    def __init__(self, engine: Engine, log: Path) -> None:
        self.engine, self.log = engine, log

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A session that sees one state of the store. What it returns stays readable afterwards.

        Raises
        ------
        StorageError : the database does not answer
        """
        with _told(), Session(self.engine, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def change(self) -> Iterator[Change]:
        """The only change that is made now; done when the block ends, undone when it raises.

        Raises
        ------
        StorageError : the database or the log cannot be written
        """
        with self._writing() as (session, head):
            made = Change(session)
            last, before = chain.last(self.log)
            if head.value not in (last, before):
                raise StorageError(
                    f"{self.log} is not the log that this store knows: excise server audit verify tells more. Put back "
                    "the one that belongs to it; nothing is changed without it"
                )
            yield made
            if made.told:
                session.flush()  # what the database refuses is refused before it is told
                # A line that the store does not know: its writer was ended before the change that it tells of was made.
                ended = {"interrupted": last} if last != head.value else {}
                head.value = chain.append(self.log, **made.told, **ended)

    @contextmanager
    def _writing(self) -> Iterator[tuple[Session, Meta]]:
        """The only writer's place: a session in it, and the hash of the log's last line."""
        with (
            _told(),
            self.engine.connect().execution_options(writes=True) as connection,
            Session(connection, expire_on_commit=False) as session,
            session.begin(),
        ):
            yield session, session.execute(select(Meta).where(Meta.name == HEAD).with_for_update()).scalar_one()

    def log_faults(self) -> list[chain.Fault]:
        """What is wrong with the audit log, its end included.

        Raises
        ------
        StorageError : it cannot be read
        """
        with self._writing() as (_, head):  # nobody writes meanwhile: a line half written is no fault
            return chain.faults(self.log, head.value)

    def seen_faults(self) -> list[chain.Fault]:
        """As `log_faults`, while others may write: for whoever only looks, and may look again.

        Raises
        ------
        StorageError : as `log_faults`
        """
        with self.reading() as session:
            head = session.get_one(Meta, HEAD).value
        return [fault for fault in chain.faults(self.log, head) if fault.reason != chain.NOT_WHOLE]

    def check_log(self) -> None:
        """Check every line of the audit log, before what is grave; a change compares its end alone.

        A log that was never begun passes, and one whose last line is not whole: its writer was ended, the next cuts it off.

        Raises
        ------
        DataError : a line was altered, removed, added or moved, or the log was taken away
        StorageError : it cannot be read
        """
        if not self.log.exists():
            with self.reading() as session:
                if session.get_one(Meta, HEAD).value == chain.BEGIN:
                    return
            raise DataError(f"no log at {self.log}: it was taken away. Put it back")
        refuse_faults(self.log, [fault for fault in self.log_faults() if fault.reason != chain.NOT_WHOLE])

    def unmade(self) -> bool:
        """Whether the log's last line tells of a change that the store does not know.

        Its writer was ended before the change was made; or somebody added the line.
        """
        with self.reading() as session:
            return chain.last(self.log)[0] != session.get_one(Meta, HEAD).value

    def close(self) -> None:
        """Let go of the database."""
        self.engine.dispose()


def open_store(url: str, log: Path) -> Store:
    """Open the store at an SQLAlchemy `url`, made or brought up to date if need be.

    Parameters
    ----------
    log : the audit log that tells of every change

    Raises
    ------
    ConfigError : the URL cannot be used, the database does not answer, or the store is of a newer release or was taken away
    StorageError : it cannot be made
    """
    try:
        parsed = make_url(url)
        engine = _engine(parsed)
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError) as error:
        raise ConfigError(
            f"the store's URL cannot be used ({error}); expected sqlite:///file or postgresql+psycopg://user@host/name "
            "(for that: pip install 'excise[postgres]')"
        ) from None
    if _taken_away(parsed, log):
        raise ConfigError(f"no store at {parsed.database}, though {log} tells of one: put it back, or both from a backup")
    try:
        migrate(engine)
    except DBAPIError as error:  # its text names the database's host and user, never the password
        engine.dispose()
        raise ConfigError(f"the store cannot be opened: {error.orig}. Is it the right one, and does it run?") from None
    except ConfigError:
        engine.dispose()
        raise
    return Store(engine, log)


def refuse_faults(log: Path, found: Sequence[chain.Fault]) -> None:
    """Say what is wrong with an audit log.

    Raises
    ------
    DataError : something is
    """
    if found:
        listed = "; ".join(f"line {fault.line}: {fault.reason}" for fault in found)
        raise DataError(f"{log} is not as it was written: {listed}")


def _taken_away(url: URL, log: Path) -> bool:
    """Whether a log tells of a store whose file is not there: another in its place would know nothing, and fit no log."""
    if url.get_backend_name() != "sqlite" or not url.database or Path(url.database).exists():
        return False
    return log.exists() and log.stat().st_size > 0


def _engine(url: URL) -> Engine:
    if url.get_backend_name() != "sqlite":
        return create_engine(url, pool_pre_ping=True)
    if url.database:
        with storage_errors(Path(url.database)):
            Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url, connect_args={"timeout": WAIT})

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _: object) -> None:
        connection.isolation_level = None  # Python's driver would begin transactions by itself, and not before reading
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # Who reads first and writes later could find that another wrote in between: writers wait at the beginning.
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


@contextmanager
def _told() -> Iterator[None]:
    """Turn the database's own errors into ours; those of a wrong statement are ours to mend, and pass."""
    try:
        yield
    except OperationalError as error:
        raise StorageError(f"the store cannot be used: {error.orig}. Nothing of the change was made.") from error
    except DBAPIError as error:
        if error.connection_invalidated:
            raise StorageError("the store's connection was lost. Nothing of the change was made; try again.") from error
        raise
