"""Users: added, given another password and removed, each in one line of the log; and nothing of a password anywhere."""

from __future__ import annotations

import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import select

from excise.common.errors import ConfigError, ExciseError
from excise.server import users as module
from excise.server.roles import Role, User
from excise.server.store import Store, open_store
from excise.server.store.tables import Account
from excise.server.users import LONGEST, SHORTEST, add, check_password, remove, set_password, user, users
from tests.server.store.test_store import lines

COST = module.MEMORY, module.PASSES
SECRET, OTHER = "a canary of 22 letters", "another canary, longer"


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MEMORY", 1024)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


@pytest.fixture
def store(url: str, log: Path) -> Iterator[Store]:
    made = open_store(url, log)
    yield made
    made.close()


def test_a_user_signs_in_with_its_password_alone(store: Store) -> None:
    add(store, "ada@example.org", Role.COORDINATOR, SECRET, "root")
    found = check_password(store, "ada@example.org", SECRET)
    assert found == user(store, "ada@example.org") == users(store)[0]
    assert (found.name, found.role) == ("ada@example.org", Role.COORDINATOR)
    for name, password in (
        ("ada@example.org", OTHER),
        ("ada@example.org", SECRET + " "),
        ("ada@example.org", SECRET[:-1]),
        ("ada@example.org", ""),
        ("ada@example.org", SECRET + "x" * LONGEST),
        ("Ada@example.org", SECRET),
        ("nobody", SECRET),
        ("", SECRET),
        ("nul\0", SECRET),
        ("ada@example.org\n", SECRET),
        ("x" * 100_000, SECRET),
    ):
        assert check_password(store, name, password) is None


def test_a_password_can_be_changed_and_what_was_before_is_told_apart(store: Store) -> None:
    add(store, "ada", Role.VIEWER, SECRET, "root")
    before = user(store, "ada")
    time.sleep(0.002)  # times are told in milliseconds
    set_password(store, "ada", OTHER, "root")
    after = user(store, "ada")
    assert before is not None
    assert after is not None
    assert after.since > before.since
    assert check_password(store, "ada", SECRET) is None
    assert check_password(store, "ada", OTHER) == after


def test_who_is_removed_signs_in_no_more(store: Store) -> None:
    for name in ("eve", "ada"):
        add(store, name, Role.VIEWER, SECRET, "root")
    remove(store, "ada", "root")
    assert check_password(store, "ada", SECRET) is None
    assert (user(store, "ada"), [one.name for one in users(store)]) == (None, ["eve"])
    add(store, "ada", Role.COORDINATOR, OTHER, "root")
    assert check_password(store, "ada", SECRET) is None


def test_every_change_is_one_line_with_who_made_it(store: Store, log: Path) -> None:
    add(store, "ada", Role.COORDINATOR, SECRET, "grace")
    set_password(store, "ada", OTHER, "ada")
    check_password(store, "ada", SECRET)
    remove(store, "ada", "hopper")
    told = [(line["event"], line["user"], line["by"]) for line in lines(log)]
    assert told == [
        ("user added", "ada", "grace"),
        ("user has a new password", "ada", "ada"),
        ("user removed", "ada", "hopper"),
    ]
    assert store.log_faults() == []


@pytest.mark.parametrize(
    ("name", "password", "reason"),
    [
        ("", SECRET, "no name of a user"),
        ("with space", SECRET, "no name of a user"),
        ("<script>", SECRET, "no name of a user"),
        ("ünicode", SECRET, "no name of a user"),
        ("line\n", SECRET, "no name of a user"),
        ("x" * 65, SECRET, "no name of a user"),
        ("ada", "x" * (SHORTEST - 1), "too short: at least 12"),
        ("ada", "x" * (LONGEST + 1), "too long: at most 1024"),
        ("ada", "ü" * (LONGEST // 2 + 1), "too long: at most 1024"),
        ("ada.lovelace", "ada.Lovelace", "the user's name"),
        ("taken", SECRET, "there is a user 'taken' already"),
        ("TAKEN", SECRET, "there is a user 'taken' already"),
    ],
)
def test_what_cannot_be_added_is_told(store: Store, log: Path, name: str, password: str, reason: str) -> None:
    add(store, "taken", Role.VIEWER, SECRET, "root")
    with pytest.raises(ConfigError, match=reason):
        add(store, name, Role.VIEWER, password, "root")
    assert [one.name for one in users(store)] == ["taken"]
    assert len(lines(log)) == 1


@pytest.mark.parametrize(
    "password", ["x" * SHORTEST, "x" * LONGEST, "zwölf Zeichen", "\ud800 is half a character", "a\0b\0c\0d\0e\0f\0"]
)
def test_passwords_of_every_kind(store: Store, password: str) -> None:
    add(store, "ada", Role.VIEWER, password, "root")
    assert check_password(store, "ada", password)
    for wrong in (password[:-1], password + "x"):
        assert check_password(store, "ada", wrong) is None


def test_a_letter_is_the_same_however_it_is_composed(store: Store) -> None:
    add(store, "ada", Role.VIEWER, "zw\u00f6lf Zeichen", "root")
    assert check_password(store, "ada", "zwo\u0308lf Zeichen")


@pytest.mark.parametrize("change", [remove, lambda store, name, by: set_password(store, name, SECRET, by)])
def test_who_is_not_there_cannot_be_changed(store: Store, log: Path, change: Callable[[Store, str, str], None]) -> None:
    with pytest.raises(ConfigError, match="no user 'ada'; none was added yet"):
        change(store, "ada", "root")
    add(store, "adele", Role.VIEWER, SECRET, "root")
    for name, hint in (("adela", "did you mean 'adele'"), ("nul\0", "known: adele")):
        with pytest.raises(ConfigError, match=hint):
            change(store, name, "root")
    assert len(lines(log)) == 1


def test_nothing_of_a_password_is_told(store: Store, log: Path) -> None:
    add(store, "ada", Role.VIEWER, SECRET, "root")
    set_password(store, "ada", OTHER, "root")
    with store.reading() as session:
        row = session.scalars(select(Account)).one()
        kept, text = row.password, f"{row!r} {user(store, 'ada')!r}"
    assert kept.startswith("$argon2id$v=19$m=1024,t=3,p=1$")
    found = [log.read_text(), text]
    for bad in ("\ud800" + SECRET * 100, SECRET + "\ud800" * LONGEST, SECRET[: SHORTEST - 1]):
        for refused in (
            lambda bad=bad: add(store, "eve", Role.VIEWER, bad, "x"),
            lambda bad=bad: set_password(store, "ada", bad, "x"),
        ):
            with pytest.raises(ExciseError) as error:
                refused()
            found.append("".join(traceback.format_exception(error.value)))
    with pytest.raises(ConfigError) as error:
        add(store, "ada", Role.VIEWER, SECRET, "root")
    found.append("".join(traceback.format_exception(error.value)))
    for told in found:
        assert "canary" not in told
        assert kept[-20:] not in told
        assert "argon2" not in told


def test_the_cost_is_no_less_than_owasps() -> None:
    memory, passes = COST  # Password Storage Cheat Sheet: 46 MiB with one pass, or as much work with less memory
    assert memory >= 46 * 1024
    assert passes >= 1


def test_a_user_that_there_is_not_takes_as_long(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MEMORY", 8 * 1024)
    add(store, "ada", Role.VIEWER, SECRET, "root")

    def times(name: str, password: str) -> float:
        taken = []
        for _ in range(5):
            began = time.thread_time()
            assert check_password(store, name, password) is None
            taken.append(time.thread_time() - began)
        return statistics.median(taken)

    wrong = times("ada", OTHER)
    for name, password in (("nobody", OTHER), ("no name\0", OTHER), ("ada", "x" * 10_000)):
        assert 0.5 < times(name, password) / wrong < 2
    assert isinstance(check_password(store, "ada", SECRET), User)
