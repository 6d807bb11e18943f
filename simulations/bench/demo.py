"""A scenario over several seeds, with what each part of the method buys beside it; `demo_page.py` tells the figures.

Every variant of a seed starts from the same deployed model and is compared with the same retrained reference. One retrained
model is one draw: another order of its batches moves its accuracy on a few dozen patients by several points. So each seed
retrains several times, and unlearns as often with ours. A seed that is done is not run again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from excise.common.settings import PRESETS, TargetSettings, UnlearningSettings
from excise.server.record import RunFolder
from excise.simulations.engine import Backend, run_plan
from excise.simulations.run import plan_for
from excise.simulations.scenario import Scenario
from excise.simulations.sites import make_sites

Progress = Callable[[str, int, int, str], None]


AGAIN = "again-"
"""Prefix of the names under which a seed's results keep its repeats."""


def variants(ours: UnlearningSettings) -> dict[str, UnlearningSettings]:
    """Ours, and ours with one part changed at a time; last the authors' published settings."""
    return {
        "excise": ours,
        "`nearest` targets": ours.model_copy(update={"target": TargetSettings(kind="nearest")}),
        "plain FedAvg weights": ours.model_copy(update={"weights": "fedavg"}),
        "without overshoot": ours.model_copy(update={"target": ours.target.model_copy(update={"overshoot": 1.0})}),
        "fixed overshoot": ours.model_copy(update={"target": ours.target.model_copy(update={"band": 0.0})}),
        "with distillation": ours.model_copy(update={"local": ours.local.model_copy(update={"distil": 0.7})}),
        "`published` preset": PRESETS["published"],
    }


REPEATS = 3
"""Times that a seed retrains, and unlearns with ours, each time with random numbers of its own; the cost is of the first."""


def recipe(scenario: Scenario) -> str:
    """Short digest of the settings that a seed's results depend on: part of the name of the folder that keeps them."""
    # What is measured of a result beside its scores does not change them.
    told = [scenario.model_dump_json(exclude={"verification"})]
    told += [part.model_dump_json() for part in variants(scenario.unlearning).values()]
    return hashlib.sha256("|".join([*told, str(REPEATS)]).encode()).hexdigest()[:8]


FRESH = 21
"""First of the further seeds: on 5 to 12 the settings were chosen (docs/adr/0005), and 13 to 20 were looked at since."""


def run_seed(
    scenario: Scenario, home: Path, cache: Path, backend: Backend, progress: Progress, only_ours: bool = False
) -> dict[str, Any]:
    """Results of every variant for the scenario's seed, by name; from `home` when they are there."""
    kept = home / ("ours.json" if only_ours else "results.json")
    if kept.exists():
        return _read(kept)
    sites = make_sites(scenario, cache)
    results: dict[str, Any] = {}
    plan = plan_for(scenario, sites)
    for name, settings in variants(scenario.unlearning).items():
        if only_ours and results:
            break
        folder = home / "".join(c if c.isalnum() else "-" for c in name).strip("-")
        results[name] = run_plan(
            plan.model_copy(update={"unlearning": settings}), sites.configs, RunFolder(folder), backend, progress
        )
        first = home / "excise" / "checkpoints"  # the models that all variants share were made by the first
        plan = plan.model_copy(
            update={"deployed": first / "original.safetensors", "retrained": first / "retrained.safetensors"}
        )
    for repeat in range(1, REPEATS):
        again = plan.model_copy(
            update={"unlearning": scenario.unlearning, "seed": plan.seed + 1000 * repeat, "retrained": None}
        )
        results[f"{AGAIN}{repeat}"] = run_plan(again, sites.configs, RunFolder(home / f"{AGAIN}{repeat}"), backend, progress)
    RunFolder(home).write_json(kept.name, results)
    return _read(kept)  # as a later call will: NaN is null


def _read(results: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(results.read_text())
    return found
