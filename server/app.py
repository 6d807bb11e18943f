"""The Flower server app of a coordinator: read the plan of a run folder and carry it out."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from excise.common.errors import ExciseError, StorageError
from excise.server.coordinator import Coordinator
from excise.server.federation import Progress
from excise.server.plan import Plan
from excise.server.record import FAILED, RunFolder


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
    """Carry out the plan in ``<run>/plan.toml``; the run folder is named by the run setting ``run``."""
    path = Path(str(context.run_config["run"]))
    folder = RunFolder(path)
    try:
        plan = Plan.model_validate(tomllib.loads((path / "plan.toml").read_text()))
        Coordinator(grid, plan, folder).run()
    except Exception as error:
        told = (str(error), error.exit_code) if isinstance(error, ExciseError) else ("", ExciseError.exit_code)
        with suppress(StorageError):  # of a full disk, say: what ended the run is raised then all the same
            folder.event(FAILED, error=type(error).__name__, message=told[0], exit_code=told[1])
        raise
