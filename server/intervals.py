"""How sure a run's numbers are: intervals of 95 %, from what sites tell of many images at once.

The membership AUC's is a percentile bootstrap (Efron and Tibshirani, 1993). A site tells no single loss; its profile says how
its losses are spread, and its *effective* number how many independent images they are worth, since the images of one patient
are alike (`client/audit.py`). Each resample draws so many from each site's profile, on both sides, and the AUC is computed
anew (docs/adr/0018-interval-of-the-membership-auc.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from excise.common.messages import ModelAudit
from excise.server.scores import membership

LEVEL = 0.95
SIDES = ("forget", "held_out")
FINE = 64
"""Least points that a profile is spread over."""
AT_ONCE = 1 << 21
"""Numbers that are held at once: 16 MB."""

Interval = tuple[float, float]
"""Lower and upper end; both NaN where it was not measured."""
UNKNOWN: Interval = (math.nan, math.nan)


@dataclass(frozen=True)
class _Points:
    """The points of one side of one site: their losses, classes, and number of images; and how many are drawn."""

    losses_J: NDArray[np.float64]
    class_J: NDArray[np.int64]
    images_J: NDArray[np.float64]
    draws: int

    def resampled(self, resamples: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Images at each point in each resample, (resamples, J); as many in all as there are."""
        total = self.images_J.sum()
        drawn_BJ = rng.multinomial(self.draws, self.images_J / total, size=resamples).astype(np.float64)
        drawn_BJ *= total / self.draws
        return drawn_BJ


def membership_interval(audits: Mapping[str, ModelAudit], classes: int, resamples: int, seed: int) -> Interval:
    """Interval of `scores.membership`; the same seed gives the same interval.

    A site that does not tell how many independent images a side is worth counts as one: so the interval can be too wide, and
    not too narrow. It is stretched to hold the AUC itself, which is of the means of groups alone.

    Parameters
    ----------
    classes : how many strata there are (`ModelSpec.strata`)
    resamples : how often the AUC is computed anew

    Returns
    -------
    `UNKNOWN` where there is no AUC, or where nobody told how many independent images a side is worth
    """
    told = {side: [p for _, audit in sorted(audits.items()) if (p := _points(audit, side, classes))] for side in SIDES}
    known = {side: any(f"{side}_effective" in audit.metrics for audit in audits.values()) for side in SIDES}
    if not all(told.values()) or not all(known.values()):
        return UNKNOWN
    rng = np.random.default_rng(seed)
    aucs = np.concatenate(list(_resampled_aucs(told, classes, resamples, rng)))
    aucs = aucs[np.isfinite(aucs)].clip(0, 1)  # sums are rounded
    if len(aucs) == 0:
        return UNKNOWN
    low, high = np.quantile(aucs, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    itself = membership(audits, classes)
    return min(float(low), itself), max(float(high), itself)


def _points(audit: ModelAudit, side: str, classes: int) -> _Points | None:
    """What a site told of a side; None when nothing."""
    losses: list[float] = []
    of: list[int] = []
    images: list[float] = []
    for c in range(classes):
        profile = audit.profiles.get(f"{side}/{c}", ())
        if profile and (n := audit.metrics.get(f"{side}_images_class_{c}", 0.0)) > 0:
            spread = _spread(np.array(profile))
            losses += spread.tolist()
            of += [c] * len(spread)
            images += [n / len(spread)] * len(spread)
    if not losses:
        return None
    worth, whole = audit.metrics.get(f"{side}_effective", 0.0), audit.metrics.get(f"{side}_images", 0.0)
    share = min(1.0, sum(images) / whole) if whole > 0 else 1.0  # of several labels an image has a loss each, all alike
    return _Points(np.array(losses), np.array(of), np.array(images), max(1, math.floor(worth * share)))


def _spread(profile: NDArray[np.float64]) -> NDArray[np.float64]:
    """The losses that a profile is of, as far as it tells: those of each group spread about their mean.

    The means alone lie closer together than the losses, and of few groups on two sides by chance before or behind each other.
    A group is spread evenly up to half-way to the next. The last one has no end, nor has the only one: its losses fall off
    exponentially, which assumes least of what is positive and of which the mean is known.
    """
    parts = -(-FINE // len(profile))
    level = (np.arange(parts) + 0.5) / parts
    border = (profile[1:] + profile[:-1]) / 2
    last = border[-1] if len(border) else 0.0
    reach = np.minimum(border - profile[:-1], profile[:-1])  # a loss is not below 0
    even = profile[:-1, None] + reach[:, None] * (2 * level - 1)
    tail = -np.log1p(-level)
    return np.concatenate([even.ravel(), last + (profile[-1] - last) * tail / tail.mean()])


def _resampled_aucs(
    told: Mapping[str, list[_Points]], classes: int, resamples: int, rng: np.random.Generator
) -> Iterator[NDArray[np.float64]]:
    """The AUC of each resample, part by part; NaN where no class was drawn on both sides."""
    sides = {
        side: (np.concatenate([p.losses_J for p in of]), np.concatenate([p.class_J for p in of])) for side, of in told.items()
    }
    values, rank_J = np.unique(np.concatenate([losses_J for losses_J, _ in sides.values()]), return_inverse=True)
    cut = len(sides["forget"][0])
    rank = {"forget": rank_J[:cut], "held_out": rank_J[cut:]}
    part = max(1, AT_ONCE // len(rank_J))
    for begin in range(0, resamples, part):
        count = min(part, resamples - begin)
        images = {side: np.concatenate([p.resampled(count, rng) for p in told[side]], axis=1) for side in SIDES}
        of_class = {side: _sums(images[side], sides[side][1], classes) for side in SIDES}  # (count, classes)
        both = (of_class["forget"] > 0) & (of_class["held_out"] > 0)
        # Held-out images of each class weigh as much as its forget images do, as in `scores.membership`.
        weight = np.where(both, of_class["forget"], 0) / np.where(both, of_class["held_out"], 1)
        held_out = images["held_out"] * weight[:, sides["held_out"][1]]
        forget = images["forget"] * both[:, sides["forget"][1]]
        f, h = _sums(forget, rank["forget"], len(values)), _sums(held_out, rank["held_out"], len(values))
        total = f.sum(1) * h.sum(1)
        above = h.sum(1, keepdims=True) - np.cumsum(h, axis=1) + h / 2  # ties count half
        yield np.divide((f * above).sum(1), total, out=np.full(count, np.nan), where=total > 0)


def _sums(x_BJ: NDArray[np.float64], group_J: NDArray[np.int64], groups: int) -> NDArray[np.float64]:
    """Sums over the columns of each group, (B, groups)."""
    order = np.argsort(group_J, kind="stable")
    present, first = np.unique(group_J[order], return_index=True)
    sums = np.zeros((len(x_BJ), groups))
    sums[:, present] = np.add.reduceat(x_BJ[:, order], first, axis=1)
    return sums


def accuracy_interval(accuracy: float, effective: float) -> Interval:
    """Wilson's score interval (1927) of a share of so many independent images; `UNKNOWN` where one is NaN or none."""
    if math.isnan(accuracy) or not effective > 0:
        return UNKNOWN
    z2 = NormalDist().inv_cdf((1 + LEVEL) / 2) ** 2
    middle = (accuracy + z2 / (2 * effective)) / (1 + z2 / effective)
    half = math.sqrt(z2 * (accuracy * (1 - accuracy) / effective + z2 / (4 * effective**2))) / (1 + z2 / effective)
    return max(0.0, min(accuracy, middle - half)), min(1.0, max(accuracy, middle + half))  # rounding is kept out
