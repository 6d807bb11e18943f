"""Who is better than whom: ranks within a contest, and how ours stands against every rival."""

from __future__ import annotations

import math
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
    again : over a second retraining; None where nobody retrained again
    """

    contest: Contest
    measure: Measure
    score: Interval
    leads: tuple[Lead, ...]
    again: Lead | None = None

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

    @property
    def as_near_as_again(self) -> bool:
        """Whether ours is not surely farther from the retrained model than a second retraining."""
        return self.again is not None and not self.again.lost

    @property
    def again_score(self) -> float:
        """What a second retraining has, mean over seeds; NaN where nobody retrained again."""
        return mean(self.again.rival.over(self.contest.seeds, self.measure.score)).mean if self.again else math.nan


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
        leads = [
            lead
            for rival in contest.methods.values()
            if rival.is_rival and not rival.failed and (lead := _lead(rival, measure, own))
        ]
        leads.sort(key=lambda lead: lead.by.mean)
        score = mean(ours.over(own, measure.score))
        again = _lead(contest.again, measure, own) if contest.again else None
        found.append(Standing(contest, measure, score, tuple(leads), again))
    return found


def _lead(rival: Runs, measure: Measure, own: Mapping[int, float]) -> Lead | None:
    """How far ours, whose shortfalls by seed are `own`, is ahead of a rival; None where they share no seed."""
    its = {seed: measure.shortfall(measure.score(of)) for seed, of in rival.records.items() if seed in own}
    both = [seed for seed, value in its.items() if value == value]
    return Lead(rival, difference(tuple(its[seed] for seed in both), tuple(own[seed] for seed in both))) if both else None


def costs(contest: Contest) -> dict[str, float]:
    """Ours ÷ retraining's, mean over seeds, of each of `COSTS` that was measured."""
    ours = contest.ours
    if ours is None or ours.failed:
        return {}
    shares = {what: share(contest, ours, what) for what in COSTS}
    return {what: value for what, value in shares.items() if value == value}


def share(contest: Contest, runs: Runs, what: str) -> float:
    """A method's cost ÷ retraining's, mean over seeds, by a name of `Cost.amounts`; NaN where one was not measured."""
    ratios = runs.over(contest.seeds, lambda one: ratio(one, what))
    return statistics.fmean(ratios) if ratios else math.nan
