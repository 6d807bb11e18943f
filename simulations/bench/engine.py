"""Every figure of the engine's page, measured: speed in one run, and quality over seeds."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from excise.client.unlearning import unlearn
from excise.common.settings import PRESETS, SearchSettings, UnlearningSettings
from excise.server.record import RunFolder
from excise.simulations.bench.composing import composing
from excise.simulations.bench.fashion_models import RETRAININGS, Images, Progress, Task, recipe
from excise.simulations.bench.forgetting import SCORES, Spread, of_class, of_samples, over_sites
from excise.simulations.bench.race import compare_searches, race, run

FORGOTTEN = 0
"""The class that is forgotten, and of whose images shares are forgotten."""
SHARES = (0.01, 0.1, 0.5)
REPEATS = 5
SEARCH = SearchSettings(epsilon=0.25, eta=0.02, max_steps=30, stop="crossed")
SEARCHED = 256
"""Images that the searches are compared on."""
COMPOSED = (1, 10, 100, 300, 1000)


def run_engine(
    train: Images,
    test: Images,
    classes: UnlearningSettings,
    samples: UnlearningSettings,
    home: Path,
    seeds: int,
    progress: Progress,
    composed: Sequence[int] = COMPOSED,
) -> dict[str, Any]:
    """Measure everything. What is done is kept in `home`, seed by seed, and measured anew when what it depends on changes.

    Parameters
    ----------
    train, test : images of all classes
    classes, samples : our settings for a whole class, and for images of a class
    """
    results: dict[str, Any] = {"seeds": []}
    for seed in range(seeds):
        task = Task.of_class(FORGOTTEN, train, test, home, seed, progress)
        settings = [one.model_dump_json() for one in (classes, PRESETS["published"], SEARCH)]
        speed = _path(home, "speed", seed, len(train[1]), REPEATS, SEARCHED, *settings)
        whole = _path(home, "class", seed, len(train[1]), classes.model_dump_json())
        shares = _path(home, "samples", seed, len(train[1]), SHARES, RETRAININGS, SCORES, samples.model_dump_json())
        results["seeds"].append(
            {
                **_kept(speed, _speed, task, classes, seed, progress),
                "class": _kept(whole, _class, task, train, classes, home, seed, progress),
                "samples": _kept(shares, _samples, train, test, samples, home, seed, progress),
            }
        )
    progress("composing")
    results["composing"] = [vars(one) for one in composing(composed)]
    return results


def _path(home: Path, name: str, seed: int, *depends_on: object) -> Path:
    return home / f"{name}-{seed}-{recipe(*depends_on)}.json"


def _kept(path: Path, measure: Callable[..., dict[str, Any]], *inputs: object) -> dict[str, Any]:
    """What `path` holds, measured first when it is not there."""
    if not path.exists():
        RunFolder(path.parent).write_json(path.name, measure(*inputs))
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def _speed(task: Task, classes: UnlearningSettings, seed: int, progress: Progress) -> dict[str, Any]:
    """The race against the published procedure, and the boundary search against its naive form."""
    median, as_good = race(task, classes, REPEATS, progress)
    whole = run(task, classes, seed)
    progress(f"seed {seed}: boundary search")
    searched = compare_searches(task, SEARCH, SEARCHED, REPEATS)
    return {"race": asdict(median) | {"as_good": as_good, "whole": asdict(whole)}, "search": asdict(searched)}


def _class(
    task: Task, train: Images, classes: UnlearningSettings, home: Path, seed: int, progress: Progress
) -> dict[str, dict[str, float]]:
    """How well a class is forgotten, in one place and over sites."""
    progress(f"seed {seed}: a class")
    student = unlearn(task.original, task.forget, task.retain, settings=classes, seed=seed).model
    models = {"original": task.original, "retrained": task.retrained, "in one place": student}
    spreads: dict[str, Spread] = {"at one of eight sites": "forget-on-one-site", "at all of eight sites": "iid"}
    for name, kind in spreads.items():
        models[name] = over_sites(task, FORGOTTEN, kind, train, classes, home / "sites", seed)
    return {name: of_class(task, model, seed) for name, model in models.items()}


def _samples(
    train: Images, test: Images, samples: UnlearningSettings, home: Path, seed: int, progress: Progress
) -> dict[str, dict[str, dict[str, float]]]:
    """How well each share of the class is forgotten."""
    found = {}
    for share in SHARES:
        task = Task.of_share(share, FORGOTTEN, train, test, home, seed, progress)
        progress(f"seed {seed}: {share:.0%} of a class")
        found[f"{share:g}"] = of_samples(task, samples, seed)
    return found
