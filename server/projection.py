"""Two axes that all sites share, found from their moments alone: the principal axes of all their images put together.

    mean         m = Σ_k w_k·m_k                                  w_k = n_k / Σ n
    covariance   C = Σ_k w_k·(C_k + (m_k − m)(m_k − m)ᵀ)          within the sites, and between them

is that of the union, exactly (the law of total covariance); its first two eigenvectors are the axes. Pure numpy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Projection:
    """How features become places.

    Attributes
    ----------
    mean : subtracted first, (K,)
    axes : of length 1, at right angles, (2, K); in each the number farthest from 0 is positive
    unit : root mean square of the images' standard deviations along the two, above 0
    explained : share of the whole variance along each, in [0, 1], the larger one first
    """

    mean: tuple[float, ...]
    axes: tuple[tuple[float, ...], tuple[float, ...]]
    unit: float
    explained: tuple[float, float]

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Self:
        """From the lists that `asdict` and JSON make of one."""
        first, second = told["axes"]
        return cls(
            tuple(told["mean"]), (tuple(first), tuple(second)), told["unit"], (told["explained"][0], told["explained"][1])
        )


def projection(
    images: Sequence[float], means: Sequence[Sequence[float]], covariances: Sequence[Sequence[float]]
) -> Projection | None:
    """The projection of all sites' images; None where there are not two dimensions, or no image differs from another.

    Parameters
    ----------
    images, means, covariances : of each site: a number, K numbers, and the upper triangle, row by row
    """
    if not means or len(means[0]) < 2:
        return None
    mean_SK, w_S = np.array(means), np.array(images, dtype=np.float64) / sum(images)
    mean_K = w_S @ mean_SK
    apart_SK = mean_SK - mean_K
    pooled_KK = sum(w * _square(told, len(mean_K)) for w, told in zip(w_S, covariances, strict=True))
    pooled_KK = pooled_KK + (apart_SK.T * w_S) @ apart_SK
    values_K, vectors_KK = np.linalg.eigh(pooled_KK)
    values_2, axes_2K = np.maximum(values_K[:-3:-1], 0), vectors_KK.T[:-3:-1]
    if not values_2.sum() > 0:
        return None
    axes_2K = axes_2K * np.sign(axes_2K[np.arange(2), np.abs(axes_2K).argmax(1)])[:, None]
    first, second = axes_2K.tolist()
    explained = values_2 / np.trace(pooled_KK)
    return Projection(
        tuple(mean_K.tolist()),
        (tuple(first), tuple(second)),
        float(np.sqrt(values_2.mean())),
        (float(explained[0]), float(explained[1])),
    )


def _square(upper: Sequence[float], dims: int) -> NDArray[np.float64]:
    square_KK = np.zeros((dims, dims))
    square_KK[np.triu_indices(dims)] = upper
    return square_KK + np.triu(square_KK, 1).T
