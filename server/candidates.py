"""Which of several candidates becomes the revised model: measured on reference images, never assumed.

Those that meet the acceptance rule stand for choice, or all when none does. A candidate stays on the *Pareto front* when no
other is at least as good in everything and better in something; of the front, the request's preference between forgetting and
retention picks one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from excise.common.request import ForgetRequest
from excise.server.verdict import IDEAL_MEMBERSHIP, OVER_UNLEARNING, SMALLEST_UNIT, Results, score, verdict, worst_drop


@dataclass(frozen=True)
class Standing:
    """How one candidate stands among the others, on reference images.

    Attributes
    ----------
    objectives : what is to be small, by name: ``forget gap``, ``retain loss``, ``worst site loss`` and, but for whole classes,
        ``membership``; NaN where it was not measured
    excess : `Verdict.excess`; 0 meets the acceptance rule
    price : the objectives in units of their limits, weighed by the request's preference
    on_front : whether no other candidate dominates it
    chosen : whether it becomes the revised model
    """

    objectives: dict[str, float]
    excess: float
    price: float
    on_front: bool = False
    chosen: bool = False


def rank(
    before: Mapping[str, Any], candidates: Mapping[str, Mapping[str, Any]], request: ForgetRequest
) -> dict[str, Standing]:
    """Compare the candidates, of which there is at least one, and choose. Equal ones: the one that is named first.

    Parameters
    ----------
    before : scores of the deployed model, as choices are made on them (`Audit.choice`)
    candidates : the same by name
    """
    results = {name: {"original": before, "unlearned": scores} for name, scores in candidates.items()}
    excess = {name: verdict(both, request).excess for name, both in results.items()}
    measured = {name: _measured(both, request) for name, both in results.items()}
    points = {name: {key: value for key, (value, _) in one.items()} for name, one in measured.items()}
    prices = _prices(measured, request.preference)
    eligible = {name: points[name] for name in points if excess[name] == 0} or points
    chosen = min(pareto_front(eligible), key=lambda name: (prices[name], excess[name]))
    front = pareto_front(points)
    return {name: Standing(points[name], excess[name], prices[name], name in front, name == chosen) for name in points}


def pareto_front(points: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Names of the points that no other dominates, in their order; every coordinate is to be small, NaN is worst.

    >>> pareto_front({"a": {"x": 1, "y": 2}, "b": {"x": 2, "y": 1}, "c": {"x": 2, "y": 2}})
    ['a', 'b']
    """

    def dominates(one: Mapping[str, float], other: Mapping[str, float]) -> bool:
        pairs = [(_known(one[key]), _known(other[key])) for key in one]
        return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)

    return [name for name, point in points.items() if not any(dominates(other, point) for other in points.values())]


FORGETTING = ("forget gap", "membership")
"""Objectives of forgetting; the others are of retention."""


def _measured(results: Results, request: ForgetRequest) -> dict[str, tuple[float, float]]:
    """Per objective its value and the unit in which it is weighed against others: the limit that it has."""
    rule = request.acceptance
    if request.forget_limit is not None:
        found = {"forget gap": (score(results, "unlearned", "forget_accuracy"), request.forget_limit)}
    else:
        unseen, forget = (
            score(results, model, f"matched_{name}_accuracy")
            for model, name in (("original", "held_out"), ("unlearned", "forget"))
        )
        distance = abs(score(results, "unlearned", "membership_auc") - IDEAL_MEMBERSHIP)
        found = {
            "forget gap": (abs(forget - unseen), OVER_UNLEARNING),
            "membership": (distance, rule.membership_tolerance),
        }
    retain = score(results, "original", "retain_accuracy") - score(results, "unlearned", "retain_accuracy")
    return found | {
        "retain loss": (retain, rule.retain_drop),
        "worst site loss": (worst_drop(results)[1], rule.worst_site_drop),
    }


def _prices(measured: Mapping[str, Mapping[str, tuple[float, float]]], preference: float) -> dict[str, float]:
    """Mean of forgetting and mean of retention, in units of their limits, weighed by the preference.

    What is better than no loss at all does not make up for anything, and what no candidate could measure weighs nothing.
    """
    known = [key for key in next(iter(measured.values())) if any(not math.isnan(one[key][0]) for one in measured.values())]
    prices = {}
    for name, one in measured.items():
        price = 0.0
        for weight, side in (
            (preference, [key for key in known if key in FORGETTING]),
            (1 - preference, [key for key in known if key not in FORGETTING]),
        ):
            units = [max(_known(one[key][0]), 0.0) / max(one[key][1], SMALLEST_UNIT) for key in side]
            price += weight * sum(units) / len(units) if weight and units else 0.0
        prices[name] = price
    return prices


def _known(value: float) -> float:
    return math.inf if math.isnan(value) else value
