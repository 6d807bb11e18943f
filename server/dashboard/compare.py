"""Two runs side by side, or two candidates: what they reached, class by class at each site, and which settings differ."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from excise.common.canonical import finite
from excise.common.errors import RequestError
from excise.server.dashboard import panels
from excise.server.dashboard.files import read_results
from excise.server.dashboard.panels import LESS, MORE, NEARER
from excise.server.dashboard.runs import Runs
from excise.server.dashboard.settings import Settings
from excise.server.verdict import IDEAL_MEMBERSHIP

Table = dict[str, Any]
SETS = (("forget", "forget images"), ("retain", "retain images"), ("held_out", "held-out images"))
SAME = 1e-9
"""Differences below are of floating point."""

PATHS = frozenset(("deployed", "retrained"))
"""Settings that say where weights are: in the run's own folder, so they differ of any two. No browser is told paths."""

_ROWS = (  # key, label, what is better
    ("forget_accuracy", "forget accuracy", NEARER),
    ("retain_accuracy", "retain accuracy", MORE),
    ("held_out_accuracy", "held-out accuracy", MORE),
    ("held_out_balanced_accuracy", "balanced held-out accuracy", MORE),
    ("worst_site_held_out_accuracy", "held-out accuracy, worst site", MORE),
    ("membership_auc", "membership AUC", NEARER),
    ("held_out_ece", "calibration error, held-out (ECE)", LESS),
)
_COST = (("seconds", "wall time, s"), ("passes", "images processed"), ("rounds", "rounds"), ("bytes_up", "bytes sent up"))
CLOCKED = frozenset(("seconds",))
"""Costs that a clock measures; what is counted is the same whenever it is done again."""
NOISE = 0.1
"""Share by which two times have to differ before it is told that they do."""
_PER_CLASS = re.compile(r"(forget|retain|held_out)_accuracy_class_(\d{1,6})")


class Side:
    """One of the two: a run, or a candidate of it.

    Parameters
    ----------
    runs : where the run is
    name : ``run``, or ``run/candidate``

    Raises
    ------
    RequestError : there is no such run, or it has no such candidate
    """

    def __init__(self, runs: Runs, name: str) -> None:
        run, _, wanted = name.partition("/")
        with runs.run(run) as known:
            results, self.problems = read_results(known.path)
            self.settings: Settings = known.settings
            self.state = known.state
            tried = {*known.settings.candidates, *((results or {}).get("candidates") or {}), *known.story.rounds}
        self.name, self.results = name, results or {}
        made: Mapping[str, Any] = self.results.get("candidates") or {}
        if wanted and wanted not in tried:
            raise RequestError(f"the run '{run}' has no candidate '{wanted[:100]}': {', '.join(sorted(tried)) or 'none'}")
        chosen = self.results.get("unlearned", {}).get("candidate", "")
        self.candidate = wanted or chosen
        whole = not wanted or wanted == chosen or not made
        self.model: Table = self.results.get("unlearned", {}) if not wanted else made.get(wanted, {})
        if wanted and not made:
            self.model = self.results.get("unlearned", {})
        self.is_result = whole and bool(self.model)
        """Whether it is the revised model, which alone is verified."""

    def score(self, key: str) -> float | None:
        """A score over all sites."""
        value: float | None = self.model.get("pooled", {}).get(key)
        return value

    def aim(self, key: str) -> float | None:
        """What is to be come near to; where there is a limit 0."""
        if key != "forget_accuracy":
            return IDEAL_MEMBERSHIP
        request = self.settings.request
        return 0.0 if request and request.forget_limit is not None else panels.forget_target(self.results, request)[0]

    @property
    def worst(self) -> Table | None:
        """The membership test at the site where it finds most, with its interval."""
        told = self.results.get("verification", {}).get("worst_site", {}).get("membership_auc") if self.is_result else None
        return {key: told.get(key) for key in ("site", "value", "low", "high")} if told and told.get("site") else None


def compare(folder: Path | Runs, a: str, b: str) -> Table:
    """Two runs, or two candidates (``run/candidate``), side by side.

    Returns
    -------
    ``a``, ``b`` : name, state, digest and problems of each
    ``rows`` : ``key``, ``label``, ``a``, ``b``, ``difference`` (b − a), ``differs``, and ``better``: "a", "b" or None
    ``classes`` : per set of images ``set``, ``label``, ``classes`` (their names), and ``rows``: ``site`` and ``cells``, one
        per class, with ``a``, ``b``, ``difference`` and ``differs``
    ``membership`` : the test at its worst site: ``a``, ``b`` (site, value, low, high), None where it was not measured
    ``settings`` : those that differ: ``key``, ``a``, ``b``; None on the side that has no such setting

    Raises
    ------
    RequestError : there is no such run or candidate
    """
    runs = folder if isinstance(folder, Runs) else Runs(folder)
    sides = Side(runs, a), Side(runs, b)
    compared: Table = finite(
        {
            **{key: _head(side) for key, side in zip("ab", sides, strict=True)},
            "rows": _rows(*sides),
            "classes": [_classes(*sides, name, label) for name, label in SETS],
            "membership": {key: side.worst for key, side in zip("ab", sides, strict=True)},
            "settings": _settings(*sides),
        }
    )
    return compared


def _head(side: Side) -> Table:
    told = {"name": side.name, "state": side.state, "candidate": side.candidate, "problems": side.problems}
    return told | {"digest": side.model.get("digest"), "measured": bool(side.model)}


def _rows(a: Side, b: Side) -> list[Table]:
    rows = []
    for key, label, better in _ROWS:
        pair = a.score(key), b.score(key)
        rows.append({"key": key, "label": label, **_pair(*pair), "better": _better(a, b, key, better, *pair)})
    for key, label in _COST:
        pair = a.model.get("cost", {}).get(key), b.model.get("cost", {}).get(key)
        row = {"key": key, "label": label, **_pair(*pair), "better": _better(a, b, key, LESS, *pair)}
        rows.append(row | ({"differs": False, "better": None} if key in CLOCKED and _as_long(*pair) else {}))
    return rows


def _as_long(a: float | None, b: float | None) -> bool:
    """Whether two times differ by no more than the same work does on another day."""
    return a is not None and b is not None and abs(a - b) <= NOISE * max(a, b)


def _pair(a: float | None, b: float | None) -> Table:
    difference = panels.minus(b, a)
    differs = (a is None) != (b is None) if difference is None else abs(difference) > SAME
    return {"a": a, "b": b, "difference": difference, "differs": differs}


def _better(one: Side, other: Side, key: str, better: str, a: float | None, b: float | None) -> str | None:
    if a is None or b is None:
        return None
    if better == NEARER:
        aims = one.aim(key), other.aim(key)
        if aims[0] is None or aims[1] is None:
            return None
        a, b = abs(a - aims[0]), abs(b - aims[1])
    if abs(a - b) <= SAME:
        return None
    return "a" if (a > b) == (better == MORE) else "b"


def _classes(a: Side, b: Side, name: str, label: str) -> Table:
    """Accuracy on each class at each site; a class that neither side tells of anywhere is left out."""
    told = [side.model.get("sites", {}) for side in (a, b)]
    keys = {key for sites in told for scores in sites.values() for key in scores}
    numbers = sorted({int(match[2]) for key in keys if (match := _PER_CLASS.fullmatch(key)) and match[1] == name})
    rows = []
    for site in sorted({*told[0], *told[1]}):
        pairs = [[sites.get(site, {}).get(f"{name}_accuracy_class_{n}") for sites in told] for n in numbers]
        rows.append({"site": site, "cells": [_pair(*pair) for pair in pairs]})
    return {"set": name, "label": label, "classes": [_class((a.settings, b.settings), n) for n in numbers], "rows": rows}


def _class(settings: tuple[Settings, Settings], number: int) -> str:
    """Name of a class, where the settings of either tell it; of several labels each has two sides (`ModelSpec.strata`)."""
    named = [data.get("classes") for one in settings if isinstance(data := one.table.get("data"), dict)]
    names = next((one for one in named if isinstance(one, list) and one), None)
    model = settings[0].table.get("model")
    if isinstance(model, dict) and model.get("multi_label") is True:
        label = names[number // 2] if isinstance(names, list) and number // 2 < len(names) else f"label {number // 2}"
        return f"{label}: {'yes' if number % 2 else 'no'}"
    return str(names[number]) if isinstance(names, list) and number < len(names) else f"class {number}"


def _settings(a: Side, b: Side) -> list[Table]:
    one, other = a.settings.flat(a.candidate), b.settings.flat(b.candidate)
    return [
        {"key": key, "a": one.get(key), "b": other.get(key)}
        for key in sorted({*one, *other} - PATHS)
        if one.get(key) != other.get(key) or (key in one) != (key in other)
    ]
