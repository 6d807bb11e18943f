"""How well an attack tells members from others: AUC with its bootstrap interval, and hits at few false alarms."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import roc_auc_score

from excise.simulations.judging.checks import Floats, finite

FALSE_ALARMS = 0.01
"""Share of non-members that may be called members, at which an attack's hits are counted (Carlini et al., 2022)."""
LEVEL, RESAMPLES = 0.95, 1000


@dataclass(frozen=True)
class Attack:
    """How well an attack told members from others.

    Attributes
    ----------
    auc : chance that a member scores above another, ties half, in [0, 1]; 0.5 tells nothing
    low, high : ends of its bootstrap interval, 95 % unless asked otherwise
    tpr : share of members found at `fpr` false alarms, in [0, 1]; `fpr` is what guessing finds
    fpr : share of others that may be called members
    members, others : numbers of scores; with fewer than 1 / `fpr` others no false alarm at all is allowed
    """

    auc: float
    low: float
    high: float
    tpr: float
    fpr: float
    members: int
    others: int


def attack(
    member_scores: ArrayLike,
    other_scores: ArrayLike,
    *,
    groups: tuple[Sequence[Hashable], Sequence[Hashable]] | None = None,
    fpr: float = FALSE_ALARMS,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Attack:
    """Judge an attack by its scores, of which more means *member*.

    Parameters
    ----------
    member_scores, other_scores : finite (N,) and (K,)
    groups : of each member's and each other's score, what it belongs to, such as the patient; scores of one group are drawn
        together, on both sides. Each by itself when left out: then the interval is too narrow if some are alike
    fpr : false alarms at which hits are counted, in [0, 1)
    level, resamples, seed : of the percentile bootstrap (Efron and Tibshirani, 1993)

    Raises
    ------
    ValueError : a side is empty, scores are not finite, groups of another number, or settings out of range
    """
    member_N, other_K = finite(member_scores, "members' scores"), finite(other_scores, "others' scores")
    if not 0 <= fpr < 1 or not 0 < level < 1 or resamples < 1:
        raise ValueError(f"expected 0 ≤ fpr < 1, 0 < level < 1, resamples ≥ 1, got {fpr}, {level}, {resamples}")
    truth = np.r_[np.ones(len(member_N)), np.zeros(len(other_K))]
    auc = float(roc_auc_score(truth, np.r_[member_N, other_K]))
    aucs = _resampled(member_N, other_K, groups, resamples, np.random.default_rng(seed))
    low, high = np.quantile(aucs, [(1 - level) / 2, (1 + level) / 2]) if len(aucs) else (math.nan, math.nan)
    return Attack(auc, float(low), float(high), hits(member_N, other_K, fpr), fpr, len(member_N), len(other_K))


def hits(member_N: Floats, other_K: Floats, fpr: float) -> float:
    """Share of members that score above all but a share `fpr` of the others; one that ties with the threshold is not found."""
    allowed = min(math.floor(fpr * len(other_K) + 1e-9), len(other_K) - 1)  # 0.29 · 100 is a hair below 29
    return float((member_N > np.sort(other_K)[::-1][allowed]).mean())


def _resampled(
    member_N: Floats,
    other_K: Floats,
    groups: tuple[Sequence[Hashable], Sequence[Hashable]] | None,
    resamples: int,
    rng: np.random.Generator,
) -> Floats:
    """AUCs of resamples of whole groups; those in which a side came out empty are left out."""
    sizes = (len(member_N), len(other_K))
    of_member, of_other = groups if groups is not None else (range(sizes[0]), range(sizes[0], sum(sizes)))
    if (len(of_member), len(of_other)) != sizes:
        raise ValueError(f"expected groups of {sizes[0]} and {sizes[1]} scores, got {len(of_member)} and {len(of_other)}")
    number = {group: i for i, group in enumerate(dict.fromkeys([*of_member, *of_other]))}
    at_member, at_other = (np.array([number[group] for group in of]) for of in (of_member, of_other))
    values, rank = np.unique(np.r_[member_N, other_K], return_inverse=True)
    rank_N, rank_K, places = rank[: sizes[0]], rank[sizes[0] :], len(values)
    found = []
    for _ in range(resamples):
        times_G = np.bincount(rng.integers(len(number), size=len(number)), minlength=len(number)).astype(np.float64)
        members_J = np.bincount(rank_N, times_G[at_member], places)
        others_J = np.bincount(rank_K, times_G[at_other], places)
        below_J = np.cumsum(others_J) - others_J / 2  # ties count half
        if total := members_J.sum() * others_J.sum():
            found.append((members_J * below_J).sum() / total)
    return np.array(found)
