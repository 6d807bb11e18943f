"""The folder of a run: its settings, its events, a checkpoint after every round, its results.

    runs/<id>/  config.toml  events.jsonl  checkpoints/<phase>.safetensors  candidates/<name>.safetensors
                model.safetensors  metrics.json  report.html

A checkpoint holds the weights and the history of its phase in one file that is replaced at once, so a run that was killed at
any moment goes on from the last whole round.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from safetensors import safe_open

from excise.common.canonical import finite
from excise.common.files import storage_errors, write_atomically
from excise.common.weights import Weights, load_weights, save_weights

FAILED = "failed"
"""The event that ends a run which came to nothing, with what the coordinator is told and the exit code of its command."""
DEPLOYED, REVISED = "deployed.safetensors", "model.safetensors"
"""The model before and the revised model, in the run's folder; the first where a coordinator's run begins with one."""
EVENTS = "events.jsonl"


@dataclass
class Phase:
    """Progress of one phase of a run.

    Attributes
    ----------
    weights : the model after `rounds` rounds
    rounds : rounds that are done
    history : one entry per round, JSON values only
    cost : seconds, passes, bytes_down, bytes_up and rounds, summed
    """

    weights: Weights
    rounds: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    cost: dict[str, float] = field(default_factory=dict)

    def spend(self, **amounts: float) -> None:
        """Add to the cost."""
        for name, amount in amounts.items():
            self.cost[name] = self.cost.get(name, 0) + amount


class RunFolder:
    """Reads and writes the folder of one run. Every write is atomic or appends one line."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def event(self, kind: str, **details: Any) -> None:
        """Append one line to `events.jsonl`. Details are aggregates and names of sites, never anything of a patient."""
        line = json.dumps({"at": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": kind, **finite(details)})
        with storage_errors(self.path / EVENTS):
            self.path.mkdir(parents=True, exist_ok=True)
            with open(self.path / EVENTS, "a", opener=_private) as file:
                file.write(line + "\n")

    def events(self, after: int = 0) -> list[dict[str, Any]]:
        """Events in their order, without the first `after`; a last line that is being written is left out."""
        path = self.path / EVENTS
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return [json.loads(line) for line in lines[after:]]

    def save_phase(self, name: str, phase: Phase) -> None:
        """Write the checkpoint of a phase."""
        state = json.dumps({"rounds": phase.rounds, "history": phase.history, "cost": phase.cost})
        save_weights(phase.weights, self._checkpoint(name), {"state": state})

    def load_phase(self, name: str) -> Phase | None:
        """The checkpoint of a phase; None before its first."""
        path = self._checkpoint(name)
        if not path.exists():
            return None
        with safe_open(path, framework="pt") as file:
            state = json.loads(file.metadata()["state"])
        return Phase(load_weights(path), state["rounds"], state["history"], state["cost"])

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file; what is not finite becomes null, which every reader understands."""
        write_atomically(self.path / name, json.dumps(finite(value), indent=2) + "\n")

    def _checkpoint(self, name: str) -> Path:
        return self.path / "checkpoints" / f"{name}.safetensors"


def _private(path: str, flags: int) -> int:
    """Open for this user alone, as all else in the folder is."""
    return os.open(path, flags, 0o600)
