"""Tiny scenarios of random images, for tests that run a whole simulation in a second or two."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
from PIL import Image
from torch import nn

from excise.common.messages import R
from excise.common.models import ModelSpec
from excise.server.coordinator import Coordinator
from excise.server.plan import Plan
from excise.server.record import RunFolder
from excise.simulations.engine import simulated_client
from excise.simulations.local_grid import LocalGrid
from excise.simulations.run import plan_for
from excise.simulations.scenario import Scenario, read_scenario
from excise.simulations.sites import Sites, make_sites

SIDE = 16
FEATURES = 32
"""Numbers that the head of the tiny scenario's model sees."""
Json = dict[str, Any]
BASE: dict[str, Any] = {
    "name": "tiny",
    "data": {"source": "npz", "path": "images.npz"},
    "partition": {"sites": 3},
    "policy": {"min_count": 3},
    "model": {"name": "tests.scenarios:small", "size": SIDE},
    "training": {"rounds": 2, "learning_rate": 0.05, "augment": False},  # mirrored, the two classes are one
    "unlearning": {"keep": "last", "local": {"rounds": 2, "steps": 2}},
    "rounds": {"deadline": 0.5},
    "request": {"id": "tiny", "kind": "samples", "where": "site = site-2 and class = 1", "reason": "test"},
}


def small(spec: ModelSpec) -> nn.Module:
    """Two blocks with batch norm: most of a tiny run's time goes by the number of tensors, and `allcnn` has 50."""
    blocks = [
        layer
        for inputs in (spec.channels, 8)
        for layer in (nn.Conv2d(inputs, 8, 3, 2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    ]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(FEATURES, spec.classes))


def pictures(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Noise with a bright half: left is class 0, right is class 1."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    images = rng.integers(0, 120, (count, SIDE, SIDE))
    for image, label in zip(images, labels, strict=True):
        image[:, label * SIDE // 2 : (label + 1) * SIDE // 2] += 100
    return images.astype(np.uint8), labels


def write_npz(folder: Path, count: int = 150) -> None:
    images, labels = pictures(count)
    np.savez(folder / "images.npz", images=images, labels=labels, patients=np.arange(count) // 2)


def write_files(folder: Path, count: int = 150) -> None:
    """`folder`/CLASS/PATIENT_NUMBER.png and a table of them, which names a scanner."""
    images, labels = pictures(count)
    lines = ["image,label,patient,StationName"]
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        name = ("left", "right")[label]
        path = folder / name / f"p{i // 4}_{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
        lines.append(f"{name}/{path.name},{name},p{i // 4},MR{i // 4 % 5}")
    (folder / "table.csv").write_text("\n".join(lines) + "\n")


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with `changes`, table by table."""
    joined = {**base}
    for key, value in changes.items():
        joined[key] = merged(joined.get(key, {}), value) if isinstance(value, dict) else value
    return joined


def scenario_file(folder: Path, **changes: Any) -> Path:
    """The tiny scenario with `changes`, and its images beside it when they are the npz file."""
    raw = merged(BASE, changes)
    if "requests" in changes:
        del raw["request"]
    if raw["data"]["source"] == "npz" and not (folder / "images.npz").exists():
        write_npz(folder)
    path = folder / "tiny.toml"
    path.write_text(tomli_w.dumps(raw))
    return path


def scenario(folder: Path, **changes: Any) -> Scenario:
    return read_scenario("", scenario_file(folder, **changes))


def prepared(folder: Path, **changes: Any) -> tuple[Plan, Sites]:
    """The plan and the sites of the tiny scenario."""
    wanted = scenario(folder, **changes)
    sites = make_sites(wanted, folder / "cache")
    return plan_for(wanted, sites), sites


def run(plan: Plan, sites: Sites, folder: Path, **hooks: Any) -> dict[str, Any]:
    """Carry out `plan` in this process, without a report."""
    grid = LocalGrid(simulated_client(sites.configs), len(sites.configs))
    return Coordinator(grid, plan, RunFolder(folder), **hooks).run()


def hurried(plan: Plan) -> Plan:
    """The same plan without what decides nothing: no retrained model to compare with, and no scores of every round."""
    return plan.model_copy(update={"retrain": False, "rounds": plan.rounds.model_copy(update={"watch": False})})


def asked_of(plan: Plan, sites: Sites, folder: Path, *kinds: type[R]) -> list[R]:
    """Run the plan; return the messages of these kinds that went to the sites, in their order."""
    asked: list[R] = []

    class Watching(LocalGrid):
        def push_messages(self, messages: Any) -> Any:
            messages = list(messages)
            for kind in kinds:
                asked.extend(kind.from_record(x.content) for x in messages if x.metadata.message_type == kind.KIND)
            return super().push_messages(messages)

    Coordinator(Watching(simulated_client(sites.configs), len(sites.configs)), plan, RunFolder(folder)).run()
    return asked


def quiet(*_: object) -> None:
    """No progress."""


def events(folder: Path) -> list[Json]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def numbers(results: Json) -> Json:
    """What must repeat: scores and weights, not seconds."""
    return {
        "digest": results["unlearned"]["digest"],
        **{model: results[model]["pooled"] for model in ("original", "retrained", "unlearned")},
        "rounds": [entry["pooled"] for entry in results["unlearned"]["history"]],
    }


def same(a: Json, b: Json) -> bool:
    return json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)  # as text: NaN is not equal to itself
