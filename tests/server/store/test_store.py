"""The store: made and brought up to date by itself, changed by one at a time, and never without a line in the audit log."""

from __future__ import annotations

import json
import multiprocessing
import threading
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, select, text

from excise.common import chain
from excise.common.errors import ConfigError, StorageError
from excise.server.store import Store, migrating, open_store
from excise.server.store.migrating import REVISIONS, migrate
from excise.server.store.tables import Site, Table, now


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


def add(store: Store, name: str, fails: Exception | None = None) -> None:
    with store.change() as change:
        change.session.add(Site(name=name, state="invited", since=now(), invite_serial="1"))
        change.log("site invited", site=name)
        if fails:
            raise fails


def names(store: Store) -> list[str]:
    with store.reading() as session:
        return list(session.scalars(select(Site.name).order_by(Site.name)))


def lines(log: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def test_the_tables_are_those_that_the_migrations_make(url: str, log: Path) -> None:
    store = open_store(url, log)
    with store.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Table.metadata) == []
    store.close()


def test_the_revisions_that_are_known_are_those_that_there_are() -> None:
    scripts = ScriptDirectory(str(Path(migrating.__file__).with_name("migrations")))
    assert [script.revision for script in scripts.walk_revisions()][::-1] == list(REVISIONS)


def test_a_change_stands_in_the_log_and_one_that_fails_in_neither(url: str, log: Path) -> None:
    store = open_store(url, log)
    add(store, "a")
    with pytest.raises(RuntimeError):
        add(store, "b", RuntimeError())
    assert names(store) == ["a"]
    assert [line["event"] for line in lines(log)] == ["site invited"]
    assert store.log_faults() == []
    store.close()


def test_a_change_that_tells_nothing_leaves_the_log(url: str, log: Path) -> None:
    store = open_store(url, log)
    with store.change():
        pass
    assert not log.exists()
    store.close()


def test_a_writer_that_was_killed_before_its_change_was_made_is_told(url: str, log: Path) -> None:
    store = open_store(url, log)
    add(store, "a")
    lost = chain.append(log, "site invited", site="b")  # and then the machine lost its power
    assert store.log_faults() == []
    add(store, "c")
    assert names(store) == ["a", "c"]
    assert lines(log)[-1]["interrupted"] == lost
    assert store.log_faults() == []
    store.close()


@pytest.mark.parametrize("what", ["cut", "gone", "altered", "swapped", "added", "emptied"])
def test_a_log_that_is_not_the_stores_is_found_and_nothing_is_changed(url: str, log: Path, what: str) -> None:
    store = open_store(url, log)
    for name in "abcd":
        add(store, name)
    whole = log.read_text().splitlines(keepends=True)
    if what == "cut":
        log.write_text("".join(whole[:-1]))
    elif what == "gone":
        log.write_text("".join(whole[:1] + whole[2:]))
    elif what == "altered":
        log.write_text("".join(whole).replace('"site": "b"', '"site": "x"'))
    elif what == "swapped":
        log.write_text("".join([whole[0], whole[2], whole[1], whole[3]]))
    elif what == "added":
        for _ in range(2):
            chain.append(log, "something")
    else:
        log.write_text("")
    assert store.log_faults()
    if what in ("cut", "added", "emptied"):  # what is wrong in the middle only the whole log tells: audit verify
        with pytest.raises(StorageError, match="is not the log that this store knows"):
            add(store, "e")
        assert names(store) == ["a", "b", "c", "d"]
    store.close()


def test_writers_wait_for_each_other(url: str, log: Path) -> None:
    store = open_store(url, log)
    threads = [threading.Thread(target=add, args=(store, f"{i:02}")) for i in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(names(store)) == len(lines(log)) == 24
    assert store.log_faults() == []
    store.close()


def test_processes_that_open_an_empty_store_at_once_make_it_once(url: str, log: Path) -> None:
    context = multiprocessing.get_context("spawn")
    with context.Pool(3) as pool:
        pool.starmap(_open_and_add, [(url, log, name) for name in "abc"])
    store = open_store(url, log)
    assert names(store) == ["a", "b", "c"]
    assert store.log_faults() == []
    store.close()


def _open_and_add(url: str, log: Path, name: str) -> None:
    store = open_store(url, log)
    add(store, name)
    store.close()


def test_an_older_store_is_brought_up_to_date_and_kept_beside(url: str, log: Path) -> None:
    open_at(url, REVISIONS[0])
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO sites (name, state, since, invite_serial, node_key, signing_key, fingerprint, certificate, "
                "release, told_at) VALUES ('old', 'admitted', '2026-01-01', '1', '', '', '', '', '', '')"
            )
        )
    engine.dispose()
    store = open_store(url, log)
    assert names(store) == ["old"]
    add(store, "new")
    with store.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Table.metadata) == []
    store.close()
    if url.startswith("sqlite"):
        kept = create_engine(f"{url}.{REVISIONS[0]}")
        with kept.connect() as connection:
            assert connection.execute(text("SELECT name FROM sites")).scalars().all() == ["old"]
        kept.dispose()


def open_at(url: str, revision: str) -> None:
    from sqlalchemy.engine import make_url

    from excise.server.store.opening import _engine

    engine = _engine(make_url(url))
    migrate(engine, revision)
    engine.dispose()


def test_a_store_of_a_newer_release_is_refused_and_left_alone(url: str, log: Path) -> None:
    open_store(url, log).close()
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0099'"))
        connection.execute(text("UPDATE meta SET value = '9.1.0' WHERE name = 'release'"))
    with pytest.raises(ConfigError, match=rf"of revision 0099, made by excise 9\.1\.0.*up to {REVISIONS[-1]}"):
        open_store(url, log)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar() == "0099"
    engine.dispose()


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "cannot be used"),
        ("nonsense", "cannot be used"),
        ("mysql+nothing://x/y", "cannot be used"),
        ("postgresql+psycopg://nobody@127.0.0.1:1/none", "cannot be opened"),
        ("sqlite:////proc/none/store.db", "cannot write"),
    ],
)
def test_a_url_that_cannot_be_used_is_told(log: Path, url: str, reason: str) -> None:
    with pytest.raises((ConfigError, StorageError), match=reason):
        open_store(url, log)


def test_a_store_that_was_taken_away_is_not_made_anew(tmp_path: Path, log: Path) -> None:
    """It would be empty, fit no log, and let nobody sign in: who is told so would look in the wrong place."""
    url = f"sqlite:///{tmp_path / 'taken.db'}"
    store = open_store(url, log)
    add(store, "a")
    store.close()
    (tmp_path / "taken.db").unlink()
    with pytest.raises(ConfigError, match=r"no store at .*taken\.db, though .* tells of one"):
        open_store(url, log)
    assert not (tmp_path / "taken.db").exists()


def test_a_file_that_is_no_store_is_told(tmp_path: Path, log: Path) -> None:
    (tmp_path / "store.db").write_bytes(b"no database at all" * 1000)
    with pytest.raises(ConfigError, match="not a database"):
        open_store(f"sqlite:///{tmp_path / 'store.db'}", log)


def test_a_log_that_cannot_be_written_leaves_the_store_as_it_was(url: str, log: Path) -> None:
    store = open_store(url, log)
    log.mkdir()
    with pytest.raises(StorageError):
        add(store, "a")
    assert names(store) == []
    store.close()
