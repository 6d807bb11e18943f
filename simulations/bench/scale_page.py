"""The page and the picture of `excise bench scale`."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from excise.common.files import write_atomically
from excise.server.drawing import FORGET, HELD_OUT, INK, RETAIN, draw, plain
from excise.simulations.bench.pages import paragraph
from excise.simulations.bench.scale import IMAGES, MODEL, WINDOW, Power, Scaled, power
from excise.simulations.bench.scale_memory import MIB, ROUNDS
from excise.simulations.bench.soak import SIDE

LEAST = 0.1
"""MiB: less growth of a process cannot be told from none."""
LINEAR, FLAT = 1.1, 0.1
"""Largest powers that count as linear and as flat: 250 times the sites take at most 1.74 times more than they should."""


def write_scale_page(page: Path, found: Sequence[Scaled]) -> None:
    """Write the page, and its picture beside it, of the same name.

    Parameters
    ----------
    found : what `scale.scale` measured, by ascending numbers of sites, three at least

    Raises
    ------
    StorageError : one of them cannot be written
    """
    picture = page.with_suffix(".svg")
    write_atomically(picture, scale_picture(found))
    update = found[0].held.update
    lines = [
        "# Scale: from a few sites to many",
        "",
        *paragraph(
            f"Written by `excise bench scale`: {_listed(found)} sites in one process, with the real server and client apps; "
            f"{IMAGES} made-up images of {SIDE} × {SIDE} pixels at each site, a net of three layers; sites whose number "
            "ends in 1 or 5 have something to forget, and all take part in each round. Times are medians of the rounds, of "
            "which there are "
            f"{', '.join(f'{len(one.seconds)} at {one.sites:,}' for one in found)}."
        ),
        "",
        f"![Time of a round and memory of the coordinator against the number of sites]({picture.name})",
        "",
        "| goal | measured | reached |",
        "|---|---|---|",
        *(f"| {goal} | {told} | {'yes' if reached else '**no**'} |" for goal, told, reached in goals(found)),
        "",
        *paragraph(
            "The power is the slope of a straight line through the logarithms, with its 95 % interval "
            "(Student's t); its upper end is judged."
        ),
        "",
        "## Time",
        "",
        *paragraph(
            "The sites compute one after another, so a round takes as long as all of them together; in a deployment they work "
            "at the same time. Wall time tells of a machine's other work too, processor time hardly. "
            "*Coordinator alone*: wall time of a round in which sites are files (below), which no deployment shares out."
        ),
        "",
        "| sites | a round, s | a site's part, ms | of which processor, ms | coordinator alone, a site's part, ms |",
        "|---|---|---|---|---|",
        *(_time(one) for one in found),
        "",
        "## Memory of the coordinator",
        "",
        *paragraph(
            "The sites of a run live in the coordinator's process, so its memory is measured in a second run, in a process of "
            "its own, whose sites are files: what each site answered in the first run is read from disk when it is asked, and "
            "a site's update is a change made up for a larger model, also read anew for each site: "
            f"{update / MIB:.2f} MiB of weights. What is allocated is then the coordinator's: sending, receiving, admitting, "
            "composing, keeping. *In a round*: the most resident memory (RSS) while a round of unlearning goes on, beyond "
            f"what the process took before the run, the most of {ROUNDS} rounds; *whole run*: the most at any time, audits "
            f"and verification included. Before, a small run was carried out, so that what is loaded once does not count. At "
            f"most {WINDOW} messages are under way at once, so that every number of sites fills that window; a coordinator's "
            "own is `rounds.window`, 8 by default."
        ),
        "",
        *paragraph(
            "*Numbers*: what Python itself holds after a round (tracemalloc, which sees no tensors; with the sites' own small "
            "model): what each site said of itself, its losses and scores, which pooled scores and the report are made of: "
            f"{_numbers(found) / 1024:.1f} KiB for each further site."
        ),
        "",
        "| sites | in a round, MiB | whole run, MiB | numbers, MiB | all updates at once would be, MiB |",
        "|---|---|---|---|---|",
        *(_memory(one) for one in found),
        "",
        "## Bytes",
        "",
        *paragraph(
            "Of one site in one round: the question and the answer as they are serialised, with the weights of the sites' own "
            f"net at width {MODEL.width:g}, before TLS and gRPC."
        ),
        "",
        "| sites | down, KiB | up, KiB |",
        "|---|---|---|",
        *(f"| {one.sites:,} | {one.down / 1024:.1f} | {one.up / 1024:.1f} |" for one in found),
        "",
    ]
    write_atomically(page, "\n".join(lines))


def goals(found: Sequence[Scaled]) -> Iterator[tuple[str, str, bool]]:
    """Each goal in words, what was measured, and whether it was reached."""
    for what, time in (
        ("wall time", growth(found, lambda one: one.seconds)),
        ("processor time", growth(found, lambda one: one.processor)),
    ):
        goal = f"{what} of a round is linear in the number of sites: a power of at most {LINEAR:g}"
        yield goal, f"sites to the power of {_power(time)}", time.high <= LINEAR
    memory = growth(found, lambda one: (max(LEAST, *one.held.rounds),))
    whole = growth(found, lambda one: (max(LEAST, one.held.whole),))
    told = f"sites to the power of {_power(memory)}; whole run {_power(whole)}"
    yield f"memory of the coordinator in a round is flat: a power of at most {FLAT:g}", told, memory.high <= FLAT


def growth(found: Sequence[Scaled], of: Callable[[Scaled], Sequence[float]]) -> Power:
    """How the median of what `of` gives grows with the number of sites."""
    return power([one.sites for one in found], [statistics.median(of(one)) for one in found])


def scale_picture(found: Sequence[Scaled]) -> str:
    """Time and memory, both axes logarithmic: what is linear rises as the dashed line does, what is flat lies."""
    sites = [one.sites for one in found]
    ends = [sites[0], sites[-1]]

    def paint(figure: Figure) -> None:
        time, memory = figure.subplots(1, 2)
        for one in found:
            time.plot([one.sites] * len(one.seconds), one.seconds, ".", color=RETAIN, alpha=0.35)
        medians = [statistics.median(one.seconds) for one in found]
        time.plot(sites, medians, "o-", color=RETAIN, label="a round: one site after another")
        alone = [statistics.median(one.held.seconds) for one in found]
        time.plot(sites, alone, "^-", color=HELD_OUT, label="coordinator alone")
        linear = [medians[-1] * end / sites[-1] for end in ends]
        time.plot(ends, linear, "--", color=INK, linewidth=1, label="linear")
        time.set(title="Time of a round", ylabel="seconds")
        rounds = [max(one.held.rounds) for one in found]
        memory.plot(sites, rounds, "o-", color=RETAIN, label="in a round")
        memory.plot(sites, [one.held.whole for one in found], "^-", color=HELD_OUT, label="whole run")
        memory.plot(sites, [one.held.numbers / MIB for one in found], "s-", color=FORGET, label="numbers")
        updates = [one.sites * one.held.update / MIB for one in found]
        memory.plot(sites, updates, "--", color=INK, linewidth=1, label="all updates at once")
        memory.set(title="Memory of the coordinator", ylabel="MiB")
        for axes in (time, memory):
            axes.set(xlabel="sites", xscale="log", yscale="log")
            axes.set_xticks(sites, [f"{number:,}" for number in sites])
            axes.minorticks_off()
            axes.yaxis.set_major_formatter(plain)
            axes.legend(loc="upper left")

    label = "; ".join(told for _, told, _ in goals(found))
    return draw("scale", f"Time of a round and memory of the coordinator against sites: {label}", (8.4, 3.6), paint)


def _power(found: Power) -> str:
    return f"{found.value:.2f} ({found.low:.2f} to {found.high:.2f})".replace("-", "−")


def _time(one: Scaled) -> str:
    seconds, processor = statistics.median(one.seconds), statistics.median(one.processor)
    alone = statistics.median(one.held.seconds)
    parts = (1000 * of / one.sites for of in (seconds, processor, alone))
    return f"| {one.sites:,} | {seconds:.2f} | {' | '.join(f'{part:.1f}' for part in parts)} |"


def _memory(one: Scaled) -> str:
    held = one.held
    taken = (max(held.rounds), held.whole, held.numbers / MIB, one.sites * held.update / MIB)
    return f"| {one.sites:,} | {' | '.join(f'{mebibytes:,.1f}' for mebibytes in taken)} |"


def _numbers(found: Sequence[Scaled]) -> float:
    """Bytes that each further site adds to what Python holds."""
    first, last = found[0], found[-1]
    return (last.held.numbers - first.held.numbers) / (last.sites - first.sites)


def _listed(found: Sequence[Scaled]) -> str:
    *others, last = (f"{one.sites:,}" for one in found)
    return f"{', '.join(others)} and {last}"
