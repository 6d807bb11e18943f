"""The folder of a run: its settings, its events, a checkpoint after every round, its results.

    runs/<id>/  config.toml  events.jsonl  checkpoints/<phase>.safetensors  checkpoints/<phase>.rounds.jsonl
                candidates/<name>.safetensors  model.safetensors  metrics.json  embeddings.json  report.html  run.lock

A checkpoint holds the weights of its phase and all else that the next round depends on, in one file that is replaced at once,
so a run that was killed at any moment goes on from the last whole round. The one before it is kept beside it, as
`<phase>.previous.safetensors`, and each holds a digest of all that is in it: a damaged one is set aside, as
`<phase>.damaged.safetensors`, and costs one round.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open

from excise.common.canonical import finite
from excise.common.errors import StorageError
from excise.common.files import leftovers, storage_errors, write_atomically
from excise.common.weights import Weights, digest, load_weights, save_weights
from excise.server import events
from excise.server.trail import Trail, append, read

DEPLOYED, REVISED = "deployed.safetensors", "model.safetensors"
"""The model before and the revised model, in the run's folder; the first where a coordinator's run begins with one."""


@dataclass
class Phase:
    """Progress of one phase of a run.

    Attributes
    ----------
    weights : the model after `rounds` rounds
    rounds : rounds that are done
    history : one entry per round, JSON values only; what no later round depends on may be in the trail instead
    cost : seconds, passes, bytes_down, bytes_up and rounds, summed
    trail : how far the file reaches that says more of each round (`server/trail.py`)
    """

    weights: Weights
    rounds: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    cost: dict[str, float] = field(default_factory=dict)
    trail: Trail = field(default_factory=Trail)

    def spend(self, **amounts: float) -> None:
        """Add to the cost."""
        for name, amount in amounts.items():
            self.cost[name] = self.cost.get(name, 0) + amount


class RunFolder:
    """Reads and writes the folder of one run. Every write is atomic or appends one line.

    Parameters
    ----------
    may_write : called before whatever the run goes on from is written; raises when another process carries it out by now
    """

    def __init__(self, path: Path, may_write: Callable[[], None] = lambda: None) -> None:
        self.path, self._may_write = path, may_write

    def event(self, kind: str, **details: Any) -> None:
        """Append one line to `events.jsonl`. Details are aggregates and names of sites, never anything of a patient."""
        events.add(self.path, kind, **details)

    def events(self, after: int = 0) -> list[dict[str, Any]]:
        """Events in their order, without the first `after`; a line that is not whole, or not yet, is left out."""
        return events.events_of(self.path, after)

    def tidy(self) -> None:
        """Remove what writers that were killed left behind; for the process that carries out the run, before it writes."""
        for folder in (self.path, self.path / "checkpoints", self.path / "candidates"):
            for path in leftovers(folder):
                path.unlink(missing_ok=True)

    def save_phase(self, name: str, phase: Phase, entry: dict[str, Any] | None = None, spare: bool = True) -> None:
        """Write the checkpoint of a phase; unless `spare` is False, keep the one before it.

        Parameters
        ----------
        entry : what its last round measured, for `rounds_of`
        """
        self._may_write()
        if entry is not None:
            phase.trail = append(self._rounds(name), phase.trail, entry)
        told = {"rounds": phase.rounds, "history": phase.history, "cost": phase.cost, "trail": asdict(phase.trail)}
        state = json.dumps(told)
        previous = self._checkpoint(f"{name}.previous") if spare else None
        save_weights(phase.weights, self._checkpoint(name), {"state": state, "digest": _seal(state, phase.weights)}, previous)

    def rounds_of(self, name: str, phase: Phase) -> list[dict[str, Any]]:
        """What every round of a phase measured.

        Raises
        ------
        StorageError : the file that holds it is damaged
        """
        try:
            return read(self._rounds(name), phase.trail)
        except StorageError as error:
            raise StorageError(f"{error}. {_remedy(self._checkpoint(name))}") from error

    def load_phase(self, name: str) -> Phase | None:
        """The checkpoint of a phase, or the one before it when that is damaged, which becomes an event; None before its first.

        Raises
        ------
        StorageError : all there is of it is damaged
        """
        path, previous = self._checkpoint(name), self._checkpoint(f"{name}.previous")
        if not path.exists():  # killed between the two renames of `write_atomically`, there is the one before alone
            return _read(previous) if previous.exists() else None
        try:
            return _read(path)
        except StorageError:
            if not previous.exists():
                raise
            phase = _read(previous)
        with storage_errors(path):
            path.replace(self._checkpoint(f"{name}.damaged"))  # else the next round would put it in the place of the good one
        self.event("checkpoint_damaged", phase=name, rounds=phase.rounds)
        return phase

    def write_json(self, name: str, value: Any, indent: int | None = 2) -> None:
        """Write a JSON file, on one line without `indent`; what is not finite becomes null, which every reader understands."""
        self._may_write()
        write_atomically(self.path / name, json.dumps(finite(value), indent=indent) + "\n")

    def _rounds(self, name: str) -> Path:
        return self.path / "checkpoints" / f"{name}.rounds.jsonl"

    def _checkpoint(self, name: str) -> Path:
        return self.path / "checkpoints" / f"{name}.safetensors"


def _read(path: Path) -> Phase:
    """A checkpoint.

    Raises
    ------
    StorageError : it is damaged
    """
    try:
        weights = load_weights(path)
        with safe_open(path, framework="pt") as file:
            told = file.metadata()
        state = json.loads(told["state"])
        phase = Phase(weights, state["rounds"], state["history"], state["cost"], Trail(**state["trail"]))
        whole = told["digest"] == _seal(told["state"], weights)
    except Exception as error:  # damaged bytes are answered with errors of any type
        raise StorageError(f"the checkpoint {path} is damaged ({type(error).__name__}). {_remedy(path)}") from error
    if not whole:
        raise StorageError(f"the checkpoint {path} is damaged: what it holds is not what was written. {_remedy(path)}")
    return phase


def _remedy(path: Path) -> str:
    phase = path.name.split(".")[0]
    return (
        f"Put a copy from a backup in its place; or delete {phase}.* in {path.parent}, and this phase of the run begins anew "
        "when the run is resumed."
    )


def _seal(state: str, weights: Weights) -> str:
    return hashlib.sha256(f"{digest(weights)}{state}".encode()).hexdigest()
