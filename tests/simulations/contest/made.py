"""Made-up records, whose truth is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from excise.simulations.contest.record import Record, keep
from excise.simulations.contest.search import Searched
from excise.simulations.judging.cost import Cost

GOLD = {"forget_accuracy": 0.8, "retain_accuracy": 0.9, "test_accuracy": 0.85, "loss_auc": 0.5, "tow": 1.0, "forget_js": 0.0}
RETRAINING = Cost(images=1000, seconds=100, rounds=20)


def record(entry: str, seed: int = 0, tow: float = 0.9, auc: float = 0.52, scenario: str = "brain-mri", **told: Any) -> Record:
    """A method that is `auc` − 0.5 from the retrained model's AUC.

    Parameters
    ----------
    told : share (of retraining's cost), failed, federated, key, and metrics
    """
    share, failed = told.pop("share", 0.05), told.pop("failed", "")
    federated, key = told.pop("federated", "(one place)" not in entry), told.pop("key", f"{scenario}-0")
    values = {} if failed else GOLD | {"tow": tow, "loss_auc": auc, "forget_accuracy": tow - 0.1} | told
    cost = Cost() if failed else Cost(images=1000 * share, seconds=100 * share)
    original = GOLD | {"loss_auc": 0.7, "tow": 0.8, "forget_accuracy": 1.0}
    searched = Searched({"rate": 0.25}, 0.125, 12, 3, 1)
    return Record(key, scenario, seed, entry, federated, "a paper", searched, cost, RETRAINING, original, GOLD, values, failed)


def over_seeds(entry: str, tows: list[float], **told: Any) -> list[Record]:
    """A method under seeds 0, 1, …, with a ToW for each."""
    return [record(entry, seed, tow, **told) for seed, tow in enumerate(tows)]


def kept(home: Path, records: list[Record]) -> Path:
    """A folder in which they are kept."""
    for one in records:
        keep(one, home)
    return home
