"""The table of winners."""

from __future__ import annotations

from collections.abc import Sequence

from excise.server.report import MISSING, signed, three
from excise.simulations.contest.report.contests import GOLD, MEASURES, Contest, Measure
from excise.simulations.contest.report.standing import mean, standings
from excise.simulations.contest.report.tables import Cell, Line, Table, interval_cell


def winners(contests: Sequence[Contest]) -> Table:
    """By scenario and measure: the best, also of the federated ones, ours, a second retraining, and the lead over a rival."""
    lines = []
    for contest in contests:
        stood = {one.measure.name: one for one in standings(contest)}
        for measure in MEASURES:
            best = [_best(contest, measure, federated) for federated in (False, True)]
            own = stood.get(measure.name)
            lead = own.leads[0] if own and own.leads else None
            word = own.word if own else "failed" if contest.ours else "not run"
            cells = (
                Cell(measure.name),
                *best,
                Cell(three(own.score.mean) if own else MISSING),
                Cell(three(own.again_score) if own and own.again else MISSING),
                interval_cell(lead.by, signed) if lead else Cell(MISSING),
                Cell(lead.rival.name if lead else MISSING),
                Cell(word, best=word == "behind"),
            )
            lines.append(Line(contest.title, "plain", cells))
    columns = ("by", "best", "best federated", "ours", GOLD, "ours ahead by", "of the best rival", "ours is")
    return Table("Winners", columns, tuple(lines), "scenario", (0, 1, 2, 6, 7))


def _best(contest: Contest, measure: Measure, federated: bool) -> Cell:
    shortfalls = contest.ranked(measure, federated)
    if not shortfalls:
        return Cell(MISSING)
    means = {name: mean(contest.methods[name].over(contest.seeds, measure.score)).mean for name in shortfalls}
    first = min(means, key=lambda name: (measure.shortfall(means[name]), name))
    return Cell(first, three(means[first]))
