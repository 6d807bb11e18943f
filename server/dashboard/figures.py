"""The figures of the drawn panels, as `static/charts.js` wants them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from excise.server.dashboard.formats import three

Table = dict[str, Any]
LINES = (
    ("forget", "forget_accuracy"),
    ("retain", "retain_accuracy"),
    ("held-out", "held_out_accuracy"),
    ("membership AUC", "membership_auc"),
)
FULL = 0.05
"""A change by which a cell of the heat map has its full colour."""
ROWS = 12
"""Most sites of the heat map: more could not be read."""
EMBEDDINGS = "embeddings.json"


def curve(view: Table | None, runs: Path) -> Table:
    """Scores by round of the candidate that was chosen, or is worked on; round 0 is the deployed model."""
    if view is None or not (tried := view["series"]["candidates"]):
        return {"missing": "no round yet"}
    chosen = {one["name"] for one in view["candidates"] if one["chosen"]}
    shown = next((one for one in tried if one["name"] in chosen), tried[-1])
    original, retrained = view["series"]["original"] or {}, view["series"]["retrained"] or {}
    lines = []
    for name, key in LINES:
        scored = list(zip(shown["rounds"], shown[key], strict=True))
        if all(value is None for _, value in scored) and (ended := _ended(view, shown)):
            scored = [(ended["kept_round"], ended[key])]  # nobody watched the rounds
        known = [[number, value] for number, value in [(0, original.get(key)), *scored] if value is not None]
        if known:
            lines.append({"name": name, "points": known, "retrained": retrained.get(key)})
    if not lines:
        return {"missing": "the rounds of this run were not scored one by one"}
    return {"lines": lines, "rounds": max(view["run"]["rounds"] or 0, *shown["rounds"]), "note": _best_and_last(shown)}


def _best_and_last(shown: Table) -> str:
    """The best and the last value of what is to be decided on; empty where nobody watched the rounds."""
    told = [
        f"{name}: best {three(best['value'])} (round {best['round']}), last {three(last['value'])}"
        for name, key in LINES[:2]
        if (best := shown["best"].get(key)) and (last := shown["last"].get(key))
    ]
    return "\n".join(told)


def _ended(view: Table, shown: Table) -> Table | None:
    """The measured end of the candidate whose rounds are shown; None before there is one."""
    found = next((one for one in view["candidates"] if one["name"] == shown["name"]), None)
    return found if view["gates"] and found and found["kept_round"] is not None else None


def pareto(view: Table | None, runs: Path) -> Table:
    """What was tried: its distance from what forgetting is to reach, and what is left of the retain accuracy."""
    if view is None or not view["candidates"]:
        return {"missing": "nothing was tried yet"}
    found = [
        {
            "name": one["name"],
            "x": one["forget_gap"],
            "y": one["retain_accuracy"],
            "on_front": bool(one["on_front"]),
            "chosen": bool(one["chosen"]),
        }
        for one in view["candidates"]
    ]
    if not any(one["x"] is not None and one["y"] is not None for one in found):
        return {"missing": "no candidate was measured yet"}
    began = view["deployed"]
    original = {"x": began["forget_gap"], "y": began["retain_accuracy"]} if began else None
    return {"x": "forget gap (lower is better)", "y": "retain accuracy", "candidates": found, "original": original}


def heat(view: Table | None, runs: Path) -> Table:
    """Change of each score at each site.

    A cell is its column, row, change, how much better (−1 to 1) that is, and where there were fewer images the least number.
    """
    if view is None or not any(cell["change"] is not None for row in view["heat"]["sites"] for cell in row["cells"]):
        return {"missing": "the sites were not measured before and after yet"}
    every = view["heat"]["sites"]
    kept = sorted(sorted(every, key=_worst)[:ROWS], key=lambda row: str(row["site"]))
    cells = [
        [x, y, cell["change"], None if cell["gain"] is None else max(-1.0, min(1.0, cell["gain"] / FULL)), cell["below"]]
        for y, row in enumerate(kept)
        for x, cell in enumerate(row["cells"])
    ]
    return {
        "metrics": [one["label"].split(",")[0].replace("membership", "MIA") for one in view["heat"]["metrics"]],
        "sites": [row["site"] for row in kept],
        "cells": cells,
        "note": f"the {ROWS} of {len(every)} sites that lost most by any score" if len(every) > ROWS else "",
    }


def _worst(row: Table) -> float:
    """The greatest loss of a site, below 0; 0 where none is known."""
    return min((cell["gain"] for cell in row["cells"] if cell["gain"] is not None), default=0.0)


def embedding(view: Table | None, runs: Path) -> Table:
    """Points before and after, by group, of all sites that allow it."""
    if view is None:
        return {"missing": "no run yet"}
    try:
        told = json.loads((runs / view["run"]["name"] / EMBEDDINGS).read_text())
        groups: dict[str, Table] = {name: {"name": name, "before": [], "after": []} for name in told["groups"]}
        for site in told["sites"].values():
            for before, after, group in zip(site["before"], site["after"], site["group"], strict=True):
                one = groups[told["groups"][group]]
                one["before"].append(before)
                one["after"].append(after)
    except FileNotFoundError:
        return {"missing": "no embeddings of this run: its sites do not allow them, or it is not at its end"}
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError):
        return {"missing": "the embeddings of this run cannot be read"}
    points = [point for one in groups.values() for when in ("before", "after") for point in one[when]]
    if not points:
        return {"missing": "no site allows its embeddings to be shown"}
    low, high = ([pick(axis) for axis in zip(*points, strict=True)] for pick in (min, max))
    return {"groups": [one for one in groups.values() if one["before"]], "low": low, "high": high}


CHARTS: dict[str, Callable[[Table | None, Path], Table]] = {
    "curve": curve,
    "pareto": pareto,
    "heat": heat,
    "embedding": embedding,
}
