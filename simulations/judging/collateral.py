"""What was unlearned by mistake: accuracy on the retain images that look most like the forget set."""

from __future__ import annotations

import torch
from torch import Tensor

from excise.common.metrics import accuracy
from excise.simulations.judging.checks import check_outputs

AT_ONCE = 1 << 22
"""Distances that are held at once: 32 MB."""


def nearest_retain(forget_MF: Tensor, retain_NF: Tensor, count: int) -> Tensor:
    """Row numbers of the `count` retain images nearest to the forget set, nearest first, int64.

    An image is as far from the set as from its nearest image, by Euclid; of equally far ones the first comes first.

    Parameters
    ----------
    forget_MF, retain_NF : what the *original* model's head sees of them (`client.rounds.features.features_of`): one choice of
        images for all models that are compared
    count : from 1 to N

    Raises
    ------
    ValueError : no image on a side, features of two lengths or not finite, or a count out of range
    """
    for features, name in ((forget_MF, "forget"), (retain_NF, "retain")):
        if features.ndim != 2 or len(features) == 0 or not bool(features.isfinite().all()):
            raise ValueError(f"expected finite features (images, F) of {name} images, got shape {tuple(features.shape)}")
    if forget_MF.shape[1] != retain_NF.shape[1]:
        raise ValueError(f"expected features of one model, got {forget_MF.shape[1]} and {retain_NF.shape[1]} of them")
    if not 1 <= count <= len(retain_NF):
        raise ValueError(f"expected a count from 1 to {len(retain_NF)} retain images, got {count}")
    forget_MF = forget_MF.double()
    parts = retain_NF.double().split(max(1, AT_ONCE // len(forget_MF)))
    # Differences, not the faster product of matrices: of near images that one loses the digits that decide.
    exact = "donot_use_mm_for_euclid_dist"
    distance_N = torch.cat([torch.cdist(part, forget_MF, compute_mode=exact).min(1).values for part in parts])
    return distance_N.argsort(stable=True)[:count]


def collateral_accuracy(logits_NC: Tensor, y_N: Tensor, near_K: Tensor) -> float:
    """Accuracy in [0, 1] on the retain images that `nearest_retain` chose; as retrained's is ideal.

    Parameters
    ----------
    logits_NC, y_N : of all retain images, in the order in which their features were given
    near_K : row numbers

    Raises
    ------
    ValueError : logits or labels that do not fit, no row, or a row out of range
    """
    check_outputs(logits_NC, y_N, "retain set")
    if len(near_K) == 0 or int(near_K.min()) < 0 or int(near_K.max()) >= len(y_N):
        raise ValueError(f"expected rows from 0 to {len(y_N) - 1}, at least one, got {near_K.tolist()[:5]}")
    return accuracy(logits_NC[near_K], y_N[near_K])
