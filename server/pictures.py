"""The pictures of a run's report, as SVG text. Every function returns "" when there is nothing to draw."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from excise.server.drawing import (
    BETTER,
    INK,
    LINES,
    MEMBERSHIP,
    SETS,
    WORSE,
    draw,
    legend_below,
    plain,
    short,
    signed,
)
from excise.server.verdict import number

Losses = Mapping[str, Sequence[Sequence[float]]]
"""Per set ("forget", "held_out"): the losses, and the number of images that each of them stands for."""


def round_curves(
    original: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
    retrained: Mapping[str, Any] | None,
    kept: int | None,
    label: str,
) -> str:
    """Accuracies and membership AUC after each unlearning round; round 0 is the original model, dashes are the retrained.

    `kept` is the round whose model was kept; it is marked.
    """
    told = [original, *(entry.get("pooled", {}) for entry in history)]
    if not any(told[1:]):
        return ""  # no round, or none that was watched
    rounds = [0, *(int(entry.get("round", i)) for i, entry in enumerate(history, 1))]

    def paint(figure: Figure) -> None:
        left, right = figure.subplots(1, 2, width_ratios=(1.7, 1))
        curves = (
            (left, "forget", "forget_accuracy", *SETS["forget"]),
            (left, "retain", "retain_accuracy", *SETS["retain"]),
            (left, "held-out", "held_out_accuracy", *SETS["held-out"]),
            (right, "unlearned", "membership_auc", MEMBERSHIP, "D"),
        )
        for axes, name, key, colour, marker in curves:
            axes.plot(rounds, [number(pooled.get(key)) for pooled in told], color=colour, marker=marker, label=name)
            level = number((retrained or {}).get(key))
            if not math.isnan(level):
                axes.axhline(level, color=colour, linestyle="--", linewidth=1.4)
        right.axhline(0.5, color=INK, linestyle=":", linewidth=1.2, label="chance")
        if kept is not None:
            for axes in (left, right):
                axes.axvspan(kept - 0.3, kept + 0.3, color=INK, alpha=0.12, linewidth=0, label="kept round")
        left.plot([], [], color=INK, linestyle="--", linewidth=1.4, label="retrained (same colour)")
        right.plot([], [], color=MEMBERSHIP, linestyle="--", linewidth=1.4, label="retrained")
        for axes, title in ((left, "accuracy"), (right, "membership AUC")):
            axes.set(title=title, xlabel="unlearning round")
            axes.set_xticks(rounds if len(rounds) <= 16 else rounds[:: math.ceil(len(rounds) / 12)])
            legend_below(axes, 3 if axes is left else 2)

    return draw("rounds", label, (9.6, 4.4), paint)


def loss_histograms(before: Losses, after: Losses, label: str) -> str:
    """Loss of forget and held-out images, before and after, on one logarithmic axis."""
    panels = [("before: original model", before), ("after: unlearned model", after)]
    values = [v for _, losses in panels for name in ("forget", "held_out") for v in _loss_points(losses, name)[0]]
    if not values:
        return ""
    floor, top = min(values), max(values)
    bins = np.geomspace(floor * 0.9, max(top, floor) * 1.1, 25)

    def paint(figure: Figure) -> None:
        for axes, (title, losses) in zip(figure.subplots(1, 2, sharex=True, sharey=True), panels, strict=True):
            for name, key, line in (("held-out", "held_out", "--"), ("forget", "forget", "-")):
                points, mass = _loss_points(losses, key)
                if len(points):
                    share, colour = mass / mass.sum(), SETS[name][0]
                    axes.hist(points, bins, weights=share, histtype="stepfilled", color=colour, alpha=0.25)
                    axes.hist(
                        points, bins, weights=share, histtype="step", color=colour, linestyle=line, linewidth=1.8, label=name
                    )
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(FuncFormatter(plain))
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.set(title=title, xlabel="loss (nats, logarithmic)")
            axes.label_outer()
            legend_below(axes, 2)
        figure.axes[0].set_ylabel("share of images")

    return draw("losses", label, (9.6, 3.8), paint)


def membership_intervals(told: Mapping[str, tuple[float, float, float]], label: str) -> str:
    """Membership AUC, lower and upper end, by whose it is: a point on a bar each, beside the line of chance."""
    if not told:
        return ""

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for i, (value, low, high) in enumerate(told.values()):
            axes.plot([low, high], [i, i], color=MEMBERSHIP, linewidth=5, alpha=0.45, solid_capstyle="butt")
            axes.plot(value, i, "D", color=MEMBERSHIP, markeredgecolor=INK)
        axes.axvline(0.5, color=INK, linestyle=":", linewidth=1.2, label="chance")
        axes.set_yticks(range(len(told)), [short(name) for name in told])
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.margins(x=0.08, y=0.25)
        axes.set_xlabel("membership AUC, 95 % interval")
        axes.xaxis.set_major_formatter(FuncFormatter(plain))
        legend_below(axes, 1)

    return draw("verification", label, (8.4, 1.5 + 0.34 * len(told)), paint)


def site_changes(changes: Mapping[str, tuple[float, float]], limit: float, label: str) -> str:
    """Change of held-out accuracy at each site: unlearned − original as a bar, retrained − original as a diamond."""
    told = {site: pair for site, pair in changes.items() if not math.isnan(pair[0])}
    if not told:
        return ""

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for i, (unlearned, retrained) in enumerate(told.values()):
            worse = unlearned < 0
            colour = WORSE if worse else BETTER
            axes.barh(i, unlearned, 0.6, color=colour, hatch="///" if worse else "", edgecolor="white", linewidth=0)
            if not math.isnan(retrained):
                axes.plot(retrained, i, "D", color="white", markeredgecolor=INK, markeredgewidth=1.5)
        axes.axvline(0, color=INK, linewidth=1)
        axes.axvline(-limit, color=INK, linestyle="--", linewidth=1.2, label=f"most that a site may lose ({limit:.3f})")
        if any(not math.isnan(retrained) for _, retrained in told.values()):
            axes.plot([], [], "D", color="white", markeredgecolor=INK, markeredgewidth=1.5, label="retrained")
        axes.set_yticks(range(len(told)), [short(site) for site in told])
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.margins(x=0.08)
        axes.set_xlabel("change of held-out accuracy (left of zero: worse)")
        axes.xaxis.set_major_formatter(FuncFormatter(signed))
        legend_below(axes, 2)

    return draw("sites", label, (8.4, 1.7 + 0.36 * len(told)), paint)


def embedding_map(before: NDArray[np.floating], after: NDArray[np.floating], sets: Sequence[str], label: str) -> str:
    """Images as points in two dimensions, before and after; both panels share their axes."""
    if len(sets) == 0 or not len(sets) == len(before) == len(after):
        return ""
    kind = np.array(sets)

    def paint(figure: Figure) -> None:
        panels = figure.subplots(1, 2, sharex=True, sharey=True)
        for axes, points, title in zip(
            panels, (before, after), ("before: original model", "after: unlearned model"), strict=True
        ):
            for name, (colour, marker) in SETS.items():
                chosen = points[kind == name]
                axes.scatter(
                    chosen[:, 0], chosen[:, 1], s=18, c=colour, marker=marker, alpha=0.65, linewidths=0, label=name
                )  # fmt: skip
            axes.set_title(title)
            axes.set_xticks([])
            axes.set_yticks([])
            for side in ("top", "right"):
                axes.spines[side].set_visible(True)
        handles, names = panels[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=3, markerscale=1.6)

    return draw("embedding", label, (9.6, 4.9), paint)


def convergence(history: Sequence[Mapping[str, Any]], label: str) -> str:
    """Left the measured ascent of the boundary search at each step, one line per site; right the gradient of F by round."""
    told: dict[str, list[float]] = {}
    for entry in history:
        for site, ascent in entry.get("ascent", {}).items():
            told.setdefault(site, [number(value) for value in ascent])  # the search runs once per request
    told = {site: told[site] for site in sorted(told) if any(value > 0 for value in told[site])}
    norms = [number(entry.get("objective_gradient_norm")) for entry in history]
    if not told and all(map(math.isnan, norms)):
        return ""

    def paint(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        for i, (site, ascent) in enumerate(told.items()):
            steps = range(1, len(ascent) + 1)
            style = ("-", "--", "-.", ":")[i // len(LINES) % 4]
            marker = "osD^vP"[i % 6]
            left.plot(steps, ascent, style, color=LINES[i % len(LINES)], marker=marker, markersize=4, label=short(site))
        left.set(title="lower level", xlabel="step of the boundary search", ylabel="ascent (logarithmic)")
        right.plot(range(1, len(norms) + 1), norms, color=INK, marker="o", label="all sites")
        right.set(title="upper level", xlabel="unlearning round", ylabel="update ÷ step size (gradient of F)")
        for axes, lines in ((left, list(told.values())), (right, [norms])):
            if any(value > 0 for line in lines for value in line):
                axes.set_yscale("log")
                axes.yaxis.set_major_formatter(FuncFormatter(plain))
                axes.yaxis.set_minor_formatter(FuncFormatter(plain) if _decades(lines) < 1 else NullFormatter())
                legend_below(axes, 4)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))

    return draw("convergence", label, (9.6, 3.9), paint)


def candidate_map(candidates: Mapping[str, Mapping[str, Any]], label: str) -> str:
    """Each candidate as a point: forgetting against retention. Filled: on the Pareto front; ringed: chosen."""
    pairs = [("retain loss", "forget gap"), ("worst site loss", "membership")]
    pairs = [pair for pair in pairs if any(pair[1] in c.get("objectives", {}) for c in candidates.values())]
    if not candidates or not pairs:
        return ""

    def paint(figure: Figure) -> None:
        for axes, (x, y) in zip(figure.subplots(1, len(pairs), squeeze=False).flat, pairs, strict=True):
            for i, (name, candidate) in enumerate(candidates.items()):
                at = [number(candidate["objectives"].get(key)) for key in (x, y)]
                colour, front = LINES[i % len(LINES)], candidate["on_front"]
                axes.plot(*at, "osD^vP"[i % 6], color=colour, markerfacecolor=colour if front else "white", label=short(name))
                if candidate["chosen"]:
                    axes.plot(*at, "o", markersize=14, markerfacecolor="none", markeredgecolor=INK, markeredgewidth=1.4)
            axes.set(xlabel=x, ylabel=y if y == "forget gap" else "distance of membership AUC from 0.5")
            axes.xaxis.set_major_locator(MaxNLocator(5))
            axes.margins(0.15)
        axes = figure.axes[0]
        axes.plot([], [], "o", markersize=12, markerfacecolor="none", markeredgecolor=INK, label="chosen")
        axes.plot([], [], "o", color=INK, markerfacecolor="white", label="hollow: not on the front")
        handles, names = axes.get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=4)

    return draw("candidates", label, (4.8 * len(pairs), 4.4), paint)


def cost_bars(ratios: Mapping[str, float], label: str) -> str:
    """Cost of unlearning as a multiple of retraining's, on a logarithmic axis."""
    told = {name: ratio for name, ratio in ratios.items() if ratio > 0}
    if not told:
        return ""

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        low = min(0.1, *told.values()) / 3  # room for the numbers
        for i, ratio in enumerate(told.values()):
            dearer = ratio > 1
            colour = WORSE if dearer else BETTER
            hatch = "///" if dearer else ""
            axes.barh(i, ratio - low, 0.6, left=low, color=colour, hatch=hatch, edgecolor="white", linewidth=0)
            axes.annotate(f"{ratio:.3f} ×", (ratio, i), (5, 0), textcoords="offset points", va="center")
        axes.axvline(1, color=INK, linestyle="--", linewidth=1.2, label="as dear as retraining")
        axes.set_xscale("log")
        axes.set_xlim(low, max(1, *told.values()) * 3)
        axes.xaxis.set_major_formatter(FuncFormatter(plain))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_yticks(range(len(told)), list(told))
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("unlearning ÷ retraining (logarithmic)")
        legend_below(axes, 1)

    return draw("cost", label, (8.4, 1.7 + 0.36 * len(told)), paint)


def example_images(examples: Sequence[tuple[NDArray[np.floating], str]], label: str) -> str:
    """Images in grey, eight in a row, each with its caption; pixel values are shown as they are, 0 black and 1 white."""
    if not examples:
        return ""
    rows, columns = math.ceil(len(examples) / 8), min(8, len(examples))

    def paint(figure: Figure) -> None:
        grid = list(figure.subplots(rows, columns, squeeze=False).flat)
        for axes in grid:
            axes.set_axis_off()
        for axes, (image, caption) in zip(grid, examples, strict=False):
            axes.imshow(np.squeeze(image), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes.set_title(short(caption, 17), fontsize=8)

    return draw("examples", label, (1.2 * columns, 1.4 * rows), paint)


def _loss_points(losses: Losses, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Losses and images of one set; a loss below 1e-6 is drawn at 1e-6, since a logarithm has no zero."""
    values, mass = (np.array([number(v) for v in side], dtype=np.float64) for side in losses.get(name, ([], [])))
    known = np.isfinite(values) & (mass > 0)
    return values[known].clip(1e-6), mass[known]


def _decades(lines: Any) -> float:
    values = [value for line in lines for value in line if value > 0]
    return math.log10(max(values) / min(values))
