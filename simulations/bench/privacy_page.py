"""What privacy of updates costs: a page and a picture."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from excise.common.files import write_atomically
from excise.server.drawing import FORGET, INK, RETAIN, draw, signed
from excise.server.verdict import number
from excise.simulations.bench.intervals import half_width, interval
from excise.simulations.bench.pages import paragraph
from excise.simulations.bench.privacy import ALL_THREE, DELTA, UNDISTURBED, variants
from excise.simulations.scenario import Scenario

SCORES = (
    ("forget accuracy", "forget_accuracy"),
    ("membership AUC", "membership_auc"),
    ("held-out accuracy", "held_out_accuracy"),
)
CHEAP, STRONG = 0.02, 10
"""Loss of held-out accuracy that hardly matters, and ε that is worth the name; both are only for the page's sentences."""
Seeds = Mapping[int, Mapping[str, Any]]
"""What `privacy.run_seed` gave of each seed."""


def write_privacy_page(page: Path, scenario: Scenario, per_seed: Seeds) -> None:
    """Write the page, and its picture beside it, of the same name.

    Raises
    ------
    StorageError : one of them cannot be written
    """
    picture = page.with_suffix(".svg")
    write_atomically(picture, privacy_picture(per_seed))
    titles = [title for title, _ in SCORES]
    lines = [
        f"# What privacy of updates costs on {scenario.name}",
        "",
        *paragraph(_told_of(scenario, per_seed)),
        "",
        *paragraph(_findings(per_seed)),
        "",
        f"![Scores under each setting, less the undisturbed run's]({picture.name})",
        "",
        f"| | ε of a site | {' | '.join(f'{title} − retrained' for title in titles)} | "
        f"{' | '.join(f'{title} − undisturbed' for title in titles)} |",
        "|---|" + "---|" * (2 * len(SCORES) + 1),
    ]
    for name in (UNDISTURBED, *_names()):
        gaps = [interval(_gaps(per_seed, name, key)) for _, key in SCORES]
        changes = [interval(_changes(per_seed, name, key)) if name != UNDISTURBED else "" for _, key in SCORES]
        lines.append(f"| {name} | {_epsilon(per_seed, name)} | {' | '.join(gaps + changes)} |")
    lines += [
        "",
        *paragraph(
            "A dash: in some seed the model was broken so far that a site could not go on. An update that is made sparse "
            "travels as before, zeros included: it tells less, and takes no fewer bytes. Losses, audits and numbers of images "
            "have no noise, whatever the setting."
        ),
        "",
        "Where the models stand:",
        "",
        f"| | {' | '.join(titles)} |",
        "|---|" + "---|" * len(SCORES),
    ]
    for title, model in (("deployed", "original"), ("retrained", "retrained"), (UNDISTURBED, "unlearned")):
        scores = [interval(_over(per_seed, UNDISTURBED, key, model)) for _, key in SCORES]
        lines.append(f"| {title} | {' | '.join(scores)} |")
    write_atomically(page, "\n".join([*lines, ""]))


def _told_of(scenario: Scenario, per_seed: Seeds) -> str:
    """What was done."""
    seeds = sorted(per_seed)
    of_statistics = statistics.fmean(_statistics_share(per_seed[seed]["lengths"]) for seed in seeds)
    medians = [f"{per_seed[seed]['median']:.3f}" for seed in seeds]
    spread = "with its 95 % interval" if len(seeds) > 1 else "of one seed alone, so nothing is claimed beyond it"
    return (
        f"Written by `excise bench privacy {scenario.name}`; seeds {', '.join(map(str, seeds))}, each with its own hospitals, "
        "scanners, splits and initial weights. Every run of a seed unlearns from the same deployed model, under one setting "
        "of `[policy.privacy]` at every site, and is compared with one retrained model and with the undisturbed run, which "
        f"has none. Mean {spread}. The clip is the median norm of the undisturbed run's updates, over all sites and rounds "
        f"of the seed ({', '.join(medians)}), or a fraction of it. Batch-norm statistics are {of_statistics:.0%} of an "
        "update's squared norm in the mean. `noise z`: clip 1×, and noise of z × clip on every number. "
        f"`{ALL_THREE}`: clip 1×, noise 0.01, and the largest tenth kept. ε is that of the site with the largest, at "
        f"δ = {DELTA:g} after the run's rounds (docs/adr/0019-privacy-of-updates.md). The coordinator's bound on an update's "
        "norm is off here, so that what noise does is seen and not refused."
    )


def privacy_picture(per_seed: Seeds) -> str:
    """SVG: for each score and setting the change from the undisturbed run, a dot for each seed, mean and interval."""
    names = _names()

    def paint(figure: Figure) -> None:
        for axes, (title, key) in zip(figure.subplots(1, len(SCORES), sharey=True), SCORES, strict=True):
            axes.axvline(0, color=INK, linestyle="--", linewidth=1.2)
            for row, name in enumerate(names):
                values = [value for value in _changes(per_seed, name, key) if not math.isnan(value)]
                colour = FORGET if "noise" in name or name == ALL_THREE else RETAIN
                axes.scatter(values, [row] * len(values), s=14, color=colour, alpha=0.45, linewidths=0)
                if values:
                    marker = "D" if colour == FORGET else "o"
                    axes.errorbar(
                        statistics.fmean(values), row, xerr=half_width(values), color=colour, marker=marker, capsize=3
                    )
            axes.set_title(title)
            axes.set_yticks(range(len(names)), names)
            axes.grid(visible=False, axis="y")
        figure.axes[0].invert_yaxis()

    return draw("privacy", "Scores under each setting of privacy, less those of the undisturbed run", (11, 3.6), paint)


def _findings(per_seed: Seeds) -> str:
    """What the figures say, in sentences that hold for whatever they are."""

    def of(kind: str) -> list[str]:
        return [name for name in _names() if name.startswith(kind)]

    def moved(names: Sequence[str]) -> str:
        means = [[statistics.fmean(_changes(per_seed, name, key)) for name in names] for _, key in SCORES]
        furthest: list[float] = [max(of_score, key=abs) for of_score in means]
        told = [f"{title} by {signed(round(far, 3))}" for (title, _), far in zip(SCORES, furthest, strict=True)]
        return ", ".join(told)

    parts = [
        f"In the mean over the seeds ({len(per_seed)}), and under the setting that moved it most, clipping moved "
        f"{moved(of('clip'))}; keeping the largest numbers alone moved {moved(of('keep'))}. (Up, of forget accuracy and "
        "AUC, is towards the deployed model, which forgot nothing.)"
    ]
    cost = {name: -statistics.fmean(_changes(per_seed, name, "held_out_accuracy")) for name in of("noise")}
    if cheap := [name for name in of("noise") if cost[name] <= CHEAP]:
        parts.append(
            f"The most noise that took no more than {CHEAP:g} of held-out accuracy was `{cheap[-1]}`: "
            f"ε = {_epsilon(per_seed, cheap[-1])}."
        )
    if strong := [name for name in of("noise") if max(_epsilons(per_seed, name)) <= STRONG]:
        took = "broke the model" if math.isnan(cost[strong[0]]) else f"took {cost[strong[0]]:.3f} of held-out accuracy"
        parts.append(f"The least noise with ε of at most {STRONG} was `{strong[0]}`, and {took}.")
    return " ".join(parts)


def _names() -> list[str]:
    return list(variants(1.0))


def _over(per_seed: Seeds, name: str, key: str, model: str = "unlearned") -> list[float]:
    """A score of a model in a run, by seed; NaN where the run failed."""
    runs = [per_seed[seed]["results"][name] for seed in sorted(per_seed)]
    return [number(run["scores"][model][key]) if "scores" in run else math.nan for run in runs]


def _changes(per_seed: Seeds, name: str, key: str) -> list[float]:
    here, before = _over(per_seed, name, key), _over(per_seed, UNDISTURBED, key)
    return [a - b for a, b in zip(here, before, strict=True)]


def _gaps(per_seed: Seeds, name: str, key: str) -> list[float]:
    here, retrained = _over(per_seed, name, key), _over(per_seed, UNDISTURBED, key, "retrained")
    return [a - b for a, b in zip(here, retrained, strict=True)]


def _epsilons(per_seed: Seeds, name: str) -> list[float]:
    """ε of every site and seed; infinite where updates had no noise."""
    found = [told for seed in sorted(per_seed) for told in per_seed[seed]["results"][name]["epsilon"].values()]
    return [math.inf if told is None else told for told in found]


def _epsilon(per_seed: Seeds, name: str) -> str:
    """The largest ε of any site and seed."""
    largest = max(_epsilons(per_seed, name))
    return "∞" if math.isinf(largest) else f"{largest:,.0f}" if largest >= 100 else f"{largest:.3g}"


def _statistics_share(lengths: Mapping[str, Sequence[float]]) -> float:
    """Share of the squared norm that is batch-norm statistics', in the mean over the updates."""
    return statistics.fmean(1 - (parameters / total) ** 2 for total, parameters in lengths.values() if total > 0)
