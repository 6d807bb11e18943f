"""The Flower server app of a coordinator: read the plan of a run folder and carry it out."""

from __future__ import annotations

import os
import threading
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from excise.common.errors import Interrupted, StorageError
from excise.server.carrying import carrying_out
from excise.server.config import read_server_config, store_of
from excise.server.coordinator import Coordinator
from excise.server.evidence import seal
from excise.server.federation import Progress
from excise.server.plan import Plan
from excise.server.record import RunFolder
from excise.server.requests import check_running
from excise.server.store.leases import held, lease_of

LOST = (
    "the run is not this process's any more: the store could not be written for some seconds (is the disk full?), or another "
    "process carries the run on"
)
PAUSE = 1.0
"""Seconds between two looks whether the parent process lives."""


def make_app(
    plan: Plan, folder: RunFolder, results: dict[str, Any], progress: Progress, stopped: Callable[[], bool]
) -> ServerApp:
    """Build the server app that carries out `plan` and leaves what it found in `results`."""
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        results.update(Coordinator(grid, plan, folder, progress, stopped).run())

    return server


app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Carry out the plan in ``<run>/plan.toml``; the run folder is named by the run setting ``run``.

    With the setting ``server``, a coordinator's server.toml, no other process carries out the same run meanwhile, and its
    evidence is made in the end.
    """
    path, server = Path(str(context.run_config["run"])), str(context.run_config.get("server", ""))
    if not server:
        _carry_out(grid, RunFolder(path))
        return
    _end_with_parent()
    toml, taken_over = Path(server), threading.Event()
    config = read_server_config(toml)
    with store_of(toml) as store, held(store, lease_of(path.name), taken_over.set) as still_ours:
        check_running(store, path.name)
        folder = RunFolder(path, still_ours)
        _carry_out(grid, folder, taken_over.is_set, lambda: seal(store, toml.parent, config, path.name))


def _end_with_parent() -> None:
    """End this process when the one that started it is gone.

    Flower's calls are tried again and again while the SuperLink does not answer. A process that is left behind like that would
    hold its run for ever; what it has done is in checkpoints, and whoever resumes the run goes on from there.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PAUSE)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _carry_out(
    grid: Grid,
    folder: RunFolder,
    stopped: Callable[[], bool] = lambda: False,
    then: Callable[[], object] = lambda: None,
) -> None:
    with carrying_out(folder.path):
        plan = Plan.model_validate(tomllib.loads((folder.path / "plan.toml").read_text()))
        try:
            Coordinator(grid, plan, folder, stopped=stopped).run()
        except Interrupted:
            if stopped():  # nobody pressed a key here
                raise StorageError(LOST) from None
            raise
        then()
