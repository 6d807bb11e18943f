"""The page and the picture of `excise bench engine`."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from excise.common.files import write_atomically
from excise.common.settings import UnlearningSettings
from excise.server.drawing import FORGET, INK, RETAIN, draw

RACE_GOAL, SEARCH_GOAL, MEMORY_GOAL = 5.0, 3.0, 4.0
"""At least so many times as fast as the published procedure, and as the naive search; less memory than so many models."""


def write_engine_page(page: Path, results: Mapping[str, Any], settings: UnlearningSettings) -> None:
    """Write the page, and its picture beside it, of the same name.

    Raises
    ------
    StorageError : one of them cannot be written
    """
    picture = page.with_suffix(".svg")
    write_atomically(picture, engine_picture(results))
    races, search, composed = results["races"], results["search"], results["composing"]
    ratios = [race["published"]["seconds"] / race["excise"]["seconds"] for race in races]
    search_ratio = search["naive"] / search["excise"]
    memory = max(one["models"] for one in composed)
    lines = [
        "# The engine: how fast, and how well",
        "",
        "Written by `excise bench engine`. Every ratio is of two ways measured in one run, on one machine. Fashion-MNIST, one",
        f"class of ten, an all-convolutional net at a quarter of its published width; seeds 0 to {len(races) - 1}.",
        "",
        f"![Time to be as good as the published procedure, and cost of composing]({picture.name})",
        "",
        "## Race: until as good as the published procedure",
        "",
        "As good: at most its accuracy on unseen images of the class, and at least its accuracy on those of the others.",
        "Scoring between rounds is not counted. Seed 0: median of five.",
        "",
        "| seed | | seconds | images | forget | retain | times as fast |",
        "|---|---|---|---|---|---|---|",
    ]
    for seed, (race, ratio) in enumerate(zip(races, ratios, strict=True)):
        for name in ("published", "excise"):
            one = race[name]
            scores = f"{one['seconds']:.2f} | {one['passes']:,} | {one['forget']:.3f} | {one['retain']:.3f}"
            lines.append(f"| {seed} | {name} | {scores} | {f'**{ratio:.1f}**' if name == 'excise' else ''} |")
    lines += [
        "",
        "## Quality at the end of the schedule",
        "",
        "Accuracy on unseen images of the class / of the others; for excise also on the training images of the class.",
        "",
        "| seed | original | retrained | published | excise | excise, forgotten training images |",
        "|---|---|---|---|---|---|",
    ]
    for seed, quality in enumerate(results["quality"]):
        pairs = [
            f"{quality[name][0]:.3f} / {quality[name][1]:.3f}" for name in ("original", "retrained", "published", "excise")
        ]
        lines.append(f"| {seed} | {' | '.join(pairs)} | {quality['excise_on_training_images']:.3f} |")
    lines += [
        "",
        "## Composing updates of a ResNet-18 (11 million weights)",
        "",
        "Memory is what composing needs at its peak beyond the base and one update, in models of float32.",
        "",
        "| sites | seconds | seconds per site | memory, models |",
        "|---|---|---|---|",
    ]
    for one in composed:
        lines.append(
            f"| {one['sites']:,} | {one['seconds']:.2f} | {one['seconds'] / one['sites']:.3f} | {one['models']:.2f} |"
        )
    goals = (
        (f"race at least {RACE_GOAL:g} times as fast", f"{statistics.fmean(ratios):.1f}", min(ratios) >= RACE_GOAL),
        (f"search at least {SEARCH_GOAL:g} times the naive form", f"{search_ratio:.1f}", search_ratio >= SEARCH_GOAL),
        (f"composing below {MEMORY_GOAL:g} models", f"{memory:.2f}", memory < MEMORY_GOAL),
    )
    lines += ["", "## Goals", "", "| goal | measured | reached |", "|---|---|---|"]
    lines += [f"| {goal} | {told} | {'yes' if reached else '**no**'} |" for goal, told, reached in goals]
    lines += ["", "## Settings of excise", "", "```json", settings.model_dump_json(indent=2), "```", ""]
    write_atomically(page, "\n".join(lines))


def engine_picture(results: Mapping[str, Any]) -> str:
    """SVG: the race by seed, and composing by number of sites."""
    races: Sequence[Mapping[str, Any]] = results["races"]
    composed: Sequence[Mapping[str, Any]] = results["composing"]

    def paint(figure: Figure) -> None:
        race, seconds, memory = figure.subplots(1, 3)
        for i, (name, colour) in enumerate((("published", RETAIN), ("excise", FORGET))):
            at = [seed + (i - 0.5) * 0.36 for seed in range(len(races))]
            race.bar(at, [one[name]["seconds"] for one in races], 0.34, color=colour, hatch="" if i else "///", label=name)
        race.set_xticks(range(len(races)), [f"seed {seed}" for seed in range(len(races))])
        race.set(title="until as good as published", ylabel="seconds")
        race.legend()
        sites = [one["sites"] for one in composed]
        seconds.plot(sites, [one["seconds"] for one in composed], color=RETAIN, marker="o")
        seconds.set(title="composing, ResNet-18", xlabel="sites", ylabel="seconds")
        memory.plot(sites, [one["models"] for one in composed], color=RETAIN, marker="o")
        memory.axhline(MEMORY_GOAL, color=INK, linestyle="--", linewidth=1.2)
        memory.set(title="memory of composing", xlabel="sites", ylabel="models")
        memory.set_ylim(0, MEMORY_GOAL * 1.2)

    return draw("engine", "Seconds until as good as the published procedure, and cost of composing by sites", (11, 3.6), paint)
