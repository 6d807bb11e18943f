"""What a model is still good for: accuracy, balanced accuracy, AUROC and calibration, of a set, of its classes and sites."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from sklearn.metrics import recall_score, roc_auc_score
from torch import Tensor

from excise.common.metrics import accuracy, calibration_error
from excise.simulations.judging.checks import check_outputs
from excise.simulations.judging.confidence import scaled_confidence

Group = TypeVar("Group", bound=Hashable)


@dataclass(frozen=True)
class Utility:
    """Scores of one model on one set of images.

    Attributes
    ----------
    images : their number
    accuracy : share whose largest logit is the label's, in [0, 1]
    balanced_accuracy : mean over the classes present of the accuracy on each, in [0, 1]
    auroc : mean over the classes present of the area under one-against-rest, in [0, 1]; NaN where only one class is present
    calibration_error : expected calibration error over 15 bins of confidence (Guo et al., 2017), in [0, 1]
    """

    images: int
    accuracy: float
    balanced_accuracy: float
    auroc: float
    calibration_error: float


def utility(logits_NC: Tensor, y_N: Tensor, name: str = "images") -> Utility:
    """Scores of one set of images.

    Parameters
    ----------
    logits_NC : floating point (N, C)
    y_N : classes, integers (N,)
    name : of the set, for messages

    Raises
    ------
    ValueError : logits or labels that do not fit (`checks.check_outputs`)
    """
    check_outputs(logits_NC, y_N, name)
    said_N, true_N = logits_NC.argmax(1).cpu().numpy(), y_N.cpu().numpy()
    present = np.unique(true_N)
    return Utility(
        images=len(y_N),
        accuracy=accuracy(logits_NC, y_N),
        balanced_accuracy=float(recall_score(true_N, said_N, labels=present, average="macro")),
        auroc=auroc(logits_NC, y_N, name) if len(present) > 1 else math.nan,
        calibration_error=calibration_error(logits_NC, y_N),
    )


def auroc(logits_NC: Tensor, y_N: Tensor, name: str = "images") -> float:
    """Area under the receiver operating characteristic, the mean over the classes present of each against the rest.

    Ranked by the logarithm of the odds: probabilities of a sure model round to 1 and would tie.

    Raises
    ------
    ValueError : logits or labels that do not fit, or a single class
    """
    check_outputs(logits_NC, y_N, name)
    present = [int(c) for c in y_N.unique()]
    if len(present) < 2:
        raise ValueError(f"{name}: an AUROC needs images of at least two classes, got class {present[0]} alone")
    true_N = y_N.cpu().numpy()
    odds = {c: scaled_confidence(logits_NC, torch.full_like(y_N, c)) for c in present}
    return float(np.mean([roc_auc_score(true_N == c, odds_N) for c, odds_N in odds.items()]))


def by_group(logits_NC: Tensor, y_N: Tensor, groups: Sequence[Group]) -> dict[Group, Utility]:
    """Scores of each group of images, such as each site or each class (``y_N.tolist()``), in order of first appearance.

    Raises
    ------
    ValueError : logits or labels that do not fit, or another number of groups than of images
    """
    check_outputs(logits_NC, y_N)
    if len(groups) != len(y_N):
        raise ValueError(f"expected a group for each of {len(y_N)} images, got {len(groups)}")
    rows: dict[Group, list[int]] = {}
    for row, group in enumerate(groups):
        rows.setdefault(group, []).append(row)
    return {group: utility(logits_NC[of], y_N[of], f"group {group}") for group, of in rows.items()}


@dataclass(frozen=True)
class WorstSite:
    """The site that is worst off, which a mean over sites hides.

    Attributes
    ----------
    lowest, value, change : site with the lowest score after unlearning, that score, and after minus before
    most_harmed, harm : site whose score changed most for the worse, and after minus before there
    """

    lowest: str
    value: float
    change: float
    most_harmed: str
    harm: float


def worst_site(before: Mapping[str, float], after: Mapping[str, float]) -> WorstSite:
    """The worst of the sites by a score of which more is better; of equal ones the first by name.

    Parameters
    ----------
    before, after : score of each site with the original and with the unlearned model

    Raises
    ------
    ValueError : no site, other sites before than after, or a score that is not finite
    """
    if not after or before.keys() != after.keys():
        raise ValueError(f"expected the same sites before and after, at least one, got {sorted(before)} and {sorted(after)}")
    bad = sorted(site for site in after if not (math.isfinite(before[site]) and math.isfinite(after[site])))
    if bad:
        raise ValueError(f"expected a finite score of each site, got none of {', '.join(bad)}")
    change = {site: after[site] - before[site] for site in sorted(after)}
    lowest, harmed = min(change, key=after.__getitem__), min(change, key=change.__getitem__)
    return WorstSite(lowest, after[lowest], change[lowest], harmed, change[harmed])
