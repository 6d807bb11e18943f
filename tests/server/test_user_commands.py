"""`excise server user`: passwords come hidden or by standard input, and go nowhere."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from excise.cli import app
from excise.server import users
from excise.server.roles import Role
from excise.server.users import check_password
from tests.coordinators import Network, network

SECRET, OTHER = "a canary of 22 letters", "another canary, longer"
Excise = Callable[..., tuple[int, str, str]]


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Network]:
    monkeypatch.setattr(users, "MEMORY", 1024)
    with network(tmp_path) as one:
        monkeypatch.setenv("EXCISE_SERVER", str(one.toml))
        yield one


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    return lambda content: monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_a_user_from_first_to_last(made: Network, excise: Excise, typed: Callable[[bytes], None]) -> None:
    told = []
    typed(f"{SECRET}\r\nanother line\n".encode())
    told.append(excise("server", "user", "add", "ada", "--role", "coordinator", "--by", "root", "--password-stdin"))
    found = check_password(made.store, "ada", SECRET)
    assert found is not None
    assert found.role is Role.COORDINATOR
    told.append(excise("server", "user", "list", "--json"))
    assert json.loads(told[-1][1]) == [{"name": "ada", "role": "coordinator", "since": found.since}]
    told.append(excise("server", "user", "list"))
    assert "ada" in told[-1][1]
    typed(OTHER.encode())
    told.append(excise("server", "user", "password", "ada", "--by", "root", "--password-stdin"))
    assert check_password(made.store, "ada", OTHER)
    told.append(excise("server", "user", "remove", "ada", "--by", "root"))
    assert users.users(made.store) == []
    assert [code for code, _, _ in told] == [0] * 5
    assert "canary" not in str(told) + (made.folder / "audit.jsonl").read_text()


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("ada", b"", "too short"),
        ("ada", b"short\n", "too short"),
        ("ada", b"x" * 1025 + b"\n", "too long"),
        ("ada", b"a canary \xff of 22 letters\n", "not UTF-8"),
        ("a b", SECRET.encode(), "no name of a user"),
    ],
)
def test_what_cannot_be_used_is_told_and_adds_nobody(
    made: Network, excise: Excise, typed: Callable[[bytes], None], name: str, content: bytes, reason: str
) -> None:
    typed(content)
    code, _, error = excise("server", "user", "add", name, "--role", "viewer", "--by", "root", "--password-stdin")
    assert code == 2
    assert reason in error
    assert "canary" not in error
    assert users.users(made.store) == []


def test_a_password_that_cannot_be_used_is_asked_for_again_before_it_is_typed_twice(made: Network) -> None:
    typed = f"1234\n{SECRET}\n{SECRET}\n"
    told = CliRunner().invoke(app, ["server", "user", "add", "ada", "--role", "viewer", "--by", "root"], input=typed)
    assert told.exit_code == 0, told.output
    assert told.output.count("too short") == 1
    assert "canary" not in told.output
    assert check_password(made.store, "ada", SECRET)


def test_a_name_that_is_taken_is_told_before_a_password_is_asked_for(made: Network) -> None:
    users.add(made.store, "ada", Role.VIEWER, SECRET, "root")
    told = CliRunner().invoke(app, ["server", "user", "add", "Ada", "--role", "viewer", "--by", "root"], input="")
    assert "there is a user 'ada' already" in str(told.exception)
    assert "Password" not in told.output


def test_who_is_not_there_and_a_role_that_is_none(made: Network, excise: Excise) -> None:
    code, _, error = excise("server", "user", "remove", "ada", "--by", "root")
    assert (code, "no user 'ada'" in error) == (2, True)
    assert excise("server", "user", "add", "ada", "--role", "owner", "--by", "root")[0] == 2


def test_the_password_is_asked_for_twice_and_not_shown(made: Network) -> None:
    arguments = ["server", "user", "add", "ada", "--role", "viewer", "--by", "root"]
    runner: Any = CliRunner()
    done = runner.invoke(app, arguments, input=f"{SECRET}\nsomething else than that\n{SECRET}\n{SECRET}\n")
    assert done.exit_code == 0
    assert "do not match" in done.output
    assert "canary" not in done.output
    assert check_password(made.store, "ada", SECRET)
