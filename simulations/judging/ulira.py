"""U-LiRA: is there still a trace of an image in a model that was trained on it and unlearned it?

Hayes et al., "Inexact Unlearning Needs More Careful Evaluations to Avoid a False Sense of Privacy" (SaTML 2025,
arXiv:2403.01218): the likelihood-ratio attack of Carlini et al. ("Membership Inference Attacks From First Principles",
arXiv:2112.03570) with an attacker for each image. Shadow models that trained on the image and unlearned it, and others that
never saw it, give two normal distributions of the scaled confidence; the score is the logarithm of the ratio of their
densities at the judged model's.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from excise.simulations.judging.checks import Bools, Floats, finite
from excise.simulations.judging.confidence import stacked_confidence
from excise.simulations.judging.roc import Attack, attack

EACH_FROM = 64
"""Models from which on each image has variances of its own; below, all images share two (Carlini et al., 2022)."""
LEAST_VARIANCE = 1e-6
"""Of confidences, squared units of log-odds: models that all agree do not make an attacker infinitely sure."""


def ulira(
    logits_MNC: Tensor, y_N: Tensor, unlearned_MN: Bools, *, draw_M: Sequence[int] | None = None, seed: int = 0
) -> Attack:
    """The attack's AUC and its hits at 1 % false alarms; 0.5 and 0.01 are ideal.

    Each model is judged by all the others. For the interval whole images are drawn, since one's scores are alike.

    Parameters
    ----------
    logits_MNC : logits of M models of the same N images
    y_N : classes, integers (N,)
    unlearned_MN : bool; True where model m was trained on image n and unlearned it, False where it never saw it. A model
        retrained without an image, and one that unlearned others, both count as never having seen it
    draw_M : as in `others`
    seed : of the interval

    Raises
    ------
    ValueError : shapes that do not fit, logits that are not finite, or an image with fewer than three models of a kind
    """
    scores_MN = leave_one_out(stacked_confidence(logits_MNC, y_N), unlearned_MN, draw_M)
    return judged(scores_MN, unlearned_MN, seed)


def judged(scores_MN: Floats, unlearned_MN: Bools, seed: int) -> Attack:
    """Judge scores of every model and image; what is drawn for the interval are images."""
    image_MN = np.broadcast_to(np.arange(scores_MN.shape[1]), scores_MN.shape)
    groups = image_MN[unlearned_MN].tolist(), image_MN[~unlearned_MN].tolist()
    return attack(scores_MN[unlearned_MN], scores_MN[~unlearned_MN], groups=groups, seed=seed)


def others(models: int, draw_M: Sequence[int] | None) -> Bools:
    """For each model those by which it is judged, bool (M, M): all but those of its own draw.

    Parameters
    ----------
    draw_M : number of the draw by which each model's images were chosen; each model has one of its own when left out. Two
        that were drawn as halves belong together. Without one alone an image would have one model less of the judged one's
        kind than of the other: with few models its kind's mean is the less sure, and models without any trace score below 0.5

    Raises
    ------
    ValueError : another number of draws than of models
    """
    draw = np.arange(models) if draw_M is None else np.asarray(draw_M)
    if draw.shape != (models,):
        raise ValueError(f"expected the draw of each of {models} models, got shape {draw.shape}")
    return np.asarray(draw[:, None] != draw[None, :], dtype=np.bool_)


def leave_one_out(confidence_MN: Floats, unlearned_MN: Bools, draw_M: Sequence[int] | None = None) -> Floats:
    """`score` of each model against all the `others`, float64 (M, N).

    Parameters
    ----------
    confidence_MN : `scaled_confidence` of M models, (M, N)
    unlearned_MN : as in `ulira`; each image needs three models of both kinds, that two are left when one is judged
    draw_M : as in `others`

    Raises
    ------
    ValueError : shapes that do not fit, or too few models of a kind for an image
    """
    confidence_MN = finite(confidence_MN, "confidences", ndim=2)
    check_kinds(unlearned_MN, confidence_MN.shape, 3)
    judges_MM = others(len(confidence_MN), draw_M)
    return np.stack(
        [score(own, confidence_MN[of], unlearned_MN[of]) for own, of in zip(confidence_MN, judges_MM, strict=True)]
    )


def score(judged_N: Floats, shadow_MN: Floats, unlearned_MN: Bools) -> Floats:
    """Logarithm of the likelihood ratio *unlearned it* : *never saw it* of each image in one judged model, float64 (N,).

    Parameters
    ----------
    judged_N : the judged model's `scaled_confidence`, (N,)
    shadow_MN : that of M shadow models, (M, N)
    unlearned_MN : which of them trained on the image and unlearned it; each image needs two of both kinds

    Raises
    ------
    ValueError : shapes that do not fit, or too few models of a kind for an image
    """
    judged_N, shadow_MN = finite(judged_N, "judged model"), finite(shadow_MN, "shadow models", ndim=2)
    check_kinds(unlearned_MN, shadow_MN.shape, 2)
    if len(judged_N) != shadow_MN.shape[1]:
        raise ValueError(f"expected confidences of the same images, got {len(judged_N)} and {shadow_MN.shape[1]}")
    return _log_density(judged_N, shadow_MN, unlearned_MN) - _log_density(judged_N, shadow_MN, ~unlearned_MN)


def check_kinds(unlearned_MN: Bools, shape: tuple[int, ...], least: int) -> None:
    """Refuse a table of who unlearned what of another type or shape, or with fewer than `least` of a kind for an image."""
    if unlearned_MN.dtype != np.bool_ or unlearned_MN.shape != shape:
        got = f"{unlearned_MN.dtype} {unlearned_MN.shape}"
        raise ValueError(f"expected a bool of each model and image, {shape}, that tells who unlearned it, got {got}")
    fewest = int(np.minimum(unlearned_MN.sum(0), (~unlearned_MN).sum(0)).min())
    if fewest < least:
        raise ValueError(
            f"each image needs {least} models that unlearned it and {least} that never saw it, got {fewest}: train more models"
        )


def _log_density(x_N: Floats, shadow_MN: Floats, of_MN: Bools) -> Floats:
    """Of the normal distribution of `shadow_MN` where `of_MN`, at `x_N`; without the constant, which cancels."""
    count_N = of_MN.sum(0)
    mean_N = np.where(of_MN, shadow_MN, 0).sum(0) / count_N
    squares_N = np.where(of_MN, (shadow_MN - mean_N) ** 2, 0).sum(0)
    shared = len(shadow_MN) < EACH_FROM
    variance = squares_N.sum() / (count_N - 1).sum() if shared else squares_N / (count_N - 1)
    variance = np.maximum(variance, LEAST_VARIANCE)
    density: Floats = -((x_N - mean_N) ** 2) / (2 * variance) - np.log(variance) / 2
    return density
