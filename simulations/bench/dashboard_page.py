"""The page and the picture of `excise bench dashboard`."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from excise.common.files import write_atomically
from excise.server.dashboard.watch import POLL
from excise.server.drawing import FORGET, RETAIN, draw
from excise.simulations.bench.browser import RULES
from excise.simulations.bench.dashboard import LOOKS, Measured
from excise.simulations.bench.pages import paragraph
from excise.simulations.bench.soak import slope
from excise.simulations.bench.soak_page import growth
from excise.simulations.bench.viewers import LATER, WAITS, WARM, WARM_EVERY, Load

DELIVERED, SHARE, GROWTH, PAINTED, SIZE, DRAWN = 50.0, 0.03, 1.0, 0.7, 500_000, 1.0
"""Goals: milliseconds beyond the poll, processor time of one core, MiB in the time looked at, seconds, bytes, seconds."""


def write_dashboard_page(page: Path, measured: Measured) -> None:
    """Write the page, and its picture beside it, of the same name.

    Raises
    ------
    StorageError : one of them cannot be written
    """
    load, picture = measured.load, page.with_suffix(".svg")
    write_atomically(picture, dashboard_picture(load))
    lines = [
        "# The dashboard of a busy coordinator",
        "",
        *paragraph(
            f"Written by `excise bench dashboard`: a coordinator with {measured.sites} sites and {measured.runs} runs, its "
            "dashboard started by `excise dashboard`. One run is computed at these sites, the others are its copies, and one "
            f"is cut off in the middle: to that an event is added every {load.every:g} s, one in {WAITS} of a round and the "
            f"others of whom the run awaits, while {load.viewers} viewers, each signed in as another user, "
            "hold the stream of changes open and fetch what changed, as a page does. Viewers are "
            "coroutines of one other process on the same machine; pages are opened in Chromium, each time in a profile that "
            f"nobody used. What is measured comes after {WARM} events that are not, within {WARM * WARM_EVERY:g} s: such a "
            "dashboard is open all day, and is at its usual memory after about so many."
        ),
        "",
        f"![How soon viewers heard and saw, and the server's memory]({picture.name})",
        "",
        "| goal | measured | reached |",
        "|---|---|---|",
        *(f"| {goal} | {told} | {'yes' if reached else '**no**'} |" for goal, told, reached in goals(measured)),
        "",
        *paragraph(
            f"The run store is looked at every {1000 * POLL:.0f} ms, so an event waits {500 * POLL:.0f} ms on average "
            f"until it is found. A page waits {1000 * LATER:.0f} ms more for further changes; until it had fetched all that "
            f"an event changed took {statistics.median(load.shown):.0f} ms (median; {_percentile(load.shown, 99):.0f} ms for "
            f"99 % of {len(load.shown):,} looks), for {load.bytes_a_look:,} bytes a look. Events that a "
            f"viewer missed: {load.lost}. The dashboard listens {measured.started:.1f} s after its command."
        ),
        "",
    ]
    write_atomically(page, "\n".join(lines))


def goals(measured: Measured) -> list[tuple[str, str, bool]]:
    """Each goal, what was measured, and whether it is reached."""
    load, limit = measured.load, 1000 * POLL + DELIVERED
    told, grown = statistics.median(load.told), slope(load.megabytes)
    painted, drawn = ([getattr(one, key) for one in measured.firsts] for key in ("painted", "drawn"))
    minutes = f"{load.seconds / 60:g} minutes"
    size, wrong = max(one.bytes for one in measured.firsts), sum(map(len, measured.faults.values()))
    return [
        (
            f"{load.viewers} viewers hear of an event within {DELIVERED:g} ms beyond the poll: median at most {limit:g} ms",
            f"{told:.0f} ms; {_percentile(load.told, 99):.0f} ms for 99 % of {len(load.told):,}",
            told <= limit,
        ),
        (f"the server takes at most {SHARE:.0%} of a core", f"{load.share:.2%}", load.share <= SHARE),
        (
            f"its memory is flat: over the second half it grows by less than {GROWTH:g} MiB in {minutes}, "
            "by the upper end of the slope's 95 % interval",
            f"{growth(grown, minutes)}; {load.megabytes[0]:.0f} MiB at first, {load.megabytes[-1]:.0f} at last",
            grown.high < GROWTH,
        ),
        (f"the first content is painted after {PAINTED:g} s", _seconds(painted), statistics.median(painted) <= PAINTED),
        (
            f"the whole Overview, all charts drawn, is there after {DRAWN:g} s",
            _seconds(drawn),
            statistics.median(drawn) <= DRAWN,
        ),
        (f"a page and all that belongs to it is at most {SIZE // 1000} KB", f"{size / 1000:.0f} KB", size <= SIZE),
        (
            f"axe finds nothing wrong on any page, in both themes ({', '.join(RULES)})",
            f"{wrong} {'fault' if wrong == 1 else 'faults'}",
            wrong == 0,
        ),
    ]


def _seconds(values: Sequence[float]) -> str:
    return (
        f"{statistics.median(values):.2f} s (median of {LOOKS}; {values[0]:.2f} s right after the start, "
        f"{max(values):.2f} s at most)"
    )


def _percentile(values: Sequence[float], share: float) -> float:
    return float(np.percentile(values, share))


def dashboard_picture(load: Load) -> str:
    """Shares of viewers by time, and memory by time, from zero."""

    def paint(figure: Figure) -> None:
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        for values, name, color, dash in (
            (load.told, "heard of it", RETAIN, "solid"),
            (load.shown, "had fetched what it changed", FORGET, "dashed"),
        ):
            left.plot(np.sort(values), np.linspace(0, 100, len(values)), color=color, linestyle=dash, label=name)
        left.set(xlabel="ms since the event was written", ylabel="% of viewers and events", xlim=(0, None))
        left.legend(loc="lower right")
        minutes = np.linspace(0, load.seconds / 60, len(load.megabytes))
        right.plot(minutes, load.megabytes, color=RETAIN)
        right.set(xlabel="minutes", ylabel="server's memory, MiB", ylim=(0, 1.2 * max(load.megabytes)))

    told = f"{statistics.median(load.told):.0f} ms until half the viewers had heard of an event"
    return draw("dashboard", told, (8.4, 3.2), paint)
