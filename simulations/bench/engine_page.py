"""The page and the picture of `excise bench engine`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from excise.common.files import write_atomically
from excise.common.settings import UnlearningSettings
from excise.server.drawing import FORGET, INK, RETAIN, draw
from excise.simulations.bench.engine import FORGOTTEN, SEARCH, SEARCHED
from excise.simulations.bench.fashion_models import RETRAININGS, SPEC, TRAINED_ON
from excise.simulations.bench.intervals import interval, judged
from excise.simulations.bench.pages import paragraph

RACE_GOAL, SEARCH_GOAL, MEMORY_GOAL = 5.0, 3.0, 4.0
"""At least so many times as fast as the published procedure, and as the naive search; less memory than so many models."""
FORGOTTEN_GOAL, RETAIN_GOAL, SAMPLES_GOAL, RESURFACING_GOAL = 0.01, 0.005, 0.03, 0.02
"""Most accuracy on a forgotten class; most loss of retain accuracy, and most gap of forgotten samples, against retrained; how
much more than the retrained model an epoch on retain images may bring back."""

Results = Mapping[str, Any]
Rows = list[str]


def write_engine_page(page: Path, results: Results, settings: UnlearningSettings) -> None:
    """Write the page, and its picture beside it, of the same name.

    Parameters
    ----------
    results : what `engine.run_engine` measured
    settings : ours for a whole class

    Raises
    ------
    StorageError : one of them cannot be written
    """
    picture = page.with_suffix(".svg")
    write_atomically(picture, engine_picture(results))
    seeds = results["seeds"]
    lines = [
        "# The engine: how fast, and how well",
        "",
        *paragraph(
            "Written by `excise bench engine`. Every ratio is of two ways measured in turn, in one run, on one "
            f"machine. Fashion-MNIST, {TRAINED_ON:,} of its training images, an all-convolutional net at "
            f"{SPEC.width:g} of its published width, class {FORGOTTEN}; seeds 0 to {len(seeds) - 1}, each with its own "
            "models. Accuracies on the class and on the others are on the test file unless told otherwise."
        ),
        "",
        f"![Time to be as good as the published procedure, the boundary search, and cost of composing]({picture.name})",
        "",
        "## Goals",
        "",
        "| goal | measured | reached |",
        "|---|---|---|",
        *(f"| {goal} | {told} | {reached} |" for goal, told, reached in goals(results)),
        "",
        *paragraph(
            "Speed, the class itself and its coming back: every seed. The rest: the mean; *undecided* where its interval lies "
            "on both sides of the limit. The settings for a class were chosen on seed 0 of this very task; the other seeds "
            "were not looked at before. Those for samples come from brain-mri "
            '([ADR 10](../adr/0010-self-correcting-overshoot.md)); that they take `level = "retain"` here was settled '
            "before anything was measured with it on these seeds. Label shift and batch norm were settled on seeds 5 and 6 of "
            "this task, after seed 0 had been seen without ([ADR 14](../adr/0014-label-shift.md))."
        ),
        "",
        *_race(seeds),
        *_class(seeds),
        *_samples(seeds),
        *_composing(results["composing"]),
        "## Settings for a class",
        "",
        "```json",
        settings.model_dump_json(indent=2),
        "```",
        "",
    ]
    write_atomically(page, "\n".join(lines))


def goals(results: Results) -> Iterator[tuple[str, str, str]]:
    """Each goal in words, what was measured, and whether it was reached: by every seed (speed), or by the mean (quality)."""
    seeds = results["seeds"]
    races, searches = [_ratio(seed["race"], "published") for seed in seeds], [_ratio(seed["search"]) for seed in seeds]
    won = all(seed["race"]["as_good"] for seed in seeds) and min(races) >= RACE_GOAL
    yield f"as good as the published procedure, at least {RACE_GOAL:g} times as fast", _told(races), _yes(won)
    fast = min(searches) >= SEARCH_GOAL
    yield f"search at least {SEARCH_GOAL:g} times as fast as its naive form", _told(searches), _yes(fast)
    memory = max(one["models"] for one in results["composing"])
    sites = max(one["sites"] for one in results["composing"])
    yield f"composing {sites:,} sites below {MEMORY_GOAL:g} models of memory", f"{memory:.2f}", _yes(memory < MEMORY_GOAL)
    for name in _ours(seeds[0]):
        scores = [(seed["class"][name], seed["class"]["retrained"]) for seed in seeds]
        most = max(max(ours["forget_test"], ours["forget_train"]) for ours, _ in scores)
        yield f"class, {name}: accuracy on it at most {FORGOTTEN_GOAL:g}", f"{most:.3f}", _yes(most <= FORGOTTEN_GOAL)
        gaps = [ours["retain_test"] - retrained["retain_test"] for ours, retrained in scores]
        goal = f"class, {name}: others at least −{RETAIN_GOAL:g} from retrained"
        yield goal, interval(gaps), judged(gaps, -RETAIN_GOAL, math.inf)
    back = [_came_back(seed["class"][name]) - _came_back(seed["class"]["retrained"]) for seed in seeds for name in _ours(seed)]
    goal = f"class: an epoch on retain images brings back at most {RESURFACING_GOAL:g} more than in the retrained model"
    yield goal, f"{max(back):.3f}".replace("-", "−"), _yes(max(back) <= RESURFACING_GOAL)
    for share in seeds[0]["samples"]:
        for key, what in (("forget", "forget accuracy"), ("auc", "membership AUC")):
            gaps = [seed["samples"][share]["excise"][key] - seed["samples"][share]["retrained"][key] for seed in seeds]
            goal = f"{float(share):.0%} of the class: {what} within {SAMPLES_GOAL:g} of retrained"
            yield goal, interval(gaps), judged(gaps, -SAMPLES_GOAL, SAMPLES_GOAL)
        told = {
            "forget accuracy": [_moved_more(seed, share, "forget") for seed in seeds],
            "forget accuracy, beside that of unseen images,": [
                _moved_more(seed, share, "forget") - _moved_more(seed, share, "unseen") for seed in seeds
            ],
            "membership AUC": [_moved_more(seed, share, "auc") for seed in seeds],
        }
        for what, moved in told.items():
            goal = f"{float(share):.0%} of the class: such an epoch raises {what} at most {RESURFACING_GOAL:g} more"
            yield goal, interval(moved), judged(moved, -math.inf, RESURFACING_GOAL)


def _yes(reached: bool) -> str:
    return "yes" if reached else "**no**"


def _told(ratios: Sequence[float]) -> str:
    return ", ".join(f"{ratio:.1f}" for ratio in ratios)


def _ratio(pair: Results, slow: str = "naive") -> float:
    """How many times as fast ours is, of seconds or of finishes in a race."""
    a, b = pair[slow], pair["excise"]
    return float(a["seconds"] / b["seconds"] if isinstance(a, Mapping) else a / b)


def _moved_more(seed: Results, share: str, key: str) -> float:
    """How much more a score of ours rises in the retain-only epoch than the retrained model's does."""
    ours, retrained = (seed["samples"][share][name] for name in ("excise", "retrained"))
    return float((ours[f"{key}_later"] - ours[key]) - (retrained[f"{key}_later"] - retrained[key]))


def _ours(seed: Results) -> Rows:
    return [name for name in seed["class"] if name not in ("original", "retrained")]


def _came_back(scores: Results) -> float:
    """By how much the accuracy on the class rises in the retain-only epoch."""
    return float(scores["resurfaced"] - scores["forget_test"])


def _race(seeds: Sequence[Results]) -> Rows:
    rows = [
        "## Race: until as good as the published procedure",
        "",
        *paragraph(
            "As good: at most its accuracy on the class, and at least its accuracy on the others. Ours stops at the "
            "first round that is as good, as the test images tell, and this telling is not counted; the published "
            "procedure is one round of ten epochs and has no such stop. *Whole*: ours to the end of its schedule, "
            "once. The published procedure uses no retain images, ours mostly such. Of five races in turn the one of "
            "median ratio. On brain-mri there is nothing to race for: the published procedure never comes near the "
            "retrained model ([figures](brain-mri.md))."
        ),
        "",
        "| seed | | seconds | images | class | others | times as fast |",
        "|---|---|---|---|---|---|---|",
    ]
    for number, seed in enumerate(seeds):
        ratios = {"excise": f"**{_ratio(seed['race'], 'published'):.1f}**" if seed["race"]["as_good"] else "never as good"}
        for name in ("published", "excise", "whole"):
            one, ratio = seed["race"][name], ratios.get(name, "")
            told = f"{one['seconds']:.2f} | {one['passes']:,} | {one['forget']:.3f} | {one['retain']:.3f}"
            rows.append(f"| {number} | {name} | {told} | {ratio} |")
    rows += [
        "",
        *paragraph(
            f"The boundary search alone, {SEARCHED} images, at most {SEARCH.max_steps} steps; medians of five in turn. "
            "Naive: gradients of the weights as well, every image in every step. *Alike*: pixels of the last points "
            "that agree to 1e-4."
        ),
        "",
        "| seed | naive, seconds | excise, seconds | times as fast | alike |",
        "|---|---|---|---|---|",
    ]
    for number, seed in enumerate(seeds):
        search = seed["search"]
        rows.append(
            f"| {number} | {search['naive']:.2f} | {search['excise']:.2f} | **{_ratio(search):.1f}** | {search['alike']:.2%} |"
        )
    return [*rows, ""]


def _class(seeds: Sequence[Results]) -> Rows:
    rows = [
        "## A class, at the end of the schedule",
        "",
        "Mean and 95 % interval over the seeds. Sites: the real apps, the images dealt to eight, the class at one or all.",
        "*Resurfaced*: on the class, after one more epoch on retain images alone.",
        "",
        "| | class, unseen | class, training images | others | class, resurfaced |",
        "|---|---|---|---|---|",
    ]
    for name in seeds[0]["class"]:
        keys = ("forget_test", "forget_train", "retain_test", "resurfaced")
        rows.append(f"| {name} | " + " | ".join(interval([seed["class"][name][key] for seed in seeds]) for key in keys) + " |")
    return [*rows, ""]


def _samples(seeds: Sequence[Results]) -> Rows:
    rows = [
        "## A share of a class: images, each for itself",
        "",
        *paragraph(
            "Mean and 95 % interval over the seeds. Targets are calibrated on half of the class's unseen images; the attack "
            'compares with the other half. The images are drawn at random, so the targets are those of `level = "retain"` '
            "(docs/method.md); beside it the default for devices and patients. 1 % are some twenty images. Retrained: the "
            f"mean of {RETRAININGS} models."
        ),
        "",
        *paragraph(
            "*Later*: after one more epoch on retain images alone. Such an epoch can move the accuracy on a class as a whole, "
            "of any model. Where it moves on images that nobody trained on as it does on forgotten ones, no memory came back; "
            "the difference between the two, and the attack, tell of that."
        ),
        "",
        "| share | | forget accuracy | unseen, of the class | membership AUC | others "
        "| forget, later | unseen, later | AUC, later |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for share, models in seeds[0]["samples"].items():
        for name in models:
            keys = ("forget", "unseen", "auc", "retain_test", "forget_later", "unseen_later", "auc_later")
            cells = [interval([seed["samples"][share][name][key] for seed in seeds]) for key in keys]
            rows.append(f"| {float(share):.0%} | {name} | " + " | ".join(cells) + " |")
    return [*rows, ""]


def _composing(composed: Sequence[Results]) -> Rows:
    return [
        "## Composing updates of a ResNet-18 (11 million weights)",
        "",
        "Memory is what composing needs at its peak beyond the base and one update, in models of float32.",
        "",
        "| sites | seconds | seconds per site | memory, models |",
        "|---|---|---|---|",
        *(
            f"| {one['sites']:,} | {one['seconds']:.2f} | {one['seconds'] / one['sites']:.3f} | {one['models']:.2f} |"
            for one in composed
        ),
        "",
    ]


def engine_picture(results: Results) -> str:
    """SVG: the race and the search by seed, and composing by number of sites."""
    seeds, composed = results["seeds"], results["composing"]

    def paint(figure: Figure) -> None:
        race, search, seconds, memory = figure.subplots(1, 4)
        pairs = (
            (race, "published", [(seed["race"]["published"]["seconds"], seed["race"]["excise"]["seconds"]) for seed in seeds]),
            (search, "naive", [(seed["search"]["naive"], seed["search"]["excise"]) for seed in seeds]),
        )
        for axes, slow, values in pairs:
            for i, (name, colour) in enumerate(((slow, RETAIN), ("excise", FORGET))):
                at = [seed + (i - 0.5) * 0.36 for seed in range(len(seeds))]
                axes.bar(at, [pair[i] for pair in values], 0.34, color=colour, hatch="" if i else "///", label=name)
            axes.set_xticks(range(len(seeds)), [f"seed {seed}" for seed in range(len(seeds))])
            axes.set_ylim(0, 1.2 * max(map(max, values)))  # room for the legend above the bars
            axes.legend(loc="upper center", ncols=2)
        race.set(title="until as good as published", ylabel="seconds")
        search.set(title="boundary search", ylabel="seconds")
        sites = [one["sites"] for one in composed]
        seconds.plot(sites, [one["seconds"] for one in composed], color=RETAIN, marker="o")
        seconds.set(title="composing, ResNet-18", xlabel="sites", ylabel="seconds")
        memory.plot(sites, [one["models"] for one in composed], color=RETAIN, marker="o")
        memory.axhline(MEMORY_GOAL, color=INK, linestyle="--", linewidth=1.2)
        memory.set(title="memory of composing", xlabel="sites", ylabel="models")
        memory.set_ylim(0, MEMORY_GOAL * 1.2)

    label = "Seconds until as good as the published procedure, of the boundary search, and cost of composing by sites"
    return draw("engine", label, (14, 3.6), paint)
