"""The page and the picture of `excise bench soak`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from excise.common.files import write_atomically
from excise.server.drawing import INK, RETAIN, draw
from excise.simulations.bench.pages import paragraph
from excise.simulations.bench.soak import DEADLINE, FAILS, FLAKY, IMAGES, SEED, SIDE, SILENT, Slope, Soaked, slope

LIMIT = 1.0
"""MiB in 100 rounds that memory may grow by and still count as flat: ten thousand rounds, more than anybody holds, would take
100 MiB, a tenth of what the process takes from its start."""


def write_soak_page(page: Path, soaked: Soaked) -> None:
    """Write the page, and its picture beside it, of the same name.

    Raises
    ------
    StorageError : one of them cannot be written
    """
    grown, memory = slope(soaked.megabytes), soaked.megabytes
    picture = page.with_suffix(".svg")
    write_atomically(picture, soak_picture(memory, grown))
    lines = [
        "# A soak: many sites, many rounds, memory",
        "",
        *paragraph(
            f"Written by `excise bench soak`: {soaked.sites} sites and {soaked.rounds} rounds of unlearning in one process, "
            "with the real server and client apps; each round is composed, audited at every site and kept as a checkpoint. "
            f"A site holds {IMAGES} made-up images of {SIDE} × {SIDE} pixels. Memory is the process's resident memory after "
            "each round, coordinator and all sites together, after Python's garbage collection."
        ),
        "",
        f"![Resident memory after each round]({picture.name})",
        "",
        "| goal | measured | reached |",
        "|---|---|---|",
        f"| memory is flat: over the second half of the rounds it grows by less than {LIMIT:g} MiB in 100 rounds, by the "
        f"upper end of the slope's 95 % interval | {growth(grown, '100 rounds')} | {'yes' if is_flat(grown) else '**no**'} |",
        "",
        *paragraph(
            "The slope is the median of those between any two rounds (Theil and Sen), which single rounds do not move. "
            f"{memory[0]:.1f} MiB after the first round, {memory[len(memory) // 2]:.1f} half way, {memory[-1]:.1f} after the "
            f"last; {soaked.seconds / 60:.0f} minutes."
        ),
        "",
        "## What went wrong on purpose",
        "",
        *paragraph(
            f"One site in {1 / FLAKY:g} answers {FAILS:.0%} of its rounds of unlearning with a crash, a record that is no "
            f"update, or weights that are not finite, and {SILENT:.0%} with nothing before the deadline of {DEADLINE:g} s; "
            f"that answer comes in the next round. Which and when follows from the seed, {SEED}. The run went on with a "
            "quorum of half the sites."
        ),
        "",
        "| what the coordinator made of it | times |",
        "|---|---|",
        *(f"| refused: `{code}` | {times} |" for code, times in sorted(soaked.refused.items())),
        f"| came late, not used: `late` | {soaked.late} |",
        "",
    ]
    write_atomically(page, "\n".join(lines))


def is_flat(grown: Slope) -> bool:
    """Whether memory does not grow, as far as the rounds can tell."""
    return grown.high < LIMIT


def soak_picture(memory: Sequence[float], grown: Slope) -> str:
    """Memory over rounds, from zero: what matters is growth against what the process takes."""
    half = len(memory) // 2

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        rounds = range(1, len(memory) + 1)
        axes.plot(rounds, memory, color=RETAIN, label="resident memory")
        axes.axvspan(half + 1, len(memory), color=INK, alpha=0.06, label="the half that is judged")
        axes.set(xlabel="round", ylabel="MiB")
        axes.set_ylim(0, 1.2 * max(memory))
        axes.legend(loc="lower right")

    return draw("soak", f"Resident memory after each round: {growth(grown, '100 rounds')}", (8.4, 3.2), paint)


def growth(grown: Slope, within: str) -> str:
    """A slope of memory and its interval, with true minus signs; `within` is what it is told for."""
    told = f"{grown.value:+.2f} MiB in {within}, {grown.low:+.2f} to {grown.high:+.2f}"
    return told.replace("-", "−")
