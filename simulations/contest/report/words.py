"""What the page says, from the records alone: what was run, what was not, and where ours does not win."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from excise.server.report import three
from excise.simulations.contest.report.beside import worse_beside
from excise.simulations.contest.report.contests import AUC, FAMILY, GOLD, OURS, TOW, Contest
from excise.simulations.contest.report.standing import Lead, Standing, costs, share, standings
from excise.simulations.contest.report.tables import Cell, Line, Table
from excise.simulations.contest.search import BUDGET, DRAWN
from excise.simulations.judging.bootstrap import Interval

NAME = f'"{OURS}"'
FEW = 5
"""Fewer seeds than these leave the bootstrap interval clearly too narrow."""


@dataclass(frozen=True)
class Item:
    """A point of a list: what it is of, and what is said."""

    head: str
    text: str


@dataclass(frozen=True)
class Honest:
    """How ours stands: in a sentence or two, and point by point where it loses."""

    summary: str
    points: tuple[Item, ...]


def ran(contests: Sequence[Contest]) -> Table:
    """What was run, a row for each scenario."""
    lines = []
    for contest in contests:
        methods = contest.methods.values()
        federated = sum(runs.federated for runs in methods)
        trials = _trials([contest])
        texts = (
            ", ".join(map(str, contest.seeds)),
            f"{len(methods)}",
            f"{federated}",
            f"{sum(bool(runs.failed) for runs in methods)}",
            _between(trials) if any(trials) else "no search",
        )
        lines.append(Line(contest.title, "plain", tuple(map(Cell, texts))))
    return Table("What was run", ("seeds", "methods", "federated", "failed", "trials of each"), tuple(lines), "scenario", (0,))


def not_run(contests: Sequence[Contest], scenarios: Iterable[str], methods: Iterable[str]) -> list[Item]:
    """Scenarios of the benchmark without a record, methods without one in a scenario, and seeds that some methods lack.

    Parameters
    ----------
    scenarios, methods : names of all there are
    """
    known, found = {record.scenario for contest in contests for record in contest.by_seed}, []
    if missing := [name for name in scenarios if name not in known]:
        found.append(Item("Scenarios", f"{', '.join(missing)}."))
    of: dict[tuple[str, ...], list[str]] = {}
    wanted = list(methods)
    for contest in contests:
        of.setdefault(tuple(name for name in wanted if name not in contest.methods), []).append(contest.title)
    found += [Item(f"Methods in {', '.join(titles)}", f"{'; '.join(names)}.") for names, titles in of.items() if names]
    tried = [
        contest.title + (f" ({_seeds(contest.traced)})" if contest.traced != contest.seeds else "")
        for contest in contests
        if contest.traced
    ]
    if len(tried) < len(contests) or any(contest.traced != contest.seeds for contest in contests):
        where = f"{', '.join(tried)} alone" if tried else "no scenario"
        found.append(Item("U-LiRA and RMIA", f"tried in {where}; the option --shadows tries them."))
    for contest in contests:
        lacking = [f"{one.name} with {_seeds(lacks)}" for one in contest.methods.values() if (lacks := contest.lacking(one))]
        if lacking:
            found.append(Item(f"Seeds in {contest.title}", f"{'; '.join(lacking)}: not ranked."))
        further = sorted({seed for one in contest.methods.values() for seed in one.records} - set(contest.seeds))
        if further:
            text = f"some methods have {_seeds(further)} as well; no figure is of that."
            found.append(Item(f"Further seeds in {contest.title}", text))
    return found


def honest(contests: Sequence[Contest]) -> Honest:
    """Where ours is neither first nor tied, too dear, or worse than the retrained model by what nobody is ranked by."""
    points, stood = list[Item](), list[Standing]()
    dear: dict[str, Mapping[str, float]] = {}
    for contest in contests:
        found = standings(contest)
        stood += found
        points += _absent(contest, found)
        points += [_loss(one) for one in found if one.lost]
        spent = costs(contest)
        if over := {what: share for what, share in spent.items() if share > BUDGET}:
            dear[contest.title] = over
            told = " and ".join(f"{three(share)} of retraining's {what}" for what, share in over.items())
            points.append(Item(f"{contest.title}, cost", f"{told}, where at most {BUDGET:g} was to be."))
        points += [Item(f"{contest.title}, {what}", text) for what, text in worse_beside(contest).items()]
    return Honest(_summary(contests, stood, dear), tuple(points))


def _summary(contests: Sequence[Contest], stood: Sequence[Standing], dear: Mapping[str, Mapping[str, float]]) -> str:
    compared = [one for one in stood if one.leads]
    if not compared:
        return f"Nothing can be said of ours: there is no scenario in which {NAME} and a method that is not ours have a model."
    text = f"Of {len(compared)} comparisons (scenario by measure), {NAME} is {_places(compared)}"
    measures = dict.fromkeys(one.measure.name for one in compared)
    by = {name: _places([one for one in compared if one.measure.name == name]) for name in measures}
    text += f": {'; '.join(f'by {name} {places}' for name, places in by.items())}. "
    if not any(one.lost for one in compared):
        scores = {name: [one.score.mean for one in compared if one.measure.name == name] for name in ("ToW", AUC.name)}
        text += "It loses to no other method: " + "; ".join(f"{name} {_range(of)}" for name, of in scores.items() if of) + ". "
    if again := [one for one in stood if one.again]:
        near = sum(one.as_near_as_again for one in again)
        text += (
            f"In {near} of {len(again)} it is as near to the retrained model as a second retraining is: not surely farther. "
        )
    spent = {what: [costs(one)[what] for one in contests if what in costs(one)] for what in ("images", "seconds")}
    told = ", ".join(f"{_range(of)} of its {what}" for what, of in spent.items() if of)
    if told:
        text += f"Against retraining it costs {told}" + (
            f"; more than {BUDGET:g} in {len(dear)} of {len(contests)}." if dear else "."
        )
    return text


def _places(compared: Sequence[Standing]) -> str:
    count = {word: sum(one.word == word for one in compared) for word in ("first", "tie", "behind")}
    return f"first in {count['first']}, ties in {count['tie']} and is behind in {count['behind']}"


def _absent(contest: Contest, found: Sequence[Standing]) -> list[Item]:
    if contest.ours is None:
        return [Item(contest.title, f"{NAME} was not run.")]
    if contest.ours.failed:
        return [Item(contest.title, f"{NAME} failed: {contest.ours.failed}.")]
    if not found:
        return [Item(contest.title, f"{NAME} has no scores.")]
    return [] if any(one.leads for one in found) else [Item(contest.title, "there is no other method to compare with.")]


def _loss(one: Standing) -> Item:
    """By how much, and to whom: the one that is farthest ahead, the best federated one, and how many more."""
    worst, told = one.lost[0], [one.lost[0]]
    federated = next((lead for lead in one.lost if lead.rival.federated), None)
    if federated is not None and federated is not worst:
        told.append(federated)
    text = f"{three(one.score.mean)}, behind {' and '.join(_behind(one, lead) for lead in told)}."
    if (more := len(one.lost) - len(told)) > 0:
        text += f" {more} more {'are' if more > 1 else 'is'} ahead."
    if federated is None:
        text += " No federated method is surely ahead."
    if one.again:
        text += f" A second retraining has {three(one.again_score)}" + (
            ", and ours is not surely farther from the retrained model." if one.as_near_as_again else "."
        )
    return Item(f"{one.contest.title}, {one.measure.name}", text)


def _behind(one: Standing, lead: Lead) -> str:
    """By how much, to whom; with its ToW beside its AUC, and at what cost where that is more than unlearning may cost."""
    rival, spent = lead.rival, share(one.contest, lead.rival, "images")
    closeness = f" (ToW {three(fmean(rival.over(one.contest.seeds, TOW.score)))})" if one.measure is AUC else ""
    cost = f" at {three(spent)} of retraining's images" if spent > BUDGET else ""
    return f"{rival.name}{closeness} by {_told(lead.by)}{cost}"


def _told(by: Interval) -> str:
    """How far behind, above 0, and the interval."""
    ends = f"[{three(-by.high)} to {three(-by.low)}]" if by.values > 1 else "(one seed: no interval, so no tie)"
    return f"{three(-by.mean)} {ends}"


def rules(contests: Sequence[Contest]) -> list[str]:
    """How the page compares, in short paragraphs."""
    compositions = {name for contest in contests for name in contest.methods if name.startswith(FAMILY) and name != OURS}
    fewest = min(len(contest.seeds) for contest in contests)
    central = {name for contest in contests for name, runs in contest.methods.items() if runs.kind == "central"}
    told = [
        f"Ours is {NAME}, the default. "
        + (
            f"Others of ours, here {len(compositions)}, stand in the tables and count for nothing in this: to choose the "
            "best of them after the fact would be unfair. "
            if compositions
            else ""
        )
        + "It is compared with every method that was run and is not ours, on the same seeds"
        + (
            ", those with all images in one place as well, an advantage that no federation can give. "
            if central
            else "; none of those with all images in one place was run. "
        )
        + "Retraining is what all are measured against, and has no rank.",
        "ToW: closeness of the forget, retain and test accuracy to the retrained model's, 1 is best. AUC distance: how far "
        "the membership test's AUC is from the retrained model's, 0 is best. Where a whole class is forgotten, models that "
        "forgot nothing can be near by it: it compares images of that class alone. Ours is first where the 95 % bootstrap "
        "interval of its lead, paired by seed, lies above 0 against every method; behind where it lies below 0 against one; "
        "else it ties. " + ("With one seed there is no interval, and who is worse is behind." if fewest == 1 else ""),
    ]
    if any(contest.again for contest in contests):
        told.append(
            f"{GOLD}: a second retraining by the same recipe, from other initial weights and in other orders. How far it is "
            "from the retrained model is chance. Methods may come nearer: they begin with the deployed model, which has its "
            "initial weights in common with the retrained one."
        )
    trials = _trials(contests)
    if trials and 1 < max(trials) <= DRAWN:
        told.append(
            f"Settings were searched with {_between(trials)} trials of each method: its own, and others drawn at random. Only "
            f"from the {DRAWN + 1}th on would a search learn from those before."
        )
    if 1 < fewest < FEW:
        told.append(
            f"Of {fewest} seeds the bootstrap interval is too narrow: it calls more differences sure than there are, for ours "
            "and against it."
        )
    return [text.strip() for text in told]


def _trials(contests: Iterable[Contest]) -> set[int]:
    """Of each method; without those that have no settings: nothing to search, and one trial."""
    every = (one.searched for contest in contests for runs in contest.methods.values() for one in runs.records.values())
    return {searched.trials for searched in every if searched.settings}


def _between(numbers: Iterable[int]) -> str:
    low, high = min(found := list(numbers)), max(found)
    return f"{low}" if low == high else f"{low} to {high}"


def _range(values: Sequence[float]) -> str:
    low, high = three(min(values)), three(max(values))
    return low if low == high else f"{low} to {high}"


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
