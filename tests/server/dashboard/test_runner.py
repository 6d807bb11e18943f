"""Runs that are started from the dashboard: own files of each, a second start, and what is not known."""

from __future__ import annotations

import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from excise.common.errors import ConfigError
from excise.server.config import ServerConfig
from excise.server.dashboard import runner
from excise.server.dashboard.runner import Runner

COMMAND = """#!/bin/sh
while [ ! -e "{go}" ]; do sleep 0.05; done
for argument; do
    if [ "$before" = --settings ]; then cat "$argument"; fi
    before=$argument
done
echo "run 'mr7': started"
"""
"""In place of our own: it waits until it may, and then tells its settings."""


@pytest.fixture
def go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that lets every command go on."""
    command, file = tmp_path / "command", tmp_path / "go"
    command.write_text(COMMAND.format(go=file))
    command.chmod(0o700)
    monkeypatch.setattr(runner, "sys", SimpleNamespace(executable=str(command)))
    return file


def of(folder: Path) -> Runner:
    return Runner(folder / "server.toml", ServerConfig.model_construct(state=folder / "state"))


def begun(start: Callable[[], str], answers: list[str]) -> threading.Thread:
    thread = threading.Thread(target=lambda: answers.append(start()))
    thread.start()
    return thread


def files(folder: Path, ends: str, number: int) -> list[Path]:
    """So many files of starts, once they are there."""
    until = time.monotonic() + 20
    while len(found := sorted((folder / "state" / "dashboard").glob(f"*{ends}"))) < number:
        assert time.monotonic() < until
        time.sleep(0.02)
    assert len(found) == number
    return found


def test_two_dashboards_that_start_the_same_request_share_no_file(tmp_path: Path, go: Path) -> None:
    answers = list[str]()
    threads = [
        begun(lambda one=one, text=text: one.start(["mr7"], "ada", 0, text), answers)  # type: ignore[misc]
        for one, text in ((of(tmp_path), "# the first"), (of(tmp_path), "# the other"))
    ]
    files(tmp_path, ".log", 2)
    go.touch()
    for thread in threads:
        thread.join(20)
    assert answers == ["", ""]
    logs = files(tmp_path, ".log", 2)
    assert sorted(log.read_text() for log in logs) == [f"# the {name}run 'mr7': started\n" for name in ("first", "other")]
    assert {stat.S_IMODE(file.stat().st_mode) for file in (*logs, *files(tmp_path, ".toml", 2))} == {0o600}


def test_what_is_just_being_started_is_not_started_again(tmp_path: Path, go: Path) -> None:
    one, answers = of(tmp_path), list[str]()
    thread = begun(lambda: one.start(["mr7", "mr1"], "ada", 0, ""), answers)
    files(tmp_path, ".log", 1)
    for again in (lambda: one.start(["mr1"], "emmy", 0, ""), lambda: one.resume("mr7-and-mr1", ["mr1", "mr7"], "emmy")):
        with pytest.raises(ConfigError, match="'mr1' is just being started, or resumed"):
            again()
    go.touch()
    thread.join(20)
    assert (answers, len(files(tmp_path, ".log", 1))) == ([""], 1)
    assert one.resume("mr7-and-mr1", ["mr1", "mr7"], "emmy") == ""


def test_many_long_names_make_no_name_too_long(tmp_path: Path, go: Path) -> None:
    go.touch()
    assert of(tmp_path).start([f"{'scanner-' * 7}{number}" for number in range(60)], "ada", 0, "# none") == ""


def test_what_gives_no_sign_is_not_told_as_begun(tmp_path: Path, go: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "PATIENCE", 0.3)
    told = of(tmp_path).start(["mr7"], "ada", 0, "")
    go.touch()
    (log,) = files(tmp_path, ".log", 1)
    assert ("not known yet" in told, f"dashboard/{log.name}" in told, str(tmp_path) in told) == (True, True, False)
