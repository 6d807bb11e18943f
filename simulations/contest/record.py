"""What is kept of one method on one task: its settings, what it cost, and all that its model was judged by."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from excise.common.canonical import finite
from excise.common.errors import DataError
from excise.common.files import write_atomically
from excise.simulations.contest.search import Searched
from excise.simulations.judging.cost import Cost

VERSION = 2
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

    @property
    def images(self) -> float:
        """Images that it sent through models, ÷ those of retraining."""
        return (self.cost.images or 0) / (self.retraining.images or math.nan)


def path_of(home: Path, key: str, entry: str, seed: int) -> Path:
    """Where the record of an entry on a task is kept."""
    slug = re.sub(r"[^a-z0-9]+", "-", entry.lower()).strip("-")
    return home / "results" / key / f"{slug}-{seed}.json"


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
        for name, kind in (("searched", Searched), ("cost", Cost), ("retraining", Cost)):
            found[name] = kind(**found[name])
        for name in ("original", "retrained", "values"):
            found[name] = {key: value for key, value in found[name].items() if value is not None}
        return Record(**found)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no result of the benchmark: remove it, and it is made anew") from error


def records(home: Path) -> list[Record]:
    """Every record below `home`, by task, entry and seed.

    Raises
    ------
    DataError : one of the files is none
    """
    found = [record for path in (home / "results").glob("*/*.json") if (record := read(path)) is not None]
    return sorted(found, key=lambda one: (one.key, one.entry, one.seed))
