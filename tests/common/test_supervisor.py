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

from excise.common import supervisor as supervising
from excise.common.errors import ConfigError, StorageError
from excise.common.supervisor import Status, Supervisor, Unit, read_status

STAYS = [sys.executable, "-c", "import time; time.sleep(60)"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)",
]
ENDS = [sys.executable, "-c", "raise SystemExit(7)"]


def made(folder: Path, *units: Unit, said: Callable[[str], None] = lambda _: None) -> Supervisor:
    return Supervisor(units, folder / "state", folder / "up.lock", {}, said, folder / "paused")


def unit(*commands: list[str], name: str = "node", hangs: Callable[[], str] = lambda: "") -> Unit:
    return Unit(name, lambda: {f"{name} {i}": command for i, command in enumerate(commands)}, hangs)


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
    assert held == [True], [one.reason for one in supervisor.units]


def gone(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return True
    return False


def test_what_runs_is_told_and_ended_with_the_supervisor(tmp_path: Path) -> None:
    node = unit(STAYS, STAYS)
    supervisor = made(tmp_path, node)
    seen: list[Status] = []
    ids: list[int] = []

    def runs() -> bool:
        status = read_status(supervisor.folder)
        if status and status.units["node"].running:
            seen.append(status)
            ids[:] = [process.pid for process in node.processes.values()]
        return bool(seen)

    run_until(supervisor, runs)
    assert (seen[0].units["node"].restarts, seen[0].paused, seen[0].supervisor) == (0, False, os.getpid())
    assert len(ids) == 2
    assert all(map(gone, ids))
    ended = read_status(supervisor.folder)
    assert ended is not None
    assert (ended.units["node"].running, ended.units["node"].reason) == (False, "stopped")
    assert (supervisor.folder / "log").stat().st_mode & 0o777 == 0o600


def test_what_dies_is_started_again_each_time_later_and_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervising, "LONGEST", 0.05)
    said: list[str] = []
    dies, stays = unit(ENDS, STAYS, name="link"), unit(STAYS, name="proxy")
    run_until(made(tmp_path, dies, stays, said=said.append), lambda: dies.restarts >= 3)
    assert "link 0 ended with code 7; starting again in 0 s" in said
    assert stays.restarts == 0


def test_what_cannot_be_started_again_is_tried_until_it_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervising, "LONGEST", 0.05)
    said: list[str] = []
    starts = 0

    def commands() -> dict[str, list[str]]:
        nonlocal starts
        starts += 1
        if starts in (2, 3):
            raise StorageError("cannot write nginx.conf: No space left on device")
        return {"the proxy": ENDS if starts == 1 else STAYS, "its logs": [str(tmp_path / "none")] if starts == 4 else STAYS}

    proxy, stays = Unit("proxy", commands), unit(STAYS, name="link")
    run_until(made(tmp_path, proxy, stays, said=said.append), lambda: len(proxy.processes) == 2 and starts == 5)
    assert sum("proxy cannot be started: cannot write nginx.conf: No space left" in line for line in said) == 2
    assert sum("proxy cannot be started: [Errno 2]" in line for line in said) == 1
    assert (proxy.restarts, stays.restarts) == (4, 0)


def test_what_cannot_be_started_at_first_ends_the_supervisor(tmp_path: Path) -> None:
    def commands() -> dict[str, list[str]]:
        raise ConfigError("nginx is not installed")

    supervisor = made(tmp_path, Unit("proxy", commands))
    with pytest.raises(ConfigError, match="nginx is not installed"):
        run_until(supervisor, lambda: False, 0.1)


def test_what_hangs_is_started_again(tmp_path: Path) -> None:
    began = time.monotonic()
    node = unit(STAYS, hangs=lambda: "no sign of life" if time.monotonic() - began < 1 else "")
    run_until(made(tmp_path, node), lambda: node.restarts >= 1 and bool(node.processes))
    assert node.reason == "stopped"


def test_a_process_that_will_not_end_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervising, "PATIENCE", 0.2)
    node = unit(STUBBORN, STAYS)
    supervisor = made(tmp_path, node)
    log = supervisor.folder / "log"
    ids: list[int] = []

    def ready() -> bool:
        ids[:] = [process.pid for process in node.processes.values()] or ids
        return bool(ids) and log.exists() and "ready" in log.read_text()

    run_until(supervisor, ready)
    assert ids
    assert all(map(gone, ids))


def test_a_pause_ends_everything_and_goes_on_afterwards(tmp_path: Path) -> None:
    units = [unit(STAYS, name="a"), unit(STAYS, name="b")]
    steps: list[str] = []

    def through() -> bool:
        running = [bool(one.processes) for one in units]
        if not steps and all(running):
            (tmp_path / "paused").touch()
            steps.append("paused")
        elif steps == ["paused"] and not any(running):
            (tmp_path / "paused").unlink()
            steps.append("goes on")
        return steps == ["paused", "goes on"] and all(running)

    run_until(made(tmp_path, *units), through)
    assert [one.restarts for one in units] == [0, 0]


def test_its_files_may_be_deleted(tmp_path: Path) -> None:
    node = unit(STAYS)
    supervisor = made(tmp_path, node)
    deleted: list[bool] = []

    def whole_again() -> bool:
        path = supervisor.folder / "status.json"
        if not deleted and path.exists():
            path.unlink()
            deleted.append(True)
        return bool(deleted) and path.exists() and bool(node.processes)

    run_until(supervisor, whole_again)


def test_of_a_supervisor_that_was_killed_nothing_is_told_to_run(tmp_path: Path) -> None:
    assert read_status(tmp_path) is None
    told = {"running": True, "since": 0.0, "restarts": 0, "reason": ""}
    ended = told | {"running": False, "reason": "stopped"}
    content = {"paused": False, "supervisor": 2**22 + 1, "units": {"node": told, "ended": ended}}
    (tmp_path / "status.json").write_text(json.dumps(content))
    found = read_status(tmp_path)
    assert found is not None
    assert (found.units["node"].running, found.units["node"].reason) == (False, "the supervisor is gone")
    assert found.units["ended"].reason == "stopped"


def test_one_process_keeps_it_up(tmp_path: Path) -> None:
    node = unit(STAYS)
    supervisor, second = made(tmp_path, node), made(tmp_path, unit(STAYS))
    refused: list[str] = []

    def both() -> bool:
        if node.processes and not refused:
            with pytest.raises(ConfigError, match="is up already") as error:
                second.run()
            refused.append(str(error.value))
        return bool(refused)

    run_until(supervisor, both)
    supervisor.stopping = False
    run_until(supervisor, lambda: bool(node.processes))  # and again when it has ended


KILLED = """
import sys
from pathlib import Path
from excise.common.supervisor import Supervisor, Unit

stays = [sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(60)"]
folder = Path(sys.argv[1])
Supervisor([Unit("node", lambda: {"a": stays, "b": stays})], folder, folder / "lock", {}, print).run()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
def test_of_a_killed_supervisor_nothing_is_left(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.DEVNULL) as process:
        log, ends = tmp_path / "log", time.monotonic() + 20
        while (not log.exists() or len(log.read_text().split()) < 2) and time.monotonic() < ends:
            time.sleep(0.02)
        ids = list(map(int, log.read_text().split()))
        assert len(ids) == 2
        assert not any(map(gone, ids))
        process.kill()
    ends = time.monotonic() + 20
    while not all(map(gone, ids)) and time.monotonic() < ends:
        time.sleep(0.02)
    assert all(map(gone, ids))
