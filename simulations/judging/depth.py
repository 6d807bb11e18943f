"""How deep the forgetting goes: what a fresh head finds in the features below the one that was changed.

A head can be made to answer as if it had forgotten while the features beneath it still tell the class (Alain and Bengio,
2017). So a new linear head is fitted to the frozen features of images of *all* classes, and asked for the forgotten one.
Some of it any model can do, the retrained one too, whose features never saw the class: as retrained's is ideal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from excise.client.probe import PENALTY
from excise.simulations.judging.checks import Floats, finite


@dataclass(frozen=True)
class Probe:
    """Accuracies in [0, 1] of a fresh linear head on images that it was not fitted to; NaN of no image.

    Attributes
    ----------
    forget : on forget images, or of the forgotten class
    others : on the others
    """

    forget: float
    others: float


def linear_probe(
    fitted: tuple[ArrayLike, ArrayLike], judged: tuple[ArrayLike, ArrayLike], forget_K: ArrayLike, seed: int = 0
) -> Probe:
    """Fit a logistic regression to standardised features, each class weighing as much as another, and judge it.

    Parameters
    ----------
    fitted : features (N, F) of one frozen model (`client.rounds.features.features_of`), and classes (N,), of at least two
    judged : features (K, F) and classes (K,) of other images; a patient's images belong on one side
    forget_K : bool (K,), which of the judged images `Probe.forget` is of; at least one
    seed : of the fit

    Raises
    ------
    ValueError : shapes that do not fit, features that are not finite, a single class, or no forget image
    """
    fitted_NF, fitted_y_N = _features(fitted, "fitted images")
    judged_KF, judged_y_K = _features(judged, "judged images")
    forget = np.asarray(forget_K)
    if fitted_NF.shape[1] != judged_KF.shape[1]:
        raise ValueError(f"expected features of one model, got {fitted_NF.shape[1]} and {judged_KF.shape[1]} of them")
    if len(np.unique(fitted_y_N)) < 2:
        raise ValueError(f"a head is fitted to at least two classes, got class {fitted_y_N[0]} alone")
    if forget.dtype != np.bool_ or forget.shape != judged_y_K.shape or not forget.any():
        raise ValueError(f"expected a bool of each of {len(judged_y_K)} judged images, at least one true, got {forget.shape}")
    head = LogisticRegression(C=PENALTY, max_iter=1000, class_weight="balanced", random_state=seed)
    right = make_pipeline(StandardScaler(), head).fit(fitted_NF, fitted_y_N).predict(judged_KF) == judged_y_K
    return Probe(float(right[forget].mean()), float(right[~forget].mean()) if not forget.all() else math.nan)


def _features(images: tuple[ArrayLike, ArrayLike], name: str) -> tuple[Floats, np.ndarray]:
    features_NF, y_N = finite(images[0], f"{name}, features", ndim=2), np.asarray(images[1])
    if y_N.shape != (len(features_NF),) or y_N.dtype.kind not in "iu":
        raise ValueError(f"{name}: expected {len(features_NF)} classes as integers, got {y_N.dtype} {y_N.shape}")
    return features_NF, y_N
