"""Who is better than whom: ranks with ties where seeds do not decide, and the critical difference over many scenarios.

Demšar, "Statistical Comparisons of Classifiers over Multiple Data Sets" (JMLR 7, 2006): the Friedman test says whether the
methods differ at all, the Nemenyi test which of them, by how far their mean ranks are apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import chi2, f, rankdata, studentized_range

from excise.simulations.judging.bootstrap import LEVEL, RESAMPLES, difference_interval
from excise.simulations.judging.checks import Floats, finite

ALPHA = 0.05


def ranks_with_ties(
    shortfalls: Mapping[str, Sequence[float]], *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, int]:
    """Rank of each method: one more than the number of methods that are surely better, by the interval of the difference.

    So methods that seeds do not tell apart may share a rank, and rank 1 means that none is surely better. With a single seed
    nothing is sure, and all have rank 1.

    Parameters
    ----------
    shortfalls : of each method, one value of each seed (the same seeds, in the same order), of which less is better
        (`registry.shortfall`)
    level, resamples, seed : of `bootstrap.difference_interval`

    Raises
    ------
    ValueError : no method, another number of seeds than the rest, or values that are not finite
    """
    if not shortfalls:
        raise ValueError("expected at least one method to rank, got none")
    ranks = dict.fromkeys(shortfalls, 1)
    names = list(shortfalls)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            apart = difference_interval(shortfalls[a], shortfalls[b], level=level, resamples=resamples, seed=seed)
            if apart.decided:
                ranks[a if apart.mean > 0 else b] += 1
    return ranks


@dataclass(frozen=True)
class Friedman:
    """Whether methods differ over scenarios.

    Attributes
    ----------
    mean_ranks : of each method, 1 the best, ties halved
    chi2, p : Friedman's statistic, corrected for ties, and its p-value
    f, p_f : Iman and Davenport's better one, F with k−1 and (k−1)(N−1) degrees of freedom; infinite where all scenarios agree
    methods, scenarios : k and N
    """

    mean_ranks: tuple[float, ...]
    chi2: float
    p: float
    f: float
    p_f: float
    methods: int
    scenarios: int


def friedman(shortfalls_DM: ArrayLike) -> Friedman:
    """Friedman's test.

    Parameters
    ----------
    shortfalls_DM : finite (N scenarios, k methods), of which less is better; at least 2 of both

    Raises
    ------
    ValueError : too few scenarios or methods, or values that are not finite
    """
    values: Floats = finite(shortfalls_DM, "shortfalls", least=2, ndim=2)
    n, k = values.shape
    if k < 2:
        raise ValueError(f"expected at least 2 methods to compare, got {k}")
    rank_DM = rankdata(values, axis=1)
    spread = ((rank_DM - (k + 1) / 2) ** 2).sum()  # n·k(k²−1)/12 without ties
    mean_M = rank_DM.mean(0)
    between = n * ((mean_M - (k + 1) / 2) ** 2).sum()
    # All methods tie in all scenarios: nothing shows that they differ.
    statistic = float(n * (k - 1) * between / spread) if spread else 0.0
    rest = n * (k - 1) - statistic
    better = (n - 1) * statistic / rest if rest > 1e-9 * n * k else math.inf
    p_f = float(f.sf(better, k - 1, (k - 1) * (n - 1))) if math.isfinite(better) else 0.0
    return Friedman(tuple(map(float, mean_M)), statistic, float(chi2.sf(statistic, k - 1)), float(better), p_f, k, n)


def critical_difference(methods: int, scenarios: int, alpha: float = ALPHA) -> float:
    """Nemenyi's: mean ranks at least so far apart differ, ``q · √(k (k + 1) / 6N)``, q the studentised range's ÷ √2.

    Raises
    ------
    ValueError : fewer than 2 methods, no scenario, or alpha outside (0, 1)
    """
    if methods < 2 or scenarios < 1 or not 0 < alpha < 1:
        raise ValueError(f"expected 2 methods, 1 scenario and alpha in (0, 1) at least, got {methods}, {scenarios}, {alpha}")
    q = float(studentized_range.ppf(1 - alpha, methods, np.inf)) / math.sqrt(2)
    return q * math.sqrt(methods * (methods + 1) / (6 * scenarios))


def cliques(mean_ranks: Mapping[str, float], difference: float) -> list[tuple[str, ...]]:
    """Bars of a critical-difference picture: largest groups whose mean ranks lie less than `difference` apart, best first.

    Raises
    ------
    ValueError : a rank or the difference is not finite, or the difference not above 0
    """
    if not (math.isfinite(difference) and difference > 0) or not all(map(math.isfinite, mean_ranks.values())):
        raise ValueError(f"expected finite ranks and a finite difference above 0, got {dict(mean_ranks)} and {difference}")
    names = sorted(mean_ranks, key=lambda name: (mean_ranks[name], name))
    groups: list[tuple[str, ...]] = []
    reached = 0
    for i, first in enumerate(names):
        end = next((j for j in range(i, len(names)) if mean_ranks[names[j]] - mean_ranks[first] >= difference), len(names))
        if end - i > 1 and end > reached:
            groups.append(tuple(names[i:end]))
            reached = end
    return groups
