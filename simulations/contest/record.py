"""What is kept of one method on one task: its settings, what it cost, and all that its model was judged by."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from excise.common.canonical import finite
from excise.common.errors import DataError
from excise.common.files import write_atomically
from excise.simulations.contest.search import Searched
from excise.simulations.judging.cost import Cost, shared_ratios

VERSION = 3
"""Raise it when records of before cannot be compared with those of now."""


@dataclass(frozen=True)
class Record:
    """One method on one task.

    Attributes
    ----------
    key, scenario, seed : of the task: two scenarios of one name have two keys
    entry : name of the method
    federated, paper : as of the `Entry`
    searched : how its settings were chosen
    cost, retraining : what it took, and what retraining took in the same run
    original, retrained, values : every metric of the three models; one that cannot be told is left out
    failed : why there is no model that can be judged; empty where there is one
    by_site, by_class : accuracy on the held-out images by which models are judged, of "original", "retrained" and "method": of
        each site's, and of each class's; empty where there is no model
    shadows : shadow models with which U-LiRA and RMIA were tried (`traces.py`); 0 where nobody asked for them
    untraced : why the two could not be done of a method that did not fail before; empty where they were, or nobody asked
    """

    key: str
    scenario: str
    seed: int
    entry: str
    federated: bool
    paper: str
    searched: Searched
    cost: Cost
    retraining: Cost
    original: Mapping[str, float]
    retrained: Mapping[str, float]
    values: Mapping[str, float]
    failed: str = ""
    version: int = VERSION
    by_site: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    by_class: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    shadows: int = 0
    untraced: str = ""

    @property
    def ratios(self) -> dict[str, float]:
        """What it took ÷ what retraining took, of all that both measured (`judging/cost.py`): bytes at each site too."""
        return shared_ratios(self.cost, self.retraining)

    @property
    def images(self) -> float:
        """Images that it sent through models, ÷ those of retraining."""
        return (self.cost.images or 0) / (self.retraining.images or math.nan)


def slug(entry: str) -> str:
    """An entry's name as part of a file's."""
    return re.sub(r"[^a-z0-9]+", "-", entry.lower()).strip("-")


def path_of(home: Path, key: str, entry: str, seed: int) -> Path:
    """Where the record of an entry on a task is kept."""
    return home / "results" / key / f"{slug(entry)}-{seed}.json"


def keep(record: Record, home: Path) -> None:
    """Write a record.

    Raises
    ------
    StorageError : the disk is full, or `home` cannot be written
    """
    path = path_of(home, record.key, record.entry, record.seed)
    write_atomically(path, json.dumps(finite(asdict(record)), indent=1, allow_nan=False) + "\n")


def read(path: Path) -> Record | None:
    """The record of a file; None where there is none, or one of another version, which is made anew.

    Raises
    ------
    DataError : it is no record
    """
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text())
        if found["version"] != VERSION:
            return None
        if found["searched"]["loss"] is None:  # no trial gave a model; JSON has no infinity
            found["searched"]["loss"] = math.inf
        for name, kind in (("searched", Searched), ("cost", Cost), ("retraining", Cost)):
            found[name] = kind(**found[name])
        for name in ("original", "retrained", "values"):
            found[name] = _told(found[name])
        for name in ("by_site", "by_class"):
            found[name] = {model: _told(scores) for model, scores in found[name].items()}
        return Record(**found)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no result of the benchmark: remove it, and it is made anew") from error


def _told(values: Mapping[str, float | None]) -> dict[str, float]:
    """Without what could not be told, which stands as null in the file."""
    return {key: value for key, value in values.items() if value is not None}


def records(home: Path) -> list[Record]:
    """Every record below `home`, by task, entry and seed.

    Raises
    ------
    DataError : one of the files is none
    """
    found = [record for path in (home / "results").glob("*/*.json") if (record := read(path)) is not None]
    return sorted(found, key=lambda one: (one.key, one.entry, one.seed))
