"""How sure a number over seeds is: percentile bootstrap (Efron and Tibshirani, 1993) of a mean and of a paired difference.

Of few seeds it is too narrow, since it knows no values but those that came: of three, a normal sample's mean lies within
the 95 % interval three times in four. The t interval of `bench.intervals` is the safer one there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from excise.simulations.judging.checks import finite

LEVEL, RESAMPLES = 0.95, 10_000


@dataclass(frozen=True)
class Interval:
    """A mean and the ends of its bootstrap interval; of one value all three are that value, and nothing is known of how sure.

    Attributes
    ----------
    low, mean, high : ascending
    values : of how many
    """

    low: float
    mean: float
    high: float
    values: int

    @property
    def decided(self) -> bool:
        """Whether 0 lies outside: of a difference, that it is not chance. Never so of one value."""
        return self.values > 1 and not self.low <= 0 <= self.high


def mean_interval(values_S: ArrayLike, *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Mean over seeds and its interval.

    Parameters
    ----------
    values_S : one of each seed, finite (S,)
    level : in (0, 1)
    resamples, seed : how often seeds are drawn anew, and of those draws

    Raises
    ------
    ValueError : no value, one that is not finite, or settings out of range
    """
    values = finite(values_S, "values over seeds")
    if not 0 < level < 1 or resamples < 1:
        raise ValueError(f"expected 0 < level < 1 and at least one resample, got {level} and {resamples}")
    drawn = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    low, high = np.quantile(values[drawn].mean(1), [(1 - level) / 2, (1 + level) / 2])
    mean = float(values.mean())
    return Interval(min(float(low), mean), mean, max(float(high), mean), len(values))  # of equal values rounding differs


def difference_interval(
    ours_S: ArrayLike, theirs_S: ArrayLike, *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Mean of ``ours − theirs`` over the same seeds, and its interval: what a seed does to both of them cancels.

    Raises
    ------
    ValueError : two numbers of seeds, and as in `mean_interval`
    """
    ours, theirs = finite(ours_S, "our values over seeds"), finite(theirs_S, "their values over seeds")
    if len(ours) != len(theirs):
        raise ValueError(f"expected both methods' values of the same seeds, got {len(ours)} and {len(theirs)}")
    return mean_interval(ours - theirs, level=level, resamples=resamples, seed=seed)
