"""After a coordinator was killed: what is left of it ends, and another may come up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from excise.common.errors import ConfigError, Interrupted, StorageError
from excise.server import app
from excise.server.deploy import SERVER, check_store
from excise.server.events import events_of
from excise.server.record import RunFolder
from excise.server.store.leases import held
from tests.coordinators import network
from tests.deployment import eventually

ROOT = Path(__file__).parent.parent.parent
CHILD = "import time, excise.server.app as app; app._end_with_parent(); print('ready', flush=True); time.sleep(120)"
PARENT = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, '-c', {CHILD!r}])
print(child.pid, flush=True)
child.wait()
"""


def test_a_run_whose_superlink_was_killed_ends() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert parent.stdout.readline() == "ready\n"
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    eventually(lambda: _gone(child), 20, "it is left behind, and holds its run")


def _gone(process: int) -> bool:
    try:
        os.kill(process, 0)
        return "Z" in Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]  # nobody waited for it
    except (ProcessLookupError, FileNotFoundError):
        return True


def test_a_run_that_lost_its_lease_says_so_and_not_that_somebody_stopped_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopped:
        def __init__(self, *_: object, **__: object) -> None: ...

        def run(self) -> None:
            raise Interrupted("stopped by Ctrl-C")

    monkeypatch.setattr(app, "Coordinator", Stopped)
    monkeypatch.setattr(app.Plan, "model_validate", lambda _: None)
    (tmp_path / "plan.toml").write_text("")
    with pytest.raises(StorageError, match="is the disk full"):
        app._carry_out(None, RunFolder(tmp_path), lambda: True)  # type: ignore[arg-type]
    assert events_of(tmp_path)[-1]["message"] == app.LOST
    with pytest.raises(Interrupted):
        app._carry_out(None, RunFolder(tmp_path), lambda: False)  # type: ignore[arg-type]


def test_another_coordinator_waits_for_what_is_left_of_the_former(tmp_path: Path) -> None:
    with network(tmp_path) as made:
        left = threading.Event()

        def former() -> None:
            with held(made.store, SERVER, beat=0.2):
                left.set()
                time.sleep(4)

        thread = threading.Thread(target=former)
        thread.start()
        left.wait()
        with pytest.raises(ConfigError):
            check_store(made.toml, patience=0)
        check_store(made.toml, patience=30)
        thread.join()


def test_a_dashboard_that_nobody_could_sign_in_at_is_not_begun(tmp_path: Path) -> None:
    with network(tmp_path) as made, pytest.raises(ConfigError, match="excise server user add"):
        check_store(made.toml, with_dashboard=True)
