"""The result page as Markdown."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from excise.simulations.bench.pages import paragraph

if TYPE_CHECKING:
    from excise.simulations.contest.report.page import Picture, Report
    from excise.simulations.contest.report.tables import Cell, Line, Table

LEGEND = (
    "Rank: among all / among the federated alone, by the mean over seeds; a = before it: over the seeds nobody is surely "
    "better. Small or in brackets: the 95 % bootstrap interval over seeds. ÷: of retraining's; seconds are of one machine at "
    "different hours, images are the surer figure. (one place): all sites' images together, which no federation has.",
    "Pictures, left: the nearer to the star, the retrained model, the better; the dotted line joins methods than which none "
    "is nearer in both. Axes are linear up to 0.01, then logarithmic. Right: cheaper to the left, better upwards; the dashed "
    "line is 1/8 of retraining. The hollow star is a second retraining, where there is one. Means over seeds; methods that "
    "failed, or lack a seed, are not shown.",
)
"""How tables and pictures of a scenario are read."""


def markdown(report: Report) -> str:
    """The page; pictures are files beside it."""
    lines = [
        "# The benchmark: methods side by side",
        "",
        *paragraph(
            f"Written by `excise bench report` of excise {report.version}, from results that `excise bench` kept "
            "([how methods are compared](../benchmark.md)). The HTML page beside this one holds the same in one file."
        ),
        "",
        "## Where ours does not win",
        "",
        *paragraph(escaped(report.honest.summary)),
        "",
        *(f"- **{escaped(point.head)}**: {escaped(point.text)}" for point in report.honest.points),
        *([""] if report.honest.points else []),
        "## Who wins",
        "",
        *_table(report.winners),
    ]
    for text in report.rules:
        lines += [*paragraph(escaped(text)), ""]
    if report.ranks:
        lines += ["## Ranks over scenarios", ""]
    for picture in report.ranks:
        lines += _picture(picture)
    lines += ["## What was run", "", *_table(report.ran)]
    if report.not_run:
        lines += ["Not run:", "", *(f"- **{escaped(one.head)}**: {escaped(one.text)}" for one in report.not_run), ""]
    lines += ["## Scenario by scenario", ""]
    for text in LEGEND:
        lines += [*paragraph(escaped(text)), ""]
    for section in report.sections:
        lines += [f"### {escaped(section.title)}", "", *(_picture(section.picture) if section.picture else [])]
        lines += _table(section.scores)
        for table in section.folded:
            lines += ["<details>", f"<summary>{escaped(table.title)}</summary>", "", *_table(table), "</details>", ""]
    return "\n".join(lines).rstrip() + "\n"


def escaped(text: str) -> str:
    r"""Text that Markdown shows as it is, in one line.

    >>> escaped("a|b <i>\n*c*")
    'a\\|b &lt;i&gt; \\*c\\*'
    """
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", text)


def _picture(picture: Picture) -> list[str]:
    caption = [*paragraph(escaped(picture.caption)), ""] if picture.caption else []
    return [f"![{escaped(picture.shows)}]({picture.name}.svg)", "", *caption]


def _table(table: Table) -> list[str]:
    aligned = "".join(f"{'---' if i in table.words else '--:'}|" for i in range(len(table.columns)))
    rows = [f"| {table.first} | {' | '.join(map(escaped, table.columns))} |", f"|---|{aligned}"]
    return [*rows, *(_line(line, len(table.columns)) for line in table.lines), ""]


def _line(line: Line, columns: int) -> str:
    name = f"**{escaped(line.name)}**" if line.kind == "ours" else escaped(line.name)
    cells = [escaped(line.told), *[""] * (columns - 1)] if line.told else [_cell(cell) for cell in line.cells]
    return f"| {name} | {' | '.join(cells)} |"


def _cell(cell: Cell) -> str:
    text = f"**{escaped(cell.text)}**" if cell.best else escaped(cell.text)
    if not cell.small:
        return text
    return f"{text} / {cell.small}" if " to " not in cell.small else f"{text} ({cell.small})"
