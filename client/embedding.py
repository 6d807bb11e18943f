"""Which images are shown as points, and where: in cells of a grid, in an order that tells nothing. Pure numpy.

Features are brought to at most 64 dimensions by signs drawn at random, the same at every site (Achlioptas, 2003): distances
are nearly kept, the message stays small, and whatever is asked, no more of the features than these dimensions leaves.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from excise.common.embedding import CELLS, DIMS, FARTHEST


def sketch(features: int, dims: int = DIMS) -> NDArray[np.float64]:
    """What features are multiplied by, (F, K), K at most `dims`: the identity where they are no more than that.

    Fewer dimensions are the first of the `DIMS` that there are: whatever number is asked for, no others leave.

    The signs are bits of SHAKE-256, which every machine and release draws alike.
    """
    if features <= dims:
        return np.eye(features)
    bytes_ = hashlib.shake_256(b"excise embedding").digest(features * DIMS // 8)
    signs = np.unpackbits(np.frombuffer(bytes_, dtype=np.uint8)).reshape(features, DIMS)
    return (2.0 * signs[:, :dims].astype(np.float64) - 1.0) / math.sqrt(dims)


def chosen(
    group_N: NDArray[np.int64], label_N: NDArray[np.int64], keys: Sequence[str], most: int, min_count: int, exact: bool
) -> NDArray[np.int64]:
    """Places of the images that are shown.

    Of each group at most `most`; of each class in it `min_count` or none. Unless `exact`, of each class in a group a multiple
    of `min_count`, rounded down: the number of points would else tell what other replies round (docs/adr/0015).

    Parameters
    ----------
    group_N, label_N : of each image
    keys : of each image, different; those with the smallest are taken
    """
    order_N = np.array(sorted(range(len(keys)), key=keys.__getitem__), dtype=np.int64)
    taken: list[int] = []
    for group in np.unique(group_N):
        of_group = order_N[group_N[order_N] == group]
        enough = [c for c in np.unique(label_N[of_group]) if np.sum(label_N[of_group] == c) >= min_count]
        of_group = of_group[np.isin(label_N[of_group], enough)][:most]
        for c in enough:
            of_class = of_group[label_N[of_group] == c]
            told = len(of_class) if exact else len(of_class) // min_count * min_count
            if len(of_class) >= min_count:
                taken += of_class[:told].tolist()
    return np.array(sorted(taken), dtype=np.int64)


def moments(sketched_NK: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean (K,) and covariance (K, K), divided by N."""
    mean_K = sketched_NK.mean(0)
    centred_NK = sketched_NK - mean_K
    return mean_K, centred_NK.T @ centred_NK / len(sketched_NK)


def cells(
    sketched_NK: NDArray[np.float64], mean_K: NDArray[np.float64], axes_2K: NDArray[np.float64], unit: float
) -> NDArray[np.float64]:
    """Places on the grid, whole numbers (N, 2).

    Parameters
    ----------
    unit : a standard deviation of all sites' images along the axes, above 0
    """
    places_N2 = (sketched_NK - mean_K) @ axes_2K.T / unit
    return np.rint(np.clip(places_N2 * CELLS, -FARTHEST, FARTHEST)) + 0.0  # no minus zero
