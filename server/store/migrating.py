"""Bringing a store's tables up to date, with Alembic; a store of a newer release is refused.

The usual case, that nothing has to be done, is one query and does without Alembic.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from sqlalchemy import Engine, inspect, text
from sqlalchemy.engine import Connection

from excise import __version__
from excise.common.errors import ConfigError

REVISIONS = ("0001", "0002", "0003")
"""Every revision of the tables, oldest first, as the files in ``migrations/versions`` name them."""
LOCK = 0x65786369
"""PostgreSQL's advisory lock under which one process migrates; any number that is always the same."""


def migrate(engine: Engine, to: str = REVISIONS[-1]) -> None:
    """Make the tables, or bring them to revision `to`. An SQLite file is copied first, to ``<file>.<revision>``.

    Raises
    ------
    ConfigError : the store was made by a newer release; nothing was changed
    """
    with engine.connect() as connection:
        found = _revision(connection)
        if found == to:
            return
        if found is not None and found not in REVISIONS:
            raise ConfigError(
                f"the store is of revision {found}, made by excise {_release(connection)}; this is {__version__}, which knows "
                f"revisions up to {REVISIONS[-1]}. Install that release, or a newer one; nothing was changed"
            )
    if found is not None and engine.url.get_backend_name() == "sqlite" and engine.url.database:
        file = Path(engine.url.database)
        with engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        shutil.copy2(file, file.with_name(f"{file.name}.{found}"))
    with engine.connect().execution_options(writes=True) as connection, connection.begin():
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
        if _revision(connection) != to:  # another process may have done it meanwhile
            _upgrade(connection, to)


def _upgrade(connection: Connection, to: str) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, to)
    connection.execute(text("UPDATE meta SET value = :release WHERE name = 'release'"), {"release": __version__})


def _revision(connection: Connection) -> str | None:
    """The revision of the tables; None before there are any."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def _release(connection: Connection) -> str:
    """The release that last changed the tables, as far as it can be told."""
    if not inspect(connection).has_table("meta"):
        return "of another kind"
    return connection.execute(text("SELECT value FROM meta WHERE name = 'release'")).scalar() or "of another kind"
