"""Tables of a contest, as text in cells: what Markdown and HTML show alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from excise.server.report import MISSING, signed, three
from excise.simulations.contest.record import Record
from excise.simulations.contest.report.contests import AUC, MEASURES, TOW, Contest, Runs, Values, apart, gap, ratio
from excise.simulations.contest.report.standing import Rank, mean, ranks
from excise.simulations.contest.search import BUDGET
from excise.simulations.judging.bootstrap import Interval
from excise.simulations.judging.metrics import known_metrics

Score = partial[float]
"""Of a model's metrics and the retrained model's; the first argument, which it has, is the metric's name."""

IDEAL = "ideal"
"""The row above all others."""


@dataclass(frozen=True)
class Cell:
    """What is told, what stands small beside it (an interval, say), and whether it is to be seen first."""

    text: str
    small: str = ""
    best: bool = False


@dataclass(frozen=True)
class Line:
    """A row: whose it is, of which kind (`Runs.kind`, or reference), and its cells, or what is told in place of them."""

    name: str
    kind: str
    cells: tuple[Cell, ...]
    told: str = ""


@dataclass(frozen=True)
class Table:
    """Columns besides the first, which names the rows; `words` holds the numbers of those that are text."""

    title: str
    columns: tuple[str, ...]
    lines: tuple[Line, ...]
    first: str = "method"
    words: tuple[int, ...] = ()


def _plain(key: str, values: Values, retrained: Values) -> float:
    return values.get(key, math.nan)


def _gap(key: str, values: Values, retrained: Values) -> float:
    return gap(values, retrained, key)


def _apart(key: str, values: Values, retrained: Values) -> float:
    return apart(values, retrained, key)


SCORES: dict[str, Score] = {
    "ToW": partial(_plain, "tow"),
    "AUC distance": partial(_apart, "loss_auc"),
    "forget": partial(_plain, "forget_accuracy"),
    "retain": partial(_plain, "retain_accuracy"),
    "test": partial(_plain, "test_accuracy"),
}
COSTS = {
    "images ÷": "images",
    "seconds ÷": "seconds",
    "rounds ÷": "rounds",
    "bytes up ÷": "bytes_up",
    "bytes down ÷": "bytes_down",
    "memory ÷": "peak_bytes",
}
MORE: dict[str, Score] = {
    "AUC": partial(_plain, "loss_auc"),
    "hits at 1 %": partial(_plain, "loss_tpr"),
    "MIA-NN": partial(_plain, "output_attack_members"),
    "U-LiRA AUC": partial(_plain, "ulira_auc"),
    "RMIA AUC": partial(_plain, "rmia_auc"),
    "JS, forget": partial(_plain, "forget_js"),
    "JS, test": partial(_plain, "test_js"),
    "relearn ratio": partial(_plain, "relearn_ratio"),
    "resurfaced": partial(_plain, "resurfaced"),
    "came back": partial(_plain, "came_back"),
    "earlier ToW": partial(_plain, "earlier_tow"),
    "probe": partial(_plain, "probe_accuracy"),
    "near retain": partial(_plain, "near_retain_accuracy"),
    "worst site's change": partial(_plain, "worst_site_change"),
    "balanced, test": partial(_plain, "test_balanced_accuracy"),
    "AUROC, test": partial(_plain, "test_auroc"),
    "ECE, test": partial(_plain, "test_calibration_error"),
}
GAPS: dict[str, Score] = {
    "forget": partial(_gap, "forget_accuracy"),
    "retain": partial(_gap, "retain_accuracy"),
    "test": partial(_gap, "test_accuracy"),
    "AUC": partial(_gap, "loss_auc"),
    "MIA-NN": partial(_gap, "output_attack_members"),
    "JS, forget": partial(_gap, "forget_js"),
    "JS, test": partial(_gap, "test_js"),
    "relearn ratio": partial(_gap, "relearn_ratio"),
    "resurfaced": partial(_gap, "resurfaced"),
    "probe": partial(_gap, "probe_accuracy"),
    "near retain": partial(_gap, "near_retain_accuracy"),
    "worst site": partial(_gap, "worst_site_accuracy"),
}


def tables_of(contest: Contest) -> list[Table]:
    """Ranks and scores; more metrics; signed gaps to retrained. Columns of which nothing is known are left out."""
    return [
        _without_empty(_scores(contest)),
        _without_empty(_models(contest, "More metrics", MORE, three)),
        _without_empty(_models(contest, "Signed gaps to the retrained model", GAPS, signed)),
    ]


def ordered(contest: Contest) -> list[Runs]:
    """Methods as tables show them: by ToW, then those that lack seeds, then those that failed."""

    def key(runs: Runs) -> tuple[bool, bool, float, str]:
        scores = [score for score in runs.over(contest.seeds, TOW.score) if score == score]
        return bool(runs.failed), bool(contest.lacking(runs)), -sum(scores) / max(1, len(scores)), runs.name

    return sorted(contest.methods.values(), key=key)


def _scores(contest: Contest) -> Table:
    places = {
        measure.name: (ranks(contest.ranked(measure)), ranks(contest.ranked(measure, federated=True))) for measure in MEASURES
    }
    lines = [Line(IDEAL, "reference", (Cell(""), Cell(""), *map(_ideal, SCORES.values()), *(Cell(three(0.0)) for _ in COSTS)))]
    for title, values_of in (("original", _original), ("retrained", _retrained)):
        cells = [_cell(_over(contest, values_of, score), three) for score in SCORES.values()]
        is_gold = title == "retrained"
        spent = [Cell(three(1.0) if is_gold and _is_measured(contest, what) else MISSING) for what in COSTS.values()]
        lines.append(Line(title, "reference", (Cell(""), Cell(""), *cells, *spent)))
    for runs in ordered(contest):
        if told := _told(contest, runs):
            lines.append(Line(runs.name, runs.kind, (), told))
            continue
        placed = [_rank(runs, *places[measure.name]) for measure in (TOW, AUC)]
        cells = []
        for name, score in SCORES.items():
            best = name in places and (place := places[name][0].get(runs.name)) is not None and place.place == 1
            cells.append(_cell(runs.over(contest.seeds, partial(_of_record, score)), three, best=best))
        spent = [Cell(_cell(runs.over(contest.seeds, partial(ratio, what=what)), three).text) for what in COSTS.values()]
        lines.append(Line(runs.name, runs.kind, (*placed, *cells, *spent)))
    columns = ("rank, ToW", "rank, AUC", *SCORES, *COSTS)
    return Table("Ranks and scores", columns, tuple(lines))


def _models(contest: Contest, title: str, scores: dict[str, Score], form: Callable[[float], str]) -> Table:
    lines = [
        Line(IDEAL, "reference", tuple(map(_ideal, scores.values()))),
        *(
            Line(name, "reference", tuple(_cell(_over(contest, values_of, score), form) for score in scores.values()))
            for name, values_of in (("original", _original), ("retrained", _retrained))
        ),
    ]
    for runs in ordered(contest):
        if not _told(contest, runs):
            told = (runs.over(contest.seeds_of(score.args[0]), partial(_of_record, score)) for score in scores.values())
            lines.append(Line(runs.name, runs.kind, tuple(_cell(values, form) for values in told)))
    return Table(title, tuple(scores), tuple(lines))


def settings_of(contest: Contest) -> Table:
    """Each method's best settings, and how they were searched."""
    lines = []
    for runs in ordered(contest):
        found = {str(one.searched): one for one in runs.records.values()}
        one = list(found.values())[-1]
        settings = ", ".join(f"{key} = {value:.3g}" for key, value in one.searched.settings.items()) or "none to choose"
        trials = f"{one.searched.trials}"
        if lost := one.searched.pruned + one.searched.failed:
            trials += f", {lost} of them given up or failed"
        if one.searched.over:
            trials += f", {one.searched.over} dearer than {BUDGET:.3f}"
        cells = (Cell(settings), Cell(three(one.searched.loss)), Cell(trials), Cell(one.paper))
        lines.append(Line(runs.name, runs.kind, cells))
    return Table("Best settings", ("settings", "objective", "trials", "paper"), tuple(lines), words=(0, 2, 3))


def _ideal(score: Score) -> Cell:
    """The best there could be of a score: of a distance or a gap to the retrained model 0.

    Of the loss attack what the retrained model has, whatever is forgotten: by that the page measures.
    """
    ideal = known_metrics(whole_class=True).get(score.args[0]).ideal if score.func is _plain else 0.0
    return Cell(ideal if isinstance(ideal, str) else three(ideal))


def _told(contest: Contest, runs: Runs) -> str:
    """Why a method has no scores here, or not all of them."""
    if runs.failed:
        return f"failed: {runs.failed}"
    lacking = contest.lacking(runs)
    return f"not run with seed {', '.join(map(str, lacking))}; not ranked" if lacking else ""


def _rank(runs: Runs, among_all: dict[str, Rank], among_federated: dict[str, Rank]) -> Cell:
    if runs.name not in among_all:
        return Cell(MISSING)
    return Cell(f"{among_all[runs.name]}", f"{among_federated[runs.name]}" if runs.federated else "")


def _of_record(score: Score, record: Record) -> float:
    return score(record.values, record.retrained)


def _original(record: Record) -> Values:
    return record.original


def _retrained(record: Record) -> Values:
    return record.retrained


def _over(contest: Contest, values_of: Callable[[Record], Values], score: Score) -> tuple[float, ...]:
    return tuple(score(values_of(one), one.retrained) for one in contest.references(score.args[0]))


def _is_measured(contest: Contest, what: str) -> bool:
    return all(what in one.retraining.amounts() for one in contest.by_seed)


def _cell(values: tuple[float, ...], form: Callable[[float], str], best: bool = False) -> Cell:
    """Mean and interval over seeds; a dash where one of them has no value."""
    if not values or not all(map(math.isfinite, values)):
        return Cell(MISSING)
    return interval_cell(mean(values), form, best)


def interval_cell(found: Interval, form: Callable[[float], str], best: bool = False) -> Cell:
    """A mean with the ends of its interval, which one value, and equal ones, have not."""
    is_wide = found.values > 1 and form(found.low) != form(found.high)
    return Cell(form(found.mean), f"{form(found.low)} to {form(found.high)}" if is_wide else "", best)


def _without_empty(table: Table) -> Table:
    """Only the columns in which there is a value."""

    def filled() -> Iterator[int]:
        for i in range(len(table.columns)):
            if any(line.cells[i].text not in ("", MISSING) for line in table.lines if line.cells and line.name != IDEAL):
                yield i

    kept = list(filled())
    lines = tuple(Line(one.name, one.kind, tuple(one.cells[i] for i in kept if one.cells), one.told) for one in table.lines)
    return Table(table.title, tuple(table.columns[i] for i in kept), lines, table.first, table.words)
