"""The pictures of the result pages, as SVG text; "" where there is nothing to draw."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from excise.server.drawing import FORGET, HELD_OUT, INK, LINES, RETAIN, draw, plain, short
from excise.simulations.contest.report.contests import GOLD, TOW, Contest, Runs, apart, ratio
from excise.simulations.contest.report.labels import write_names
from excise.simulations.contest.report.ranking import Overall
from excise.simulations.contest.report.standing import mean
from excise.simulations.contest.search import BUDGET

KINDS = {  # of a method: colour, marker, size, label
    "central": (HELD_OUT, "^", 34, "one place"),
    "federated": (RETAIN, "o", 34, "federated"),
    "family": (LINES[4], "s", 30, "others of ours"),
    "ours": (FORGET, "D", 60, "ours"),  # last, so that it lies on top
}
PAPER = "white"
LEAST_COST = 1e-4
"""Cheaper methods stand here: a logarithmic axis has no place for one that sends no image through a model."""
NEAR = 0.01
"""Up to here the axes of distances are linear: they have a place for 0."""
LABELS = 6
"""Most methods that are named beside their points."""


@dataclass(frozen=True)
class Point:
    """A method in the pictures: distances of forget and retain accuracy to retrained's, cost in images, and ToW."""

    runs: Runs
    forget: float
    retain: float
    cost: float
    tow: float


def points_of(contest: Contest) -> list[Point]:
    """Means over seeds of each method that has them all."""
    found = (_point(contest, contest.methods[name]) for name in contest.ranked(TOW))
    return [one for one in found if one]


def _point(contest: Contest, runs: Runs) -> Point | None:
    """None where a value is missing."""
    values = [
        runs.over(contest.seeds, lambda one: apart(one.values, one.retrained, "forget_accuracy")),
        runs.over(contest.seeds, lambda one: apart(one.values, one.retrained, "retain_accuracy")),
        runs.over(contest.seeds, lambda one: ratio(one, "images")),
        runs.over(contest.seeds, TOW.score),
    ]
    if not all(math.isfinite(value) for of in values for value in of):
        return None
    return Point(runs, *(mean(of).mean for of in values))


def front(points: Sequence[Point]) -> list[Point]:
    """Those than which none is nearer to retrained in one accuracy and as near in the other, by the forget set's."""
    best, found = math.inf, []
    for one in sorted(points, key=lambda point: (point.forget, point.retain)):
        if one.retain < best:
            best = one.retain
            found.append(one)
    return found


def contest_picture(contest: Contest, name: str) -> str:
    """SVG: how far forget and retain accuracy are from retrained's, beside cost against ToW."""
    points = points_of(contest)
    if not points:
        return ""
    nearest = front(points)
    again = _point(contest, contest.again) if contest.again else None

    def paint(figure: Figure) -> None:
        pareto, cost = figure.subplots(1, 2)
        pareto.plot([one.forget for one in nearest], [one.retain for one in nearest], color=INK, linewidth=1, linestyle=":")
        _star(pareto, 0, 0, INK, "retrained")
        if again:
            _star(pareto, again.forget, again.retain, PAPER, GOLD)
        _scatter(pareto, points, [(one.forget, one.retain) for one in points])
        shown = [*points, again] if again else points
        for axis, set_scale, limit in (
            (pareto.xaxis, pareto.set_xscale, max(one.forget for one in shown)),
            (pareto.yaxis, pareto.set_yscale, max(one.retain for one in shown)),
        ):
            set_scale("symlog", linthresh=NEAR, linscale=0.6)
            axis.set_major_formatter(FuncFormatter(plain))
            axis.set_view_interval(0, max(1.4 * limit, 2 * NEAR), ignore=True)
        pareto.set(xlabel="forget accuracy, distance to retrained", ylabel="retain accuracy, distance to retrained")
        _cost_panel(cost, points, again)
        figure.legend(*pareto.get_legend_handles_labels(), loc="outside lower center", ncols=6)
        figure.draw_without_rendering()  # places are known from here on
        best = sorted(points, key=lambda one: -one.tow)[:LABELS]
        for axes, named, at in (
            (pareto, nearest, {one.runs.name: (one.forget, one.retain) for one in points}),
            (cost, best, {one.runs.name: (max(one.cost, LEAST_COST), one.tow) for one in points}),
        ):
            ours = [one for one in points if one.runs.kind == "ours"]
            write_names(axes, at, [one.runs.name for one in (*ours, *named)][:LABELS], bold=[one.runs.name for one in ours])

    label = f"{contest.title}: distance of forget and retain accuracy to the retrained model's, and ToW by cost"
    return draw(name, label, (10.4, 4.6), paint)


def _cost_panel(axes: Axes, points: Sequence[Point], again: Point | None) -> None:
    at = [(max(one.cost, LEAST_COST), one.tow) for one in points]
    axes.axvline(BUDGET, color=INK, linestyle="--", linewidth=1.2)
    axes.set_xscale("log")
    axes.set_xlim(min(0.5 * min(x for x, _ in at), 0.05), max(2 * max(x for x, _ in at), 2))
    _scatter(axes, points, at)
    if again:
        _star(axes, again.cost, again.tow, PAPER)
    shown = [one.tow for one in (*points, again) if one]
    low, high = min(shown), max(shown)
    axes.set_ylim(low - 0.06 * (high - low) - 0.01, high + 0.12 * (high - low) + 0.01)
    axes.annotate("1/8", (BUDGET, 1), (3, -2), xycoords=("data", "axes fraction"), textcoords="offset points", va="top")
    axes.xaxis.set_major_formatter(FuncFormatter(plain))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set(xlabel="images ÷ retraining's (logarithmic)", ylabel="ToW")


def _star(axes: Axes, x: float, y: float, colour: str, label: str = "") -> None:
    axes.scatter([x], [y], s=90, marker="*", facecolor=colour, edgecolor=INK, label=label, zorder=4, clip_on=False)


def _scatter(axes: Axes, points: Sequence[Point], at: Sequence[tuple[float, float]]) -> None:
    for kind, (colour, marker, size, label) in KINDS.items():
        those = [place for one, place in zip(points, at, strict=True) if one.runs.kind == kind]
        if those:
            x, y = zip(*those, strict=True)
            drawn = axes.scatter(x, y, s=size, marker=marker, color=colour, edgecolors="white", linewidths=0.6, label=label)
            drawn.set(zorder=3, clip_on=False)


def ranks_picture(found: Overall, name: str) -> str:
    """SVG: mean rank of each method; with bars that join those not told apart, or with intervals where blocks are few."""

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for row, (method, rank) in enumerate(found.ranks.items()):
            colour, marker, size, _ = KINDS[found.kinds[method]]
            if found.difference is None and rank.values > 1:
                axes.plot([rank.low, rank.high], [row, row], color=colour, linewidth=5, alpha=0.35, solid_capstyle="butt")
            axes.scatter(rank.mean, row, s=size, marker=marker, color=colour, zorder=3)
        right = len(found.ranks) + 0.5
        if found.difference is not None:
            rows = {method: row for row, method in enumerate(found.ranks)}
            for i, group in enumerate(found.groups):
                x = right + 0.8 + 0.045 * right * i
                axes.plot([x, x], [rows[group[0]] - 0.25, rows[group[-1]] + 0.25], color=INK, linewidth=3.5, clip_on=False)
            axes.plot([1, 1 + found.difference], [-1.1, -1.1], color=INK, linewidth=2, marker="|", clip_on=False)
            axes.annotate(f"critical difference {found.difference:.2f}", (1, -1.1), (0, 5), textcoords="offset points")
        axes.set_xlim(0.5, right + (1 + 0.045 * right * len(found.groups) if found.groups else 0))
        axes.set_ylim(len(found.ranks) - 0.4, -2.2 if found.difference is not None else -0.6)
        axes.set_yticks(range(len(found.ranks)), [short(method, 34) for method in found.ranks])
        for tick, method in zip(axes.get_yticklabels(), found.ranks, strict=True):
            tick.set_fontweight("bold" if found.kinds[method] == "ours" else "normal")
        axes.set_xticks(_ticks(len(found.ranks)))
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(f"mean rank by {found.measure.name}, 1 is best")
        for colour, marker, size, label in KINDS.values():
            axes.scatter([], [], s=size, marker=marker, color=colour, label=label)
        figure.legend(loc="outside lower center", ncols=4)

    return draw(name, f"Mean rank of each method by {found.measure.name}", (7.6, 1.6 + 0.24 * len(found.ranks)), paint)


def _ticks(most: int) -> list[int]:
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100) if most / step <= 12)
    return sorted({1, *range(step, most + 1, step)})
