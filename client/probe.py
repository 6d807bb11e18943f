"""A linear probe: how well a linear classifier tells forget images from others by what a model's backbone makes of them.

A head can be changed so that its answers give nothing away while the features below it still do (Alain and Bengio, 2017).
A new linear classifier on those features shows it. It is judged on patients that it did not see: with as many features as
images, it could tell apart any two sets that it was trained on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

FOLDS = 5
"""Most parts that the patients are dealt into; each is judged by a classifier trained on the others."""
PENALTY = 0.1
"""scikit-learn's C: strong enough that a few dozen images with hundreds of features are not learned by heart."""


def probe_auc(
    features_NF: NDArray[np.floating],
    forget_N: NDArray[np.bool_],
    patients: Sequence[str],
    weights_N: NDArray[np.float64],
    seed: int,
) -> float:
    """Area under the curve of a logistic regression on standardised features, over patients that it was not trained on.

    0.5: a linear classifier cannot tell the two sets apart. The mean over the folds, each as its forget images weigh.

    Parameters
    ----------
    features_NF : what the head sees of each image
    forget_N : which images are of the forget set
    patients : whose each image is; a patient's images are all trained on or all judged
    weights_N : of each image, above 0; both sides are brought to the same sum
    seed : of the deal of patients

    Returns
    -------
    NaN where a side has fewer than two patients, a feature is not finite, or no fold has both sides
    """
    patient_N = np.asarray(patients)
    fewest = min(len(np.unique(patient_N[side])) for side in (forget_N, ~forget_N))
    if fewest < 2 or not np.isfinite(features_NF).all():
        return math.nan
    balanced_N = weights_N / np.where(forget_N, weights_N[forget_N].sum(), weights_N[~forget_N].sum()) * len(forget_N) / 2
    folds = StratifiedGroupKFold(min(FOLDS, fewest), shuffle=True, random_state=seed)
    found = []
    for train, test in folds.split(features_NF, forget_N, patient_N):
        if len(np.unique(forget_N[train])) < 2 or len(np.unique(forget_N[test])) < 2:
            continue
        classifier = make_pipeline(StandardScaler(), LogisticRegression(C=PENALTY, max_iter=1000, random_state=seed))
        classifier.fit(features_NF[train], forget_N[train], logisticregression__sample_weight=balanced_N[train])
        score = classifier.decision_function(features_NF[test])
        auc = roc_auc_score(forget_N[test], score, sample_weight=balanced_N[test])
        found.append((auc, balanced_N[test][forget_N[test]].sum()))
    if not found:
        return math.nan
    aucs, shares = zip(*found, strict=True)
    return float(np.average(aucs, weights=shares))
