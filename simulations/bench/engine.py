"""Every figure of the engine's page, measured: speed in one run, and quality over seeds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from excise.client.unlearning import unlearn
from excise.common.settings import PRESETS, SearchSettings, UnlearningSettings
from excise.server.record import RunFolder
from excise.simulations.bench.composing import composing
from excise.simulations.bench.fashion_models import Images, Progress, Task, recipe
from excise.simulations.bench.forgetting import Spread, of_class, of_samples, over_sites
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
    """Measure everything; a seed that is done is kept in `home`, and measured again when anything it depends on has changed.

    Parameters
    ----------
    train, test : images of all classes
    classes, samples : our settings for a whole class, and for images of a class
    """
    results: dict[str, Any] = {"seeds": []}
    settings = (classes, samples, PRESETS["published"], SEARCH)
    done_with = recipe(len(train[1]), SHARES, REPEATS, SEARCHED, *(one.model_dump_json() for one in settings))
    for seed in range(seeds):
        kept = home / f"seed-{seed}-{done_with}.json"
        if not kept.exists():
            found = _seed(train, test, classes, samples, home, seed, progress)
            RunFolder(home).write_json(kept.name, found)
        results["seeds"].append(json.loads(kept.read_text()))
    progress("composing")
    results["composing"] = [vars(one) for one in composing(composed)]
    return results


def _seed(
    train: Images,
    test: Images,
    classes: UnlearningSettings,
    samples: UnlearningSettings,
    home: Path,
    seed: int,
    progress: Progress,
) -> dict[str, Any]:
    task = Task.of_class(FORGOTTEN, train, test, home, seed, progress)
    shares = {share: Task.of_share(share, FORGOTTEN, train, test, home, seed, progress) for share in SHARES}
    median, as_good = race(task, classes, REPEATS, progress)
    whole = run(task, classes, seed)
    progress(f"seed {seed}: boundary search")
    searched = compare_searches(task, SEARCH, SEARCHED, REPEATS)
    progress(f"seed {seed}: a class")
    student = unlearn(task.original, task.forget, task.retain, settings=classes, seed=seed).model
    models = {"original": task.original, "retrained": task.retrained, "in one place": student}
    spreads: dict[str, Spread] = {"at one of eight sites": "forget-on-one-site", "at all of eight sites": "iid"}
    for name, kind in spreads.items():
        models[name] = over_sites(task, FORGOTTEN, kind, train, classes, home / "sites", seed)
    quality = {name: of_class(task, model, seed) for name, model in models.items()}
    found = {}
    for share, part in shares.items():
        progress(f"seed {seed}: {share:.0%} of a class")
        found[f"{share:g}"] = of_samples(part, samples, seed)
    return {
        "race": asdict(median) | {"as_good": as_good, "whole": asdict(whole)},
        "search": asdict(searched),
        "class": quality,
        "samples": found,
    }
