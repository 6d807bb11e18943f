"""The supervisor: what dies or hangs is started again, a pause is a pause, and nothing is left behind at the end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from excise.client.config import read_site_config
from excise.client.deploy import supervisor as supervising
from excise.client.deploy.node import allowed, bundles_of
from excise.client.deploy.supervisor import Status, Supervisor, read_status
from excise.common.errors import ConfigError
from tests.dicoms import write_site_toml

STAYS = [sys.executable, "-c", "import time; time.sleep(60)"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)",
]
ENDS = [sys.executable, "-c", "raise SystemExit(7)"]


@pytest.fixture
def supervisor(tmp_path: Path) -> Supervisor:
    site = write_site_toml(tmp_path, coordinator={"address": "localhost:1", "ca": "ca.crt"})
    said: list[str] = []
    made = Supervisor(site, read_site_config(site), said.append)
    made.said = said  # type: ignore[attr-defined]
    return made


def run_until(supervisor: Supervisor, true: Callable[[], bool], seconds: float = 20) -> None:
    """Run it until something holds, then stop it as systemd would."""
    held: list[bool] = []

    def watch() -> None:
        ends = time.monotonic() + seconds
        while not true() and time.monotonic() < ends:
            time.sleep(0.02)
        held.append(true())
        os.kill(os.getpid(), signal.SIGTERM)

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    thread = threading.Thread(target=watch)
    thread.start()
    try:
        supervisor.run(pause=0.02)
    finally:
        thread.join()
        for number, handler in before.items():
            signal.signal(number, handler)
    assert held == [True], supervisor.reason


def gone(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return True
    return False


def test_what_runs_is_told_and_ended_with_the_supervisor(supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "commands", lambda *_: [STAYS, STAYS])
    seen: list[Status] = []
    ids: list[int] = []

    def runs() -> bool:
        status = read_status(supervisor.config)
        if status and status.running:
            seen.append(status)
            ids[:] = [process.pid for process in supervisor.processes]
        return bool(seen)

    run_until(supervisor, runs)
    assert (seen[0].restarts, seen[0].paused, seen[0].supervisor) == (0, False, os.getpid())
    assert len(ids) == 2
    assert all(map(gone, ids))
    ended = read_status(supervisor.config)
    assert ended is not None
    assert (ended.running, ended.reason) == (False, "stopped")
    assert (supervisor.folder / "secret").stat().st_mode & 0o777 == 0o600
    assert (supervisor.folder / "flower.log").stat().st_mode & 0o777 == 0o600


def test_what_dies_is_started_again_each_time_later(supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "commands", lambda *_: [ENDS, STAYS])
    monkeypatch.setattr(supervising, "LONGEST", 0.05)
    run_until(supervisor, lambda: supervisor.restarts >= 3)
    assert supervisor.said[1] == "the node ended with code 7; starting again in 0 s"  # type: ignore[attr-defined]
    monkeypatch.setattr(supervisor, "commands", lambda *_: [STAYS, ENDS])
    supervisor.stopping = False
    run_until(supervisor, lambda: supervisor.reason == "the process that runs its apps ended with code 7")


def test_a_node_that_hangs_is_started_again(supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "commands", lambda *_: [STAYS, STAYS])
    monkeypatch.setattr(supervising, "HANGS", 0.2)
    run_until(supervisor, lambda: supervisor.restarts >= 1)
    assert any("no sign of life" in line for line in supervisor.said)  # type: ignore[attr-defined]


def test_a_process_that_will_not_end_is_killed(supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "commands", lambda *_: [STUBBORN, STAYS])
    monkeypatch.setattr(supervising, "PATIENCE", 0.2)
    log = supervisor.folder / "flower.log"
    ids: list[int] = []

    def ready() -> bool:
        ids[:] = [process.pid for process in supervisor.processes] or ids
        return bool(ids) and log.exists() and "ready" in log.read_text()

    run_until(supervisor, ready)
    assert ids
    assert all(map(gone, ids))


def test_a_pause_ends_everything_and_goes_on_afterwards(supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "commands", lambda *_: [STAYS, STAYS])
    steps: list[str] = []

    def through() -> bool:
        running = bool(supervisor.processes)
        if not steps and running:
            supervisor.paused.touch()
            steps.append("paused")
        elif steps == ["paused"] and not running:
            supervisor.paused.unlink()
            steps.append("goes on")
        return steps == ["paused", "goes on"] and running

    run_until(supervisor, through)
    assert supervisor.restarts == 0


def test_of_a_supervisor_that_was_killed_nothing_is_told_to_run(supervisor: Supervisor) -> None:
    assert read_status(supervisor.config) is None
    supervisor.folder.mkdir(parents=True)
    told = Status(running=True, paused=False, since=0.0, restarts=0, supervisor=2**22 + 1, reason="")
    (supervisor.folder / "status.json").write_text(json.dumps(vars(told)))
    found = read_status(supervisor.config)
    assert found is not None
    assert (found.running, found.reason) == (False, "the supervisor is gone")


def test_a_site_that_has_not_joined_cannot_be_supervised(tmp_path: Path) -> None:
    site = write_site_toml(tmp_path)
    with pytest.raises(ConfigError, match="excise site join"):
        Supervisor(site, read_site_config(site), print)


def test_a_site_is_kept_up_by_one_process(supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "commands", lambda *_: [STAYS, STAYS])
    second = Supervisor(supervisor.site_toml, supervisor.config, print)
    refused: list[str] = []

    def both() -> bool:
        if supervisor.processes and not refused:
            with pytest.raises(ConfigError, match="is up already") as error:
                second.run()
            refused.append(str(error.value))
        return bool(refused)

    run_until(supervisor, both)
    supervisor.stopping = False
    run_until(supervisor, lambda: bool(supervisor.processes))  # and again when it has ended


KILLED = """
import sys
from pathlib import Path
from excise.client.config import read_site_config
from excise.client.deploy.supervisor import Supervisor

stays = [sys.executable, "-c", "import time; time.sleep(60)"]
made = Supervisor(Path(sys.argv[1]), read_site_config(Path(sys.argv[1])), lambda _: None)
made.commands = lambda *_: [stays, stays]
start = made._start


def started():
    start()
    print(*(process.pid for process in made.processes), flush=True)


made._start = started
made.run()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
def test_of_a_killed_supervisor_nothing_is_left(supervisor: Supervisor) -> None:
    command = [sys.executable, "-c", KILLED, str(supervisor.site_toml)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        ids = list(map(int, process.stdout.readline().split()))
        assert len(ids) == 2
        assert not any(map(gone, ids))
        process.kill()
    ends = time.monotonic() + 20
    while not all(map(gone, ids)) and time.monotonic() < ends:
        time.sleep(0.02)
    assert all(map(gone, ids))


def test_the_bundles_that_may_run_are_those_of_site_toml_now(tmp_path: Path) -> None:
    site = write_site_toml(tmp_path, policy={"bundles": ["a"]})
    assert bundles_of(site) == {"a"}
    write_site_toml(tmp_path, policy={"bundles": ["b", "c"]})
    assert bundles_of(site) == {"b", "c"}
    site.write_text("no TOML [")
    assert bundles_of(site) == frozenset()


def test_only_a_bundle_on_the_list_that_is_what_it_says_may_run() -> None:
    digest = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"  # of b"hello"
    assert allowed(b"hello", digest, frozenset({digest}))
    assert not allowed(b"hello", digest, frozenset())
    assert not allowed(b"hello!", digest, frozenset({digest}))
    assert not allowed(b"hello", "0" * 64, frozenset({digest}))
