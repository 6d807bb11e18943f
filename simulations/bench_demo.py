"""The demo's figures over several seeds, with what each part of the method buys beside them: docs/results/brain-mri.md.

Every variant of a seed starts from the same deployed model and is compared with the same retrained reference. A seed that is
done is kept in its folder and not run again.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from excise.common.files import write_atomically
from excise.common.metrics import tug_of_war
from excise.common.settings import PRESETS, TargetSettings, UnlearningSettings
from excise.server.record import RunFolder
from excise.simulations.engine import Backend, run_plan
from excise.simulations.run import plan_for
from excise.simulations.scenario import Scenario
from excise.simulations.sites import make_sites

Progress = Callable[[str, int, int, str], None]


def variants(ours: UnlearningSettings) -> dict[str, UnlearningSettings]:
    """Ours, and ours with one part taken away at a time; last the authors' published settings."""
    return {
        "excise": ours,
        "`nearest` targets": ours.model_copy(update={"target": TargetSettings(kind="nearest")}),
        "plain FedAvg weights": ours.model_copy(update={"weights": "fedavg"}),
        "without distillation": ours.model_copy(update={"local": ours.local.model_copy(update={"distil": 0.0})}),
        "`published` preset": PRESETS["published"],
    }


def run_seed(scenario: Scenario, home: Path, cache: Path, backend: Backend, progress: Progress) -> dict[str, Any]:
    """Results of every variant for the scenario's seed, by name; from ``home/results.json`` when they are there."""
    kept = home / "results.json"
    if kept.exists():
        found: dict[str, Any] = json.loads(kept.read_text())
        return found
    sites = make_sites(scenario, cache)
    results: dict[str, Any] = {}
    plan = plan_for(scenario, sites)
    for name, settings in variants(scenario.unlearning).items():
        folder = home / "".join(c if c.isalnum() else "-" for c in name).strip("-")
        if results:  # the models that all variants share were made by the first
            first = home / "excise" / "checkpoints"
            plan = plan.model_copy(
                update={"deployed": first / "original.safetensors", "retrained": first / "retrained.safetensors"}
            )
        results[name] = run_plan(
            plan.model_copy(update={"unlearning": settings}), sites.configs, RunFolder(folder), backend, progress
        )
    RunFolder(home).write_json("results.json", results)
    found = json.loads(kept.read_text())  # as a later call will read it: NaN is null
    return found  # noqa: RET504 - the annotated name tells mypy what json gives


def interval(values: Sequence[float]) -> str:
    """Mean and the half width of its 95 % interval (Student's t), three decimals; a true minus sign."""
    mean = statistics.fmean(values)
    text = f"{mean:.3f}"
    if len(values) > 1:
        t = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}.get(len(values), 2.0)  # 97.5 % quantile, by number of seeds
        text += f" ± {t * statistics.stdev(values) / math.sqrt(len(values)):.3f}"
    return text.replace("-", "−")


SCORES = (
    ("forget accuracy", "forget_accuracy"),
    ("retain accuracy", "retain_accuracy"),
    ("held-out accuracy", "held_out_accuracy"),
    ("membership AUC", "membership_auc"),
)
GAPS = ("forget_accuracy", "membership_auc", "held_out_accuracy")


def write_page(page: Path, scenario: Scenario, per_seed: Mapping[int, Mapping[str, Any]]) -> None:
    """Write the result page from the results of every seed."""
    seeds = sorted(per_seed)
    ours = [per_seed[seed]["excise"] for seed in seeds]
    lines = [
        "# brain-mri: one scanner forgotten",
        "",
        f"Written by `make bench-demo`; seeds {', '.join(map(str, seeds))}: each draws its own hospitals, scanners, splits",
        "and initial weights. Mean and 95 % interval over the seeds. Gaps are to the model retrained without the forget set,",
        "with the same recipe and seed. Br35H images; hospitals, scanners and their response are simulated.",
        "",
        "| | " + " | ".join(name for name, _ in SCORES) + " | ToW | forget gap | AUC gap | held-out gap |",
        "|---|" + "---|" * (len(SCORES) + 4),
    ]
    for title, model in (("original", "original"), ("retrained", "retrained")):
        scores = [interval([run[model]["pooled"][key] for run in ours]) for _, key in SCORES]
        lines.append(f"| {title} | " + " | ".join(scores) + " | | | | |")
    for name in variants(scenario.unlearning):
        runs = [per_seed[seed][name] for seed in seeds]
        cells = [interval([run["unlearned"]["pooled"][key] for run in runs]) for _, key in SCORES]
        cells.append(interval([_tow(run) for run in runs]))
        cells += [interval([_gap(run, key) for run in runs]) for key in GAPS]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", "## Cost of excise against retraining", "", "| seed | images | wall time | ratio |", "|---|---|---|---|"]
    for seed, run in zip(seeds, ours, strict=True):
        a, b = run["unlearned"]["cost"], run["retrained"]["cost"]
        lines.append(
            f"| {seed} | {a['passes']:,.0f} of {b['passes']:,.0f} | {a['seconds']:.1f} s of {b['seconds']:.1f} s | "
            f"1/{b['passes'] / a['passes']:.1f} of the images, 1/{b['seconds'] / a['seconds']:.1f} of the time |"
        )
    lines += [
        "",
        "## By seed",
        "",
        "| seed | forget: retrained → excise | AUC: retrained → excise | held-out: retrained → excise |",
    ]
    lines.append("|---|---|---|---|")
    for seed, run in zip(seeds, ours, strict=True):
        r, u = run["retrained"]["pooled"], run["unlearned"]["pooled"]
        pairs = [f"{r[key]:.3f} → {u[key]:.3f}" for key in GAPS]
        lines.append(f"| {seed} | " + " | ".join(pairs) + " |")
    lines += ["", "## Settings", "", "```json", scenario.unlearning.model_dump_json(indent=2), "```", ""]
    write_atomically(page, "\n".join(lines))


def _tow(run: Mapping[str, Any]) -> float:
    return tug_of_war(*(_gap(run, key) for key in ("forget_accuracy", "retain_accuracy", "held_out_accuracy")))


def _gap(run: Mapping[str, Any], key: str) -> float:
    gap: float = run["unlearned"]["pooled"][key] - run["retrained"]["pooled"][key]
    return gap
