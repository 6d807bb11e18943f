"""The figures of a scenario over several seeds: a page and a picture."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from excise.common.files import write_atomically
from excise.common.metrics import tug_of_war
from excise.server.drawing import FORGET, HELD_OUT, INK, RETAIN, draw, plain
from excise.server.verdict import number
from excise.simulations.bench.demo import AGAIN, REPEATS, variants
from excise.simulations.bench.intervals import half_width, interval, judged
from excise.simulations.scenario import Scenario

SCORES = (
    ("forget accuracy", "forget_accuracy"),
    ("retain accuracy", "retain_accuracy"),
    ("held-out accuracy", "held_out_accuracy"),
    ("membership AUC", "membership_auc"),
)
GAPS = {"forget_accuracy": (-0.04, 0.04), "membership_auc": (-0.05, 0.05), "held_out_accuracy": (-0.02, math.inf)}
"""Scores that must come near the retrained model's, and how near: the goal for the mean over the seeds."""
COST_GOAL = 1 / 8
"""Most that unlearning may cost, as a share of retraining's images and wall time."""


def averaged(results: Mapping[str, Any]) -> dict[str, Any]:
    """The variants of one seed, with the scores of the retrained model, and of ours, averaged over the repeats."""
    repeats = [run for name, run in results.items() if name == "excise" or name.startswith(AGAIN)]

    def mean(model: str) -> dict[str, float]:
        pooled = [run[model]["pooled"] for run in repeats]
        return {key: statistics.fmean(number(scores[key]) for scores in pooled) for _, key in SCORES}

    retrained, ours = mean("retrained"), mean("unlearned")

    def scored(run: Mapping[str, Any], model: str, pooled: Mapping[str, float] | None = None) -> dict[str, Any]:
        found = run[model]["pooled"] if pooled is None else pooled
        return {**run[model], "pooled": {key: number(value) for key, value in found.items()}}  # None, in JSON, is NaN

    return {
        name: {
            "original": scored(run, "original"),
            "retrained": scored(run, "retrained", retrained),
            "unlearned": scored(run, "unlearned", ours if name == "excise" else None),
        }
        for name, run in results.items()
        if not name.startswith(AGAIN)
    }


def write_page(
    page: Path,
    scenario: Scenario,
    per_seed: Mapping[int, Mapping[str, Any]],
    fresh: Mapping[int, Mapping[str, Any]] | None = None,
) -> None:
    """Write the scenario's result page from the results of every seed, and its picture beside it, of the same name.

    Parameters
    ----------
    per_seed : results of every variant by seed
    fresh : results of ours alone for further seeds

    Raises
    ------
    StorageError : one of them cannot be written
    """
    per_seed = {seed: averaged(results) for seed, results in per_seed.items()}
    fresh = {seed: averaged(results) for seed, results in (fresh or {}).items()}
    picture = page.with_suffix(".svg")
    write_atomically(picture, results_picture(scenario, per_seed))
    seeds = sorted(per_seed)
    ours = [per_seed[seed]["excise"] for seed in seeds]
    lines = [
        f"# {scenario.name}: forgotten is `{scenario.request.where}`",
        "",
        f"Written by `excise bench demo {scenario.name}`; seeds {', '.join(map(str, seeds))}: each draws its own hospitals,",
        "scanners, splits and initial weights. Mean and 95 % interval over the seeds. Gaps are to the model retrained by the",
        f"same recipe without the forget set. Each seed retrains {REPEATS} times, and unlearns as often with excise, and once",
        "with each other variant; scores are the means, the cost is that of the first. Br35H images; hospitals, scanners and",
        "their response are simulated.",
        "",
        f"![Scores and cost of each variant beside the retrained model]({picture.name})",
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
    theirs = [per_seed[seed]["`published` preset"] for seed in seeds]
    lines += ["", "## Goals", "", "| goal | excise | reached | `published` preset | reached |", "|---|---|---|---|---|"]
    for (goal, told, reached), (_, by_them, them) in zip(_goals(ours), _goals(theirs, ours), strict=True):
        lines.append(f"| {goal} | {told} | {reached} | {by_them} | {them} |")
    lines += [
        "",
        "Reached: by the mean. *Undecided*: the interval reaches over the limit, so other seeds may well say otherwise.",
    ]
    if fresh:
        lines += _fresh_lines(ours, [fresh[seed]["excise"] for seed in sorted(fresh)], sorted(fresh))
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


def _fresh_lines(ours: Sequence[Mapping[str, Any]], fresh: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> list[str]:
    """Goals over further seeds, which had no part in any choice, and over all."""
    quality = {goal: (told, reached) for goal, told, reached in _goals(ours)[: len(GAPS)]}
    alone = {goal: (told, reached) for goal, told, reached in _goals(fresh)[: len(GAPS)]}
    both = {goal: (told, reached) for goal, told, reached in _goals([*ours, *fresh])[: len(GAPS)]}
    lines = [
        "",
        f"### Seeds {seeds[0]} to {seeds[-1]} as well",
        "",
        "Five seeds hardly decide: a held-out set has some hundred patients. These further seeds were run after every choice",
        "was made, excise alone; their cost is not told.",
        "",
        "| goal | above | further seeds | all seeds | reached by all |",
        "|---|---|---|---|---|",
    ]
    return lines + [
        f"| {goal} | {quality[goal][0]} | {alone[goal][0]} | {both[goal][0]} | {both[goal][1]} |" for goal in quality
    ]


def results_picture(scenario: Scenario, per_seed: Mapping[int, Mapping[str, Any]]) -> str:
    """SVG: every score of every model, a dot for each seed, mean and interval; the goal is shaded round the retrained mean."""
    ours = [results["excise"] for results in per_seed.values()]
    runs_of = {name: [results[name] for results in per_seed.values()] for name in variants(scenario.unlearning)}
    rows = {"original": ours, "retrained": ours, **runs_of}

    def paint(figure: Figure) -> None:
        panels = figure.subplots(1, len(SCORES) + 1, sharey=True)
        for axes, (title, key) in zip(panels, SCORES, strict=False):
            level = statistics.fmean(run["retrained"]["pooled"][key] for run in ours)
            axes.axvline(level, color=INK, linestyle="--", linewidth=1.2)
            if key in GAPS:
                low, high = (level + gap for gap in GAPS[key])
                axes.axvspan(low, min(high, 1.0), color=HELD_OUT, alpha=0.15, linewidth=0)
            for row, (name, runs) in enumerate(rows.items()):
                model = name if name in ("original", "retrained") else "unlearned"
                _dots(axes, row, [run[model]["pooled"][key] for run in runs], name == "excise")
            axes.set_title(title)
        cost = panels[-1]
        cost.axvspan(1e-3, COST_GOAL, color=HELD_OUT, alpha=0.15, linewidth=0)
        for row, (name, runs) in enumerate(rows.items()):
            if name in runs_of:
                _dots(cost, row, [_share(a, b, "passes") for a, b in zip(runs, ours, strict=True)], name == "excise")
        cost.set_xscale("log")
        cost.set_xlim(5e-3, 1)
        cost.xaxis.set_major_formatter(FuncFormatter(plain))
        cost.set_title("images ÷ retraining's")
        panels[0].set_yticks(range(len(rows)), [name.replace("`", "") for name in rows])
        panels[0].invert_yaxis()
        for axes in panels:
            axes.grid(visible=False, axis="y")

    label = "Scores and cost of each variant over the seeds, beside the original and the retrained model"
    return draw("bench", label, (12.5, 3.6), paint)


def _dots(axes: Axes, row: int, values: Sequence[float], ours: bool) -> None:
    colour = FORGET if ours else RETAIN
    axes.scatter(values, [row] * len(values), s=14, color=colour, alpha=0.45, linewidths=0)
    mean, half = statistics.fmean(values), half_width(values)
    axes.errorbar(mean, row, xerr=half, color=colour, marker="D" if ours else "o", markersize=6 if ours else 5, capsize=3)


def _goals(runs: Sequence[Mapping[str, Any]], payers: Sequence[Mapping[str, Any]] | None = None) -> list[tuple[str, str, str]]:
    """Each goal in words, the mean over the seeds, and whether it was reached, and by all of the interval.

    `payers` are the runs that retrained, when `runs` did not.
    """
    told, names = [], {key: name for name, key in SCORES}
    for key, (low, high) in GAPS.items():
        gaps = [_gap(run, key) for run in runs]
        within = f"within {high:g} of" if high < math.inf else f"at least −{-low:g} from"
        told.append((f"{names[key]} {within} retrained", interval(gaps), judged(gaps, low, high)))
    for key, name in (("passes", "images"), ("seconds", "wall time")):
        share = statistics.fmean(_share(run, payer, key) for run, payer in zip(runs, payers or runs, strict=True))
        told.append(
            (
                f"at most 1/{1 / COST_GOAL:g} of retraining's {name}",
                f"1/{1 / share:.1f}",
                "yes" if share <= COST_GOAL else "**no**",
            )
        )
    return told


def _share(run: Mapping[str, Any], ours: Mapping[str, Any], key: str) -> float:
    """Cost of unlearning in `run` as a share of retraining's, which our own run of the same seed alone had to pay."""
    share: float = run["unlearned"]["cost"][key] / ours["retrained"]["cost"][key]
    return share


def _tow(run: Mapping[str, Any]) -> float:
    return tug_of_war(*(_gap(run, key) for key in ("forget_accuracy", "retain_accuracy", "held_out_accuracy")))


def _gap(run: Mapping[str, Any], key: str) -> float:
    gap: float = run["unlearned"]["pooled"][key] - run["retrained"]["pooled"][key]
    return gap
