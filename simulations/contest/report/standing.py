"""Who is better than whom: ranks within a contest, and how ours stands against every rival."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from excise.simulations.contest.report.contests import MEASURES, Contest, Measure, Runs, ratio
from excise.simulations.judging.bootstrap import Interval, difference_interval, mean_interval

COSTS = ("images", "seconds")
Shortfalls = tuple[float, ...]


@cache
def difference(ours: Shortfalls, theirs: Shortfalls) -> Interval:
    """As `difference_interval`; of each pair once."""
    return difference_interval(ours, theirs)


@cache
def mean(values: tuple[float, ...]) -> Interval:
    """As `mean_interval`; of the same values once."""
    return mean_interval(values)


@dataclass(frozen=True)
class Rank:
    """A place by the mean over seeds, from 1, equal means sharing it; `tied`: over several seeds nobody is surely better."""

    place: int
    tied: bool

    def __str__(self) -> str:
        return f"{'=' if self.tied else ''}{self.place}"


def ranks(shortfalls: Mapping[str, Shortfalls]) -> dict[str, Rank]:
    """Rank of each method, by shortfalls over the same seeds."""
    means = {name: statistics.fmean(of) for name, of in shortfalls.items()}
    found = {}
    for name, own in shortfalls.items():
        better = [other for other in shortfalls if means[other] < means[name]]
        surely = any(difference(own, shortfalls[other]).decided for other in better)
        found[name] = Rank(1 + len(better), len(own) > 1 and not surely)
    return found


@dataclass(frozen=True)
class Lead:
    """How far ours is ahead of a rival, below 0 where it is behind: of the measure, paired by seed."""

    rival: Runs
    by: Interval

    @property
    def lost(self) -> bool:
        """Whether the rival is better, and seeds do not leave that open; one seed has no interval, and leaves nothing open."""
        return self.by.mean < 0 and (self.by.values == 1 or self.by.decided)

    @property
    def won(self) -> bool:
        """Whether ours is better, and seeds do not leave that open."""
        return self.by.mean > 0 and (self.by.values == 1 or self.by.decided)


@dataclass(frozen=True)
class Standing:
    """How ours stands in a contest by one measure.

    Attributes
    ----------
    score : of ours, mean and interval
    leads : over each rival that could be compared, the one that did best first
    """

    contest: Contest
    measure: Measure
    score: Interval
    leads: tuple[Lead, ...]

    @property
    def lost(self) -> list[Lead]:
        """Rivals that it loses to."""
        return [lead for lead in self.leads if lead.lost]

    @property
    def word(self) -> str:
        """First, surely ahead of every rival; behind, surely behind one; else tie. Alone where there is no rival."""
        if not self.leads:
            return "alone"
        if self.lost:
            return "behind"
        return "first" if all(lead.won for lead in self.leads) else "tie"


def standings(contest: Contest) -> list[Standing]:
    """By each measure; none where ours has no record, or failed."""
    ours = contest.ours
    if ours is None or ours.failed:
        return []
    found = []
    for measure in MEASURES:
        own = {seed: measure.shortfall(measure.score(ours.records[seed])) for seed in contest.seeds if seed in ours.records}
        own = {seed: value for seed, value in own.items() if value == value}
        if not own:
            continue
        leads = []
        for rival in contest.methods.values():
            if not rival.is_rival or rival.failed:
                continue
            its = {seed: measure.shortfall(measure.score(of)) for seed, of in rival.records.items() if seed in own}
            both = [seed for seed, value in its.items() if value == value]
            if both:
                leads.append(Lead(rival, difference(tuple(its[seed] for seed in both), tuple(own[seed] for seed in both))))
        leads.sort(key=lambda lead: lead.by.mean)
        score = mean(ours.over(own, measure.score))
        found.append(Standing(contest, measure, score, tuple(leads)))
    return found


def costs(contest: Contest) -> dict[str, float]:
    """Ours ÷ retraining's, mean over seeds, of each of `COSTS` that was measured."""
    ours = contest.ours
    if ours is None or ours.failed:
        return {}
    found = {}
    for what in COSTS:
        ratios = ours.over(contest.seeds, lambda one, what=what: ratio(one, what))  # type: ignore[misc]
        if ratios and all(value == value for value in ratios):
            found[what] = statistics.fmean(ratios)
    return found
