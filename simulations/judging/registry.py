"""The metrics by name: group, unit, range and ideal value, of which pages are made; and how far a value is from its ideal."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from excise.common.errors import did_you_mean

RETRAINED = "as retrained"
"""Ideal value of a metric for which the model retrained without the forget data is the measure."""


class Better(StrEnum):
    """Which of two values of a metric is better."""

    CLOSER = "closer to the ideal"
    HIGHER = "higher"
    LOWER = "lower"


@dataclass(frozen=True)
class Metric:
    """What a page says of a metric.

    Attributes
    ----------
    name : short, unique, of letters, digits and underscores
    group : utility, distance, membership, depth, persistence, collateral, cost
    unit : such as "share" or "bits"
    low, high : ends of its range
    ideal : a number, or `RETRAINED`
    better : which of two values is better; with `RETRAINED` always the closer one, below or above
    text : what it is, in a line
    """

    name: str
    group: str
    unit: str
    low: float
    high: float
    ideal: float | str
    better: Better
    text: str

    def __post_init__(self) -> None:
        if isinstance(self.ideal, str):
            if self.ideal != RETRAINED or self.better is not Better.CLOSER:
                raise ValueError(
                    f"{self.name}: expected '{RETRAINED}' and '{Better.CLOSER}', got '{self.ideal}', '{self.better}'"
                )
        elif not self.low <= self.ideal <= self.high:
            raise ValueError(f"{self.name}: expected an ideal from {self.low} to {self.high}, got {self.ideal}")


class Registry:
    """Metrics by name, in the order in which they were added."""

    def __init__(self) -> None:
        self._metrics: dict[str, Metric] = {}

    def add(self, metric: Metric) -> None:
        """Raises ValueError for a name that is taken."""
        if metric.name in self._metrics:
            raise ValueError(f"there is a metric '{metric.name}' already; give the new one another name")
        self._metrics[metric.name] = metric

    def get(self, name: str) -> Metric:
        """Raises ValueError for an unknown name, and lists the known ones."""
        if name not in self._metrics:
            raise ValueError(f"unknown metric '{name}': {did_you_mean(name, self._metrics)}")
        return self._metrics[name]

    def all(self) -> tuple[Metric, ...]:
        """Every metric."""
        return tuple(self._metrics.values())


def signed_gap(value: float, retrained: float) -> float:
    """Value minus retrained's; NaN where one is NaN."""
    return value - retrained


def shortfall(metric: Metric, value: float, retrained: float = math.nan) -> float:
    """How far a value is from the ideal, at least 0, less is better; NaN where it, or retrained's that is needed, is NaN.

    Where higher or lower is better, a value beyond the ideal falls short by nothing.

    Raises
    ------
    ValueError : a value outside the metric's range
    """
    for number in (value, retrained):
        if not (math.isnan(number) or metric.low <= number <= metric.high):
            raise ValueError(f"{metric.name}: expected a number from {metric.low} to {metric.high}, got {number}")
    gap = value - (retrained if isinstance(metric.ideal, str) else metric.ideal)
    if math.isnan(gap):
        return math.nan
    if metric.better is Better.HIGHER:
        return max(0.0, -gap)
    return max(0.0, gap) if metric.better is Better.LOWER else abs(gap)
