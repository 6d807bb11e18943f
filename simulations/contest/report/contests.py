"""Records put together: one contest for each scenario, with what every method did in it under every seed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from excise.simulations.contest.record import Record

FAMILY, OURS = "excise, ", "excise, mean"
"""How the names of our methods begin; and the one that stands for them: to choose the best of many afterwards were unfair."""
GOLD = "retrain again"
"""A second retraining, as a method: it is of what the others are measured against, so it has no rank."""
TRACES = frozenset({"ulira_auc", "rmia_auc"})
"""Metrics of attacks with shadow models, which may have been asked for under some seeds and of some methods alone."""
Values = Mapping[str, float]


@dataclass(frozen=True)
class Measure:
    """What methods are ranked by.

    Attributes
    ----------
    name : short
    score : of a record, as it is shown; NaN where it is not known
    shortfall : of a score, in [0, 1], less is better
    """

    name: str
    score: Callable[[Record], float]
    shortfall: Callable[[float], float]


TOW = Measure("ToW", lambda one: one.values.get("tow", math.nan), lambda score: 1 - score)
AUC = Measure("AUC distance", lambda one: apart(one.values, one.retrained, "loss_auc"), lambda score: score)
MEASURES = (TOW, AUC)


def gap(values: Values, retrained: Values, key: str) -> float:
    """A metric less the retrained model's; NaN where one of the two is missing."""
    return values.get(key, math.nan) - retrained.get(key, math.nan)


def apart(values: Values, retrained: Values, key: str) -> float:
    """Distance of a metric from the retrained model's, at least 0; NaN where one of the two is missing."""
    return abs(gap(values, retrained, key))


@dataclass(frozen=True)
class Runs:
    """One method in one contest; `records` by seed, at least one."""

    name: str
    federated: bool
    records: Mapping[int, Record]

    @property
    def kind(self) -> str:
        """Who it is: ours, family (others of ours), gold, federated, or central."""
        if self.name == OURS:
            return "ours"
        if self.name.startswith(FAMILY):
            return "family"
        if self.name == GOLD:
            return "gold"
        return "federated" if self.federated else "central"

    @property
    def is_rival(self) -> bool:
        """Whether it is neither one of ours nor retraining."""
        return self.kind in ("federated", "central")

    @property
    def failed(self) -> str:
        """Why there is no model to judge, and under which seeds; empty where there is one under each."""
        seeds_of: dict[str, list[int]] = {}
        for seed, record in self.records.items():
            if record.failed:
                seeds_of.setdefault(record.failed, []).append(seed)
        return "; ".join(f"{reason} (seed {', '.join(map(str, seeds))})" for reason, seeds in seeds_of.items())

    def over(self, seeds: Iterable[int], value: Callable[[Record], float]) -> tuple[float, ...]:
        """A value under those of the seeds that it has a record of."""
        return tuple(value(self.records[seed]) for seed in seeds if seed in self.records)


@dataclass(frozen=True)
class Contest:
    """One scenario.

    Attributes
    ----------
    key : of its tasks
    title : its name; with the key where two scenarios share one
    seeds : those that most methods have a record of, ascending; all figures are of these
    methods : all that have a record, by name
    """

    key: str
    title: str
    seeds: tuple[int, ...]
    methods: Mapping[str, Runs]

    @property
    def by_seed(self) -> list[Record]:
        """A record for each seed, of any method: for what is the same in all of them, such as the retrained model's scores."""
        return [next(runs.records[seed] for runs in self.methods.values() if seed in runs.records) for seed in self.seeds]

    @property
    def traced(self) -> tuple[int, ...]:
        """Seeds under which there are shadow models, of some method at least."""
        return tuple(seed for seed in self.seeds if self._traced(seed))

    def _traced(self, seed: int) -> list[Record]:
        return [runs.records[seed] for runs in self.methods.values() if seed in runs.records and runs.records[seed].shadows]

    def seeds_of(self, key: str) -> tuple[int, ...]:
        """Those that a metric is told of: all, or those with shadow models, without which there are no traces."""
        return self.traced if key in TRACES else self.seeds

    def references(self, key: str) -> list[Record]:
        """A record for each seed that a metric is told of, which knows what it is of the original and the retrained."""
        if key not in TRACES:
            return self.by_seed
        return [self._traced(seed)[0] for seed in self.traced]

    @property
    def ours(self) -> Runs | None:
        """The one that stands for ours; None where it has no record."""
        return self.methods.get(OURS)

    @property
    def again(self) -> Runs | None:
        """The second retraining; None where it lacks a seed, or failed."""
        runs = self.methods.get(GOLD)
        return None if runs is None or runs.failed or self.lacking(runs) else runs

    def lacking(self, runs: Runs) -> tuple[int, ...]:
        """Seeds that a method has no record of."""
        return tuple(seed for seed in self.seeds if seed not in runs.records)

    def ranked(self, measure: Measure, federated: bool = False) -> dict[str, tuple[float, ...]]:
        """Shortfalls over the seeds of each method that has them all; retraining is none of them.

        Parameters
        ----------
        federated : without central methods
        """
        found = {}
        for name, runs in self.methods.items():
            if runs.kind == "gold" or runs.failed or self.lacking(runs) or (federated and not runs.federated):
                continue
            scores = runs.over(self.seeds, measure.score)
            if all(map(math.isfinite, scores)):
                found[name] = tuple(map(measure.shortfall, scores))
        return found


def contests_of(records: Iterable[Record], scenarios: Iterable[str] = ()) -> list[Contest]:
    """Contests in the order of `scenarios`, names of these; then others, by their names."""
    by_key: dict[str, dict[str, dict[int, Record]]] = {}
    for one in records:
        by_key.setdefault(one.key, {}).setdefault(one.entry, {})[one.seed] = one
    names = {key: next(iter(next(iter(entries.values())).values())).scenario for key, entries in by_key.items()}
    shared = Counter(names.values())
    found = []
    for key, entries in by_key.items():
        methods = {}
        for name, of in sorted(entries.items()):
            methods[name] = Runs(name, next(iter(of.values())).federated, dict(sorted(of.items())))
        title = names[key] if shared[names[key]] == 1 else f"{names[key]} ({key})"
        found.append(Contest(key, title, _seeds(methods.values()), methods))
    order = {name: place for place, name in enumerate(scenarios)}
    return sorted(found, key=lambda one: (order.get(names[one.key], len(order)), one.title))


def _seeds(methods: Iterable[Runs]) -> tuple[int, ...]:
    """The seeds that most methods have, the more where as many have others."""
    counts = Counter(tuple(runs.records) for runs in methods)
    return max(counts, key=lambda seeds: (counts[seeds], len(seeds), seeds))


def ratio(record: Record, what: str) -> float:
    """A cost ÷ retraining's in the same run, by a name of `Cost.amounts`; NaN where one of the two was not measured."""
    mine, its = record.cost.amounts().get(what, math.nan), record.retraining.amounts().get(what, math.nan)
    return mine / its if its else math.nan
