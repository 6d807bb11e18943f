"""RMIA: does a model know an image better, beside what other models make of it, than it knows images nobody trained on?

Zarifzadeh, Liu and Shokri, "Low-Cost High-Power Membership Inference Attacks" (ICML 2024, PMLR 235:58244-58282). With
``ratio(x) = p(x | judged model) / p(x)``, where p(x) is the mean over reference models, the score of an image is the share of
population images z with ``ratio(x) / ratio(z) ≥ γ``. It needs fewer reference models than U-LiRA, and can do with ones that
never saw the image. p(x | model) is the probability of the right class, by a plain softmax.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from excise.simulations.judging.checks import Bools, Floats, finite
from excise.simulations.judging.confidence import stacked_confidence
from excise.simulations.judging.roc import Attack
from excise.simulations.judging.ulira import check_kinds, judged, others

GAMMA = 2.0
"""γ of the paper: an image must be twice as much better known as one of the population to count."""
OFFLINE = 0.3
"""a in ``½ ((1 + a) p_out + 1 − a)``, the paper's p(x) from models that never saw x; 1 where seeing it changes nothing."""


def rmia(
    logits_MNC: Tensor,
    y_N: Tensor,
    unlearned_MN: Bools,
    population_MZC: Tensor,
    population_y_Z: Tensor,
    *,
    gamma: float = GAMMA,
    offline: float = OFFLINE,
    draw_M: Sequence[int] | None = None,
    seed: int = 0,
) -> Attack:
    """The attack's AUC and its hits at 1 % false alarms; 0.5 and 0.01 are ideal. Each model is judged by all the others.

    Parameters
    ----------
    logits_MNC, y_N, unlearned_MN : as in `ulira`: logits of M models of N images, their classes, and who unlearned what; each
        image needs two models of both kinds
    population_MZC, population_y_Z : logits of the same models of Z images that none was trained on, and their classes
    gamma, offline : as in `scores`
    draw_M : as in `ulira.others`
    seed : of the interval

    Raises
    ------
    ValueError : shapes that do not fit, logits that are not finite, too few models of a kind, or settings out of range
    """
    p_MN = confidences(logits_MNC, y_N, "shadow models")
    p_MZ = confidences(population_MZC, population_y_Z, "population")
    check_kinds(unlearned_MN, p_MN.shape, 2)
    if len(p_MZ) != len(p_MN):
        raise ValueError(f"expected the population's logits of the same {len(p_MN)} models, got of {len(p_MZ)}")
    rows = []
    for m, rest in enumerate(others(len(p_MN), draw_M)):
        rows.append(scores(p_MN[m], p_MN[rest], unlearned_MN[rest], p_MZ[m], p_MZ[rest], gamma=gamma, offline=offline))
    return judged(np.stack(rows), unlearned_MN, seed)


def confidences(logits_MNC: Tensor, y_N: Tensor, name: str) -> Floats:
    """Probability of the right class, float64 (M, N), in (0, 1]."""
    odds_MN = torch.from_numpy(stacked_confidence(logits_MNC, y_N, name))
    # A model that is wrong beyond what a float64 holds still gives a ratio.
    return np.asarray(odds_MN.sigmoid().clamp_min(1e-300).numpy(), dtype=np.float64)


def scores(
    judged_N: Floats,
    reference_MN: Floats,
    seen_MN: Bools,
    population_Z: Floats,
    population_MZ: Floats,
    *,
    gamma: float = GAMMA,
    offline: float = OFFLINE,
) -> Floats:
    """Scores of N images in one judged model, float64 (N,) in [0, 1]; more means *member*.

    Parameters
    ----------
    judged_N, population_Z : probabilities of the right class under the judged model, of the images and of the population
    reference_MN, population_MZ : the same under M reference models
    seen_MN : bool; which reference models were trained on the image (and unlearned it). Where some were, p(x) is the mean of
        the two kinds' means; where none was, and for the population, it is made of the others by `offline`
    gamma : γ, at least 1
    offline : a, in [0, 1]

    Raises
    ------
    ValueError : shapes that do not fit, probabilities outside (0, 1], an image that all saw, or settings out of range
    """
    judged_N, population_Z = finite(judged_N, "judged model"), finite(population_Z, "population")
    reference_MN = finite(reference_MN, "reference models", ndim=2)
    population_MZ = finite(population_MZ, "population of the reference models", ndim=2)
    models = len(reference_MN)
    shapes = (reference_MN.shape, seen_MN.shape, population_MZ.shape)
    expected = ((models, len(judged_N)), (models, len(judged_N)), (models, len(population_Z)))
    if shapes != expected:
        raise ValueError(f"expected references, who saw what, and population of shapes {expected}, got {shapes}")
    if not gamma >= 1 or not 0 <= offline <= 1:
        raise ValueError(f"expected gamma ≥ 1 and offline in [0, 1], got {gamma} and {offline}")
    for p in (judged_N, reference_MN, population_Z, population_MZ):
        if p.min() <= 0 or p.max() > 1:
            raise ValueError(f"expected probabilities in (0, 1], got {p.min()} to {p.max()}")
    if seen_MN.all(0).any():
        raise ValueError(f"{int(seen_MN.all(0).sum())} images were seen by all reference models: each needs one that did not")
    out_N = np.where(seen_MN, 0, reference_MN).sum(0) / (~seen_MN).sum(0)
    in_N = np.where(seen_MN, reference_MN, 0).sum(0) / np.maximum(seen_MN.sum(0), 1)
    p_N = np.where(seen_MN.any(0), (in_N + out_N) / 2, _offline(out_N, offline))
    ratio_N, ratio_Z = judged_N / p_N, population_Z / _offline(population_MZ.mean(0), offline)
    return np.searchsorted(np.sort(ratio_Z), ratio_N / gamma, side="right") / len(ratio_Z)


def _offline(out: Floats, a: float) -> Floats:
    return ((1 + a) * out + (1 - a)) / 2
