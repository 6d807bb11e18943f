"""What a method cost, and how much that is of what retraining cost in the same run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Resources that one method used; None for what was not measured, or does not exist, such as the rounds of a central one.

    Attributes
    ----------
    images : sent through the model, forwards or both ways, each time counted
    seconds : wall time
    rounds : of the federation
    bytes_up, bytes_down : from and to each site
    peak_bytes : most memory held at once

    Raises
    ------
    ValueError : an amount below 0 or not finite
    """

    images: float | None = None
    seconds: float | None = None
    rounds: float | None = None
    bytes_up: Mapping[str, float] = field(default_factory=dict)
    bytes_down: Mapping[str, float] = field(default_factory=dict)
    peak_bytes: float | None = None

    def __post_init__(self) -> None:
        for name, amount in self.amounts().items():
            if not (math.isfinite(amount) and amount >= 0):
                raise ValueError(f"cost of {name}: expected a finite amount of at least 0, got {amount}")

    def amounts(self) -> dict[str, float]:
        """All that was measured, by name; of bytes the sum over sites, and each site's as ``bytes_up/<site>``."""
        found: dict[str, float] = {}
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, Mapping):
                found |= {each.name: float(sum(value.values()))} if value else {}
                found |= {f"{each.name}/{site}": float(value[site]) for site in sorted(value)}
            elif value is not None:
                found[each.name] = float(value)
        return found


def summed(costs: Sequence[Cost]) -> Cost:
    """The cost of all, one after another: sums, but of `peak_bytes` the largest; None where one of them did not measure it.

    Raises
    ------
    ValueError : there is none, or one measured the bytes of its sites and another did not
    """
    if not costs:
        raise ValueError("expected a cost or more to sum, got none")
    told = dict[str, Any]()
    for each in fields(Cost):
        values = [getattr(cost, each.name) for cost in costs]
        if isinstance(values[0], Mapping):
            if len({bool(value) for value in values}) > 1:
                raise ValueError(f"{each.name}: expected it of every cost or of none, got it of some")
            sites = dict.fromkeys(site for value in values for site in value)
            told[each.name] = {site: sum(value.get(site, 0.0) for value in values) for site in sites}
        elif all(value is not None for value in values):
            told[each.name] = max(values) if each.name == "peak_bytes" else sum(values)
    return Cost(**told)


def ratios(cost: Cost, retraining: Cost) -> dict[str, float]:
    """Each amount ÷ retraining's in the same run, by the names of `Cost.amounts`; below 1 is cheaper. 1 where both are 0.

    A site that one of the two never asked sent and got nothing there. Where retraining alone left it in peace, such as a site
    that leaves, its ratio is infinite.

    Raises
    ------
    ValueError : one of the two measured what the other did not, or retraining as a whole used nothing of what the method used
    """
    mine, its = cost.amounts(), retraining.amounts()
    odd = sorted(name for name in mine.keys() ^ its.keys() if "/" not in name)
    if odd:
        raise ValueError(f"expected both costs to measure the same, got of one alone: {', '.join(odd)}")
    free = [name for name in mine if "/" not in name and its[name] == 0 and mine[name] > 0]
    if free:
        raise ValueError(
            f"no ratio to a retraining that used nothing of: {', '.join(free)}; measure it, or leave it out of both"
        )
    return {
        name: _ratio(mine.get(name, 0.0), its.get(name, 0.0)) for name in (*mine, *(name for name in its if name not in mine))
    }


def shared_ratios(cost: Cost, retraining: Cost) -> dict[str, float]:
    """`ratios` of what both measured: a central method has no rounds. What retraining used nothing of is left out as well."""
    mine, its = cost.amounts(), retraining.amounts()
    both = [name for name in mine if name in its and "/" not in name and (its[name] > 0 or mine[name] == 0)]
    of_both = (Cost(**{name: getattr(one, name) for name in both}) for one in (cost, retraining))
    return ratios(*of_both)


def _ratio(amount: float, of: float) -> float:
    if of == 0:
        return 1.0 if amount == 0 else math.inf
    return amount / of
