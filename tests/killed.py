"""Kills a run at every point at which something is written, lets it go on, and tells what came of it.

A program of its own (`tests/integration/test_kills.py` starts it): it imports torch once, and forks for every run. What is
killed is a real process, by SIGKILL, so nothing of it is left but its files.

    python -m tests.killed FOLDER    prints {"undisturbed": OUTCOME, "killed": {POINT: OUTCOME}} as JSON
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from excise.client.config import read_site_config
from excise.server import record
from excise.server.plan import Plan
from excise.server.record import RunFolder
from excise.simulations.sites import Sites
from tests.scenarios import prepared, run

Json = dict[str, Any]
TINY: Json = {
    "partition": {"sites": 2},
    "training": {"rounds": 1},
    "unlearning": {"search": {"max_steps": 2}, "local": {"rounds": 3, "steps": 1}},
    "rounds": {"deadline": 60.0, "watch": False},
}


class Points:
    """Counts what is written in this process; at the point number `fatal`, from 1, the process is killed.

    Before and after each renaming in the run's folder, after each line that is appended there, and before each renaming of the
    first site's: there a file is whole or missing, and who finds it missing makes it again.
    """

    def __init__(self, folder: Path, first: Path, fatal: int) -> None:
        self.fatal, self.names = fatal, list[str]()
        replace = os.replace

        def renamed(source: Any, target: Any) -> None:
            ours = Path(target).is_relative_to(folder)
            if ours or first in Path(target).parents:
                self._pass(f"before {Path(target).name}")
            replace(source, target)
            if ours:
                self._pass(f"after {Path(target).name}")

        os.replace = renamed
        self._after(RunFolder, "event")
        self._after(record, "append")

    def _after(self, owner: Any, name: str) -> None:
        real: Callable[..., Any] = getattr(owner, name)

        def counted(*given: Any, **named: Any) -> Any:
            done = real(*given, **named)
            self._pass(f"after {name}")
            return done

        setattr(owner, name, counted)

    def _pass(self, name: str) -> None:
        self.names.append(name)
        if len(self.names) == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)


def outcome(results: Json, folder: Path) -> Json:
    """All that a run found but how long it took, and the digest of its revised model's file."""
    model = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    return {"results": _without_times(results), "model": model, "temporary": [str(p) for p in folder.rglob(".*")]}


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_times(item) for key, item in value.items() if key not in ("seconds", "cost")}
    return [_without_times(item) for item in value] if isinstance(value, list | tuple) else value


def forked(plan: Plan, sites: Sites, folder: Path, fatal: int = 0) -> Json | None:
    """Carry out `plan` in a process of its own; what came of it, None when it was killed."""
    told = folder.with_suffix(".json")
    if (child := os.fork()) == 0:
        try:
            points = Points(folder, sites.configs[0].parent, fatal)
            results = run(plan, sites, folder)
            told.write_text(json.dumps({**outcome(results, folder), "points": points.names}))
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return None
    if status:
        raise SystemExit(f"a run ended with status {status}")
    found: Json = json.loads(told.read_text())
    return found


def main(home: Path) -> None:
    """Print what came of every run."""
    torch.set_num_threads(1)  # threads would not survive the forks
    plan, sites = prepared(home, **TINY)
    plan = plan.model_copy(update={"retrain": False})
    states = [read_site_config(site).state for site in sites.configs]

    def fresh(name: str) -> Path:
        for state in states:
            shutil.rmtree(state, ignore_errors=True)
        return home / name

    run(plan, sites, fresh("first"))  # imports what is imported late, so that no child has to
    undisturbed = forked(plan, sites, fresh("undisturbed"))
    assert undisturbed is not None
    names = undisturbed.pop("points")
    killed = {}
    for number, name in enumerate(names, 1):
        folder = fresh(f"killed-{number}")
        assert forked(plan, sites, folder, number) is None
        resumed = forked(plan, sites, folder)
        assert resumed is not None
        resumed.pop("points")
        killed[f"{number} {name}"] = resumed
        shutil.rmtree(folder)
    print(json.dumps({"undisturbed": undisturbed, "killed": killed}))  # noqa: T201 - this is the program's result


if __name__ == "__main__":
    main(Path(sys.argv[1]))
