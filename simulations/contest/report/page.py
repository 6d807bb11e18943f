"""`excise bench report`: the result pages, of what is kept."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from excise import __version__
from excise.common.errors import DataError
from excise.common.files import write_atomically
from excise.simulations.baselines.registry import CENTRAL, FEDERATED
from excise.simulations.contest.entry import entries_of
from excise.simulations.contest.record import records
from excise.simulations.contest.report.contests import MEASURES, Contest, contests_of
from excise.simulations.contest.report.html import html
from excise.simulations.contest.report.markdown import markdown
from excise.simulations.contest.report.pictures import contest_picture, ranks_picture
from excise.simulations.contest.report.ranking import overall
from excise.simulations.contest.report.tables import Table, settings_of, tables_of
from excise.simulations.contest.report.winners import winners
from excise.simulations.contest.report.words import Honest, Item, honest, not_run, ran, rules
from excise.simulations.contest.scenarios import SCENARIOS


@dataclass(frozen=True)
class Picture:
    """An SVG element, the name of its file without the ending, what it shows, and what is said of it."""

    name: str
    svg: str
    shows: str
    caption: str = ""


@dataclass(frozen=True)
class Section:
    """A scenario: its picture, the table that stands open, and those that are folded."""

    title: str
    anchor: str
    picture: Picture | None
    scores: Table
    folded: tuple[Table, ...]


@dataclass(frozen=True)
class Report:
    """All that a result page says, in its order."""

    version: str
    ran: Table
    not_run: tuple[Item, ...]
    rules: tuple[str, ...]
    honest: Honest
    winners: Table
    ranks: tuple[Picture, ...]
    sections: tuple[Section, ...]


def write_report(home: Path, page: Path, html_page: Path | None = None) -> list[Path]:
    """Write the Markdown page with pictures beside it, and the HTML page with pictures in it.

    Parameters
    ----------
    home : where the benchmark kept its results
    page : of Markdown; pictures begin with its name
    html_page : beside it, of its name, by default

    Returns
    -------
    What was written, the two pages first.

    Raises
    ------
    DataError : there are no results, or a file of them is none
    StorageError : something cannot be written
    """
    contests = contests_of(records(home), SCENARIOS)
    if not contests:
        raise DataError(
            f"no results of the benchmark below {home}: make some by excise bench --scenario brain-mri --home {home}, "
            "or name the folder where they are by --home"
        )
    report = report_of(contests, page.stem)
    html_page = html_page or page.with_suffix(".html")
    drawn = [*report.ranks, *(section.picture for section in report.sections if section.picture)]
    for picture in drawn:
        write_atomically(page.with_name(f"{picture.name}.svg"), picture.svg)
    write_atomically(page, markdown(report))
    write_atomically(html_page, html(report))
    return [page, html_page, *(page.with_name(f"{picture.name}.svg") for picture in drawn)]


def report_of(contests: Sequence[Contest], name: str) -> Report:
    """What the pages say of contests, at least one; `name` begins those of pictures."""
    known = entries_of([*FEDERATED.values(), *CENTRAL.values()])
    ranks = []
    for measure in MEASURES:
        found = overall(contests, measure)
        if found is not None:
            file = f"{name}-ranks-{_slug(measure.name)}"
            ranks.append(Picture(file, ranks_picture(found, _slug(file)), f"Mean ranks by {measure.name}", found.words))
    return Report(
        __version__,
        ran(contests),
        tuple(not_run(contests, SCENARIOS, known)),
        tuple(rules(contests)),
        honest(contests),
        winners(contests),
        tuple(ranks),
        tuple(_section(contest, anchor, name) for anchor, contest in anchored(contests).items()),
    )


def anchored(contests: Sequence[Contest]) -> dict[str, Contest]:
    """Contests by a short name of letters that links and files may have; no two share one."""
    found: dict[str, Contest] = {}
    for contest in contests:
        short = _slug(contest.title) or "scenario"
        found[short if short not in found else f"{short}-{len(found)}"] = contest
    return found


def _section(contest: Contest, anchor: str, name: str) -> Section:
    scores, *more = tables_of(contest)
    svg = contest_picture(contest, f"of-{anchor}")
    picture = Picture(f"{name}-{anchor}", svg, f"{contest.title}: accuracies and cost") if svg else None
    return Section(contest.title, anchor, picture, scores, (*more, settings_of(contest)))


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
