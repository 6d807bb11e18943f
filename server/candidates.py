"""Which of several candidates becomes the revised model: measured on reference images, never assumed.

A candidate stays on the *Pareto front* when no other is at least as good in everything and better in something. Of the front,
the request's preference between forgetting and retention picks one; a candidate that meets the acceptance rule comes before
one that does not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from excise.common.request import ForgetRequest, RequestKind
from excise.server.scores import Audit
from excise.server.verdict import IDEAL_MEMBERSHIP, OVER_UNLEARNING, SMALLEST_UNIT, score, verdict, worst_drop


@dataclass(frozen=True)
class Standing:
    """How one candidate stands among the others, on reference images.

    Attributes
    ----------
    objectives : what is to be small, by name: ``forget gap``, ``retain loss``, ``worst site loss`` and, unless a whole class
        is
        forgotten, ``membership``; NaN where it was not measured
    excess : `Verdict.excess`; 0 meets the acceptance rule
    price : the objectives in units of the limits that the request sets them, weighed by its preference
    on_front : whether no other candidate dominates it
    chosen : whether it becomes the revised model
    """

    objectives: dict[str, float]
    excess: float
    price: float
    on_front: bool = False
    chosen: bool = False


def rank(before: Audit, candidates: Mapping[str, Audit], request: ForgetRequest) -> dict[str, Standing]:
    """Compare the candidates, of which there is at least one, and choose. Equal ones: the one that is named first.

    Parameters
    ----------
    before : scores of the deployed model
    candidates : scores by name
    """
    found = {name: _measure(before, audit, request) for name, audit in candidates.items()}
    front = pareto_front({name: one.objectives for name, one in found.items()})
    chosen = min(front, key=lambda name: (found[name].excess > 0, found[name].price))
    return {
        name: Standing(one.objectives, one.excess, one.price, name in front, name == chosen) for name, one in found.items()
    }


def pareto_front(points: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Names of the points that no other dominates, in their order; every coordinate is to be small, NaN is worst.

    >>> pareto_front({"a": {"x": 1, "y": 2}, "b": {"x": 2, "y": 1}, "c": {"x": 2, "y": 2}})
    ['a', 'b']
    """

    def dominates(one: Mapping[str, float], other: Mapping[str, float]) -> bool:
        pairs = [(_known(one[key]), _known(other[key])) for key in one]
        return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)

    return [name for name, point in points.items() if not any(dominates(other, point) for other in points.values())]


def _measure(before: Audit, after: Audit, request: ForgetRequest) -> Standing:
    results = {"original": before.choice, "unlearned": after.choice}
    rule, forget = request.acceptance, score(results, "unlearned", "forget_accuracy")
    retain = score(results, "original", "retain_accuracy") - score(results, "unlearned", "retain_accuracy")
    retention = {
        "retain loss": (retain, rule.retain_drop),
        "worst site loss": (worst_drop(results)[1], rule.worst_site_drop),
    }
    if request.kind is RequestKind.CLASS:
        forgetting = {"forget gap": (forget, rule.forget_class_accuracy)}
    else:
        unseen = score(results, "original", "matched_held_out_accuracy")
        distance = abs(score(results, "unlearned", "membership_auc") - IDEAL_MEMBERSHIP)
        forgetting = {
            "forget gap": (abs(forget - unseen), OVER_UNLEARNING),
            "membership": (distance, rule.membership_tolerance),
        }
    price = request.preference * _mean_units(forgetting) + (1 - request.preference) * _mean_units(retention)
    objectives = {name: value for name, (value, _) in (forgetting | retention).items()}
    return Standing(objectives, verdict(results, request).excess, price)


def _mean_units(measured: Mapping[str, tuple[float, float]]) -> float:
    """Mean of the values in units of their limits; what is better than no loss at all does not make up for anything."""
    units = [max(_known(value), 0.0) / max(limit, SMALLEST_UNIT) for value, limit in measured.values()]
    return sum(units) / len(units)


def _known(value: float) -> float:
    return math.inf if math.isnan(value) else value
