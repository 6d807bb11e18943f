"""Means over seeds, how sure they are, and whether they reach a goal."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from scipy.stats import t as student_t


def interval(values: Sequence[float]) -> str:
    """Mean and the half width of its 95 % interval (Student's t), three decimals; a true minus sign."""
    if any(map(math.isnan, values)):
        return "–"
    text = f"{round(statistics.fmean(values), 3) + 0.0:.3f}"  # + 0.0: minus zero becomes zero
    if len(values) > 1:
        text += f" ± {half_width(values):.3f}"
    return text.replace("-", "−")


def judged(values: Sequence[float], low: float, high: float) -> str:
    """Whether the mean lies in [low, high]; *undecided* where its 95 % interval lies on both sides of a limit."""
    mean, half = statistics.fmean(values), half_width(values)
    if math.isnan(mean):
        return "not measured"
    reached = "yes" if low <= mean <= high else "**no**"
    decided = (low <= mean - half and mean + half <= high) or mean + half < low or mean - half > high
    return reached if decided else f"{reached}, *undecided*"


def half_width(values: Sequence[float]) -> float:
    """Half the width of the mean's 95 % interval (Student's t); 0 for one value, NaN where one is NaN."""
    n = len(values)
    if n < 2:
        return 0.0
    if any(map(math.isnan, values)):
        return math.nan
    return float(student_t.ppf(0.975, n - 1)) * statistics.stdev(values) / math.sqrt(n)
