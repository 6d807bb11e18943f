"""The other files of a run's folder, read without trust: results, checkpoints, evidence.

What cannot be read is a problem to show, never an error of the page.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from excise.server.dashboard.kinds import is_count, is_number, is_text, parsed

METRICS, EVIDENCE = "metrics.json", "evidence.json"
MODELS = ("original", "unlearned", "retrained")
MOST_HEADER = 64 << 20
"""Bytes of a checkpoint's header: names and shapes of its weights, and a few numbers of each round."""

Table = dict[str, Any]


def read_results(path: Path) -> tuple[Table | None, list[str]]:
    """What a run found, with every part that views read of the type that they expect; None before there is any.

    Returns
    -------
    The results, and what is wrong with them
    """
    file = path / METRICS
    try:
        told = parsed(file.read_bytes())
    except FileNotFoundError:
        return None, []
    except (OSError, ValueError) as error:
        return None, [f"{METRICS} cannot be read ({type(error).__name__})"]
    if not isinstance(told, dict):
        return None, [f"{METRICS} holds no results"]
    wrong: list[str] = []
    results: Table = {model: _model(told[model], model, wrong) for model in MODELS if isinstance(told.get(model), dict)}
    results["sites"] = {site: _numbers(of, f"sites.{site}", wrong) for site, of in _table(told.get("sites")).items()}
    if isinstance(told.get("candidates"), dict):
        results["candidates"] = {name: _model(of, name, wrong) for name, of in _table(told["candidates"]).items()}
    results["verification"] = _verification(_table(told.get("verification")), wrong)
    results["requests"] = {
        name: {
            **{model: _numbers(of.get(model), f"requests.{name}.{model}", wrong) for model in MODELS if model in of},
            "accepted": of.get("accepted") if isinstance(of.get("accepted"), bool) else None,
        }
        for name, of in _table(told.get("requests")).items()
        if isinstance(of, dict)
    }
    missing = [f"{METRICS} tells nothing of the {model} model" for model in MODELS[:2] if model not in results]
    return results, [f"{METRICS}: {where} is not as it should be" for where in wrong] + missing


def _model(told: Any, name: str, wrong: list[str]) -> Table:
    if not isinstance(told, dict):
        wrong.append(name)
        return {"pooled": {}, "sites": {}, "cost": {}, "objectives": {}}
    plain = {
        key: told[key]
        for key, fits in (
            ("digest", is_text),
            ("candidate", is_text),
            ("kept_round", is_count),
            ("excess", is_number),
            ("price", is_number),
            ("on_front", lambda value: isinstance(value, bool)),
            ("chosen", lambda value: isinstance(value, bool)),
        )
        if key in told and fits(told[key])
    }
    sites = {site: _numbers(of, f"{name}.sites.{site}", wrong) for site, of in _table(told.get("sites")).items()}
    numbers = {key: _numbers(told.get(key), f"{name}.{key}", wrong) for key in ("pooled", "cost", "objectives")}
    return {**plain, **numbers, "sites": sites}


def _verification(told: Table, wrong: list[str]) -> Table:
    level = told.get("level")
    return {
        "level": level if is_number(level) else None,
        "membership_auc": {
            model: _numbers(of, "verification.membership_auc", wrong)
            for model, of in _table(told.get("membership_auc")).items()
        },
        "worst_site": {
            score: {"site": of["site"], **_numbers({k: v for k, v in of.items() if k != "site"}, "verification", wrong)}
            for score, of in _table(told.get("worst_site")).items()
            if isinstance(of, dict) and is_text(of.get("site"))
        },
    }


def _table(value: Any) -> Table:
    return value if isinstance(value, dict) else {}


def _numbers(told: Any, where: str, wrong: list[str]) -> dict[str, float | None]:
    if told is None:
        return {}
    if not isinstance(told, dict) or not all(map(is_number, told.values())):
        wrong.append(where)
    return {key: value for key, value in _table(told).items() if is_number(value)}


def checkpoint(path: Path, phase: str) -> Table | None:
    """Rounds and cost of a phase, from the header of its checkpoint; None where there is none, or it is damaged."""
    file = path / "checkpoints" / f"{phase}.safetensors"
    try:
        with file.open("rb") as opened:
            (size,) = struct.unpack("<Q", opened.read(8))
            if size > MOST_HEADER:
                return None
            state = json.loads(json.loads(opened.read(size))["__metadata__"]["state"])
        rounds = state["rounds"]
    except (OSError, struct.error, ValueError, KeyError, TypeError, RecursionError):
        return None
    return {"rounds": rounds} if is_count(rounds) else None


def damaged(path: Path) -> list[str]:
    """Names of the checkpoints that were set aside as damaged."""
    return sorted(file.name for file in (path / "checkpoints").glob("*.damaged.safetensors"))


def last_sign(path: Path) -> float:
    """When something was last written into the folder's checkpoints, in seconds since 1970; 0 when never."""
    try:
        return (path / "checkpoints").stat().st_mtime
    except OSError:
        return 0.0


def rounds_by_site(path: Path) -> dict[str, Table]:
    """The last round in which an answer of each site was used, of all that unlearned: ``candidate`` and ``round``."""
    last: dict[str, tuple[int, Table]] = {}
    for file in (path / "checkpoints").glob("unlearned*.rounds.jsonl"):
        try:
            told = file.stat()
        except OSError:
            continue
        candidate = file.name.removesuffix(".rounds.jsonl").removeprefix("unlearned-")
        for site, number in _used(file, told.st_size, told.st_mtime_ns).items():
            if told.st_mtime_ns > last.get(site, (0, {}))[0]:
                last[site] = told.st_mtime_ns, {"candidate": candidate, "round": number}
    return {site: of for site, (_, of) in last.items()}


@lru_cache(maxsize=64)
def _used(file: Path, size: int, changed: int) -> Mapping[str, int]:
    """Number of the last round that used an answer of each site; of a file that did not change it is read once."""
    last: dict[str, int] = {}
    try:
        lines = file.read_bytes().split(b"\n")
    except OSError:
        return last
    for line in lines:
        try:
            entry = json.loads(line)  # which may hold NaN: this file is read by nobody but excise
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict) and is_count(entry.get("round")):
            last.update(dict.fromkeys(_table(entry.get("updates")), int(entry["round"])))
    return last


def digests(path: Path, before: str, after: str) -> Mapping[str, str | None]:
    """SHA-256 of the model before and after, as the evidence names them; where there is none, what the run told."""
    try:
        told = parsed((path / EVIDENCE).read_bytes())["document"]["description_of_modification"]
        first, last = told["model_before"], told["model_after"]
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return {"before": before or None, "after": after or None}
    return {"before": _digest(first) or before or None, "after": _digest(last) or after or None}


def _digest(told: Any) -> str | None:
    value = told.get("digest", told.get("sha256")) if isinstance(told, dict) else told
    return value if isinstance(value, str) and is_text(value) else None
