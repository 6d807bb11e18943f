"""A model's confidence in the right class, as the attacks with shadow models look at it."""

from __future__ import annotations

import torch
from torch import Tensor

from excise.simulations.judging.checks import Floats, check_outputs


def scaled_confidence(logits_NC: Tensor, y_N: Tensor, name: str = "images") -> Floats:
    """``log(p_y / (1 − p_y))`` of each image, float64 (N,): nearly normal over models (Carlini et al., 2022).

    Computed from logits, as ``z_y − logsumexp of the others``, so that a confidence that rounds to 1 still has its place.

    Raises
    ------
    ValueError : logits or labels that do not fit (`checks.check_outputs`)
    """
    check_outputs(logits_NC, y_N, name)
    z_NC, at_N1 = logits_NC.detach().cpu().double(), y_N.cpu().long()[:, None]
    rest_N = z_NC.scatter(1, at_N1, -torch.inf).logsumexp(1)
    result: Floats = (z_NC.gather(1, at_N1)[:, 0] - rest_N).numpy()
    return result


def stacked_confidence(logits_MNC: Tensor, y_N: Tensor, name: str = "shadow models") -> Floats:
    """`scaled_confidence` of every model, float64 (M, N).

    Parameters
    ----------
    logits_MNC : logits of M models of the same N images
    y_N : their classes

    Raises
    ------
    ValueError : another number of axes, no model, or logits that do not fit the labels
    """
    if logits_MNC.ndim != 3 or len(logits_MNC) == 0:
        raise ValueError(f"{name}: expected logits (models, images, classes), got shape {tuple(logits_MNC.shape)}")
    flat_NC, models = logits_MNC.flatten(0, 1), len(logits_MNC)
    return scaled_confidence(flat_NC, y_N.repeat(models), name).reshape(models, -1)
